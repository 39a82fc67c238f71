// The draws of TensorFlow's stateless normal numbers by Philox (Salmon et al. 2011), as the library draws an image's.

const SCRAMBLING = [0x3ec8f720, 0x02461e29]; // TensorFlow's key for seeds
const ONE = 0xd2511f53, OTHER = 0xcd9e8d57; // Philox's factors
const SMALLEST = 1e-7; // of the uniform numbers under a logarithm

// The lower and the upper 32 bits of a product of two words. A double holds it to 2 ** 10: rounding is exact.
const lower = (a, b) => Math.imul(a, b) >>> 0;
const upper = (a, b) => Math.round((a * b - lower(a, b)) / 2 ** 32);

function philox(a, b, c, d, k, l) {
  for (let round = 0; round < 10; round += 1) {
    [a, b, c, d] = [(upper(OTHER, c) ^ b ^ k) >>> 0, lower(OTHER, c), (upper(ONE, a) ^ d ^ l) >>> 0, lower(ONE, a)];
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
