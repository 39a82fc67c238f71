// The draws of TensorFlow's stateless normal numbers by Philox (Salmon et al. 2011), as the library draws an image's.

const SCRAMBLING = [0x3ec8f720, 0x02461e29]; // TensorFlow's key for seeds
const SMALLEST = 1e-7; // of the uniform numbers under a logarithm

// The upper 32 bits of a product of two words, of 16 bits at a time: doubles have no more than 53.
function upper(a, b) {
  const ah = a >>> 16, al = a & 0xffff, bh = b >>> 16, bl = b & 0xffff;
  const middle = ah * bl + Math.floor(al * bl / 0x10000);
  return ah * bh + Math.floor(middle / 0x10000) + Math.floor((al * bh + middle % 0x10000) / 0x10000);
}

function philox(a, b, c, d, k, l) {
  for (let round = 0; round < 10; round += 1) {
    const first = upper(0xd2511f53, a), second = upper(0xcd9e8d57, c);
    const lower = Math.imul(0xd2511f53, a) >>> 0;
    [a, b, c, d] = [(second ^ b ^ k) >>> 0, Math.imul(0xcd9e8d57, c) >>> 0, (first ^ d ^ l) >>> 0, lower];
    k = (k + 0x9e3779b9) >>> 0;
    l = (l + 0xbb67ae85) >>> 0;
  }
  return [a, b, c, d];
}

const uniform = (word) => (word & 0x7fffff) / 2 ** 23;

// Standard-normal numbers for a seed, whose low word is the series and whose high word the image.
export function noise(seed, count) {
  const [k, l, c, d] = philox(seed % 2 ** 32, 0, Math.floor(seed / 2 ** 32), 0, ...SCRAMBLING);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 4) {
    const words = philox(i / 4, 0, c, d, k, l);
    for (const pair of [0, 2]) {
      const radius = Math.sqrt(-2 * Math.log(Math.max(uniform(words[pair]), SMALLEST)));
      const angle = 2 * Math.PI * uniform(words[pair + 1]);
      values[i + pair] = radius * Math.sin(angle);
      values[i + pair + 1] = radius * Math.cos(angle);
    }
  }
  return values;
}
