// A model that runs in the browser, in place of a server: a .tflite file of the signature compose, by LiteRT.js.

import { Model, Problem } from "./server.js";
import { Tensor, loadAndCompile, loadLiteRt } from "./litert/core/index.js";
import { noise } from "./noise.js";

const runtime = loadLiteRt(new URL("litert/core/wasm/", location.href).pathname);
const KEPT = 100; // the noise of so many seeds: a slider asks for the same again
const TYPES = { int32: Int32Array, float32: Float32Array };

export class DeviceModel extends Model {
  #compiled;
  #noise = new Map();

  constructor(name, { file, step }) {
    super(location.origin, name);
    Object.assign(this, { file, version: `step ${step}` });
  }

  async load() {
    try {
      await runtime;
      this.#compiled = await loadAndCompile(this.file, { accelerator: "wasm" });
    } catch (error) {
      throw new Problem(`The model can't be run here: ${error.message}`);
    }
    const names = this.#compiled.getInputDetails().map(({ name }) => name);
    this.inputs = { compose: names.map((name) => (name === "noise" ? "seed" : name)) };
    return this;
  }

  // As a server's signature compose, row by row.
  async predict(signature, given) {
    if (!this.has(signature)) throw new Problem(`This page has no signature ${signature}.`);
    const outputs = { image_uint8: [], latent: [] };
    for (let i = 0; i < given.seed.length; i += 1) {
      const { image, latent } = await this.#run((name) => (
        name === "noise" ? this.#noiseOf(given.seed[i], given.latent[i].length) : given[name][i]));
      if (!image.every(Number.isFinite)) throw new Problem("The model refuses a row; is a temperature too high?");
      outputs.image_uint8.push(Array.from(image, (v) => Math.round(255 * Math.min(1, Math.max(0, v)))));
      outputs.latent.push([...latent]);
    }
    return { outputs };
  }

  async #run(valueOf) {
    const inputs = Object.fromEntries(this.#compiled.getInputDetails().map(({ name, dtype, shape }) => {
      const value = valueOf(name), values = new TYPES[dtype](value.length === undefined ? [value] : value);
      return [name, new Tensor(values, Object.values(shape))];
    }));
    const results = await this.#compiled.run(inputs), made = {};
    for (const [name, tensor] of Object.entries(results)) made[name] = await tensor.data();
    for (const tensor of [...Object.values(inputs), ...Object.values(results)]) tensor.delete();
    return made;
  }

  #noiseOf(seed, count) {
    if (!this.#noise.has(seed)) this.#noise.set(seed, noise(seed, count));
    if (this.#noise.size > KEPT) this.#noise.delete(this.#noise.keys().next().value);
    return this.#noise.get(seed);
  }
}
