// Images are uint8 arrays, row by row, of a shape [height, width, channels]: gray, gray and alpha, RGB, RGBA, or any.

let shown = []; // the numbers of the channels that are red, green and blue; none for the usual four
export const show = (channels) => { shown = channels; };

function rgba(pixels, channels) {
  const numbers = channels > 1 && shown.length ? shown : channels < 3 ? [0, 0, 0, 1] : [0, 1, 2, 3];
  const result = new Uint8ClampedArray(4 * pixels.length / channels).fill(255);
  for (let i = 0, k = 0; k < result.length; i += channels, k += 4) {
    for (let c = 0; c < 4; c += 1) if (numbers[c] < channels) result[k + c] = pixels[i + numbers[c]];
  }
  return result;
}

function fromRgba(data, channels) {
  const result = new Uint8Array(channels * data.length / 4);
  for (let i = 0, k = 0; i < data.length; i += 4) {
    if (channels < 3) result[k++] = Math.round(0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]);
    else for (let c = 0; c < 3; c += 1) result[k++] = data[i + c];
    if (channels % 2 === 0) result[k++] = data[i + 3];
  }
  return result;
}

// Draws at a whole multiple of the size, about `size` CSS pixels wide.
export function draw(canvas, pixels, [height, width, channels], size) {
  canvas.width = width;
  canvas.height = height;
  const scale = Math.max(1, Math.round(size / Math.max(width, height)));
  canvas.style.width = `${scale * width}px`;
  canvas.style.height = `${scale * height}px`;
  canvas.getContext("2d").putImageData(new ImageData(rgba(pixels, channels), width, height), 0, 0);
}

// The images as one picture, for a file; resolves to a Blob.
export async function sheet(images, [height, width, channels], columns = Math.ceil(Math.sqrt(images.length))) {
  const rows = Math.ceil(images.length / columns);
  const canvas = new OffscreenCanvas(columns * (width + 2) - 2, rows * (height + 2) - 2);
  const context = canvas.getContext("2d");
  images.forEach((pixels, i) => {
    const [x, y] = [(i % columns) * (width + 2), Math.floor(i / columns) * (height + 2)];
    context.putImageData(new ImageData(rgba(pixels, channels), width, height), x, y);
  });
  return canvas.convertToBlob();
}

// The pixels of a picture file of any size, cropped in its middle; without alpha those of the right size stay exact.
export async function fromFile(source, [height, width, channels]) {
  const bitmap = await createImageBitmap(source, { colorSpaceConversion: "none" });
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [w, h] = [scale * bitmap.width, scale * bitmap.height];
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  if (channels % 2) {
    // Models without alpha see what is transparent as white, as on paper.
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
  }
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
  return fromRgba(context.getImageData(0, 0, width, height).data, channels);
}

export const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

export function base64(pixels) {
  let text = "";
  for (const value of pixels) text += String.fromCharCode(value);
  return btoa(text);
}

export const fromPng = (content, shape) => fromFile(new Blob([bytes(content)]), shape);

// Values of the model's bits, as in its data, floor(v / 2^(8 - bits)) / (2^bits - 1): lists [height][width][channels].
export function intensities(pixels, [, width, channels], bits) {
  const of = (v) => Number(Math.fround((v >> (8 - bits)) / (2 ** bits - 1)).toPrecision(9));
  return nested(nested(Array.from(pixels, of), channels), width);
}

// Values in lists of this length.
export function nested(values, size) {
  return Array.from({ length: values.length / size }, (_, i) => values.slice(i * size, (i + 1) * size));
}
