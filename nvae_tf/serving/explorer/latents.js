// What the page does with a model: images of latents, latents of images, paths, restoration.
//
// How an image was made is a recipe, plain data that a link can hold:
//   { row, from }           drawn by `compose`: seed, keep, temperature, ...; `from` is the recipe of the groups kept
//   { example, label }      a test image that came with the export, and { pixels, label } one in base64: encoded
//   { between, groups, fraction }   on the path between two recipes, in the chosen groups

import { Problem } from "./server.js";
import { bytes, fromPng, intensities, nested } from "./images.js";

const KEPT = 100; // results of recipes that are not made again
const ROUNDS = 7;
const SMALL = 2 ** 12; // numbers of an image
// A row's seed has the series in its low and the image in its high word, as in the library.
export const seedOf = (series, image) => series + image * 2 ** 32;

export class Maker {
  #made = new Map();

  constructor(model, facts) {
    Object.assign(this, { model, facts, groups: facts.shapes.length });
    this.sizes = facts.shapes.map((shape) => shape.reduce((one, other) => one * other));
    this.total = this.sizes.reduce((one, other) => one + other);
    this.size = facts.image.reduce((one, other) => one * other);
    this.examples = nested(bytes(facts.examples ?? ""), this.size);
    // PNG files are shorter than lists of numbers, but slower where those are short, and a browser has none with alpha.
    this.ending = this.size > SMALL && facts.image[2] % 2 && model.has("compose_png") ? "_png" : "";
  }

  all(value) { return Array(this.groups).fill(value); }

  // Draws rows { seed, keep, temperature, label, guidance, proposals }; kept groups are those of `latents`.
  async compose(rows, latents) {
    const given = { latent: latents ?? rows.map(() => Array(this.total).fill(0)) };
    for (const name of ["keep", "temperature"]) given[name] = rows.map((row) => row[name]);
    return this.#images("compose", rows, given);
  }

  // Draws rows of which no group is kept; without latents in request and answer where the signature `sample` can.
  async sample(rows) {
    const can = (name) => this.model.takes("sample", name) || rows.every((row) => (row[name] ?? 1) === 1);
    const isOne = rows.every(({ temperature }) => new Set(temperature).size === 1);
    if (!this.model.has("sample") || !isOne || !can("guidance") || !can("proposals")) return this.compose(rows);
    return this.#images("sample", rows, { temperature: rows.map((row) => row.temperature[0]) });
  }

  async #images(signature, rows, given) {
    const otherwise = { seed: 0, label: -1, guidance: 1, proposals: 1 };
    for (const [name, value] of Object.entries(otherwise)) given[name] = rows.map((row) => row[name] ?? value);
    const { outputs, request } = await this.model.predict(signature + this.ending, given);
    const pixels = this.ending
      ? await Promise.all(outputs.image_bytes.map(({ b64 }) => fromPng(b64, this.facts.image)))
      : outputs.image_uint8.map((image) => Uint8Array.from(image.flat(2)));
    return { pixels, latents: outputs.latent, request };
  }

  // The latent, pixels and settings (label, guidance, ...) of a recipe, and for images their own pixels, `original`.
  made(recipe) {
    const key = JSON.stringify(recipe);
    if (!this.#made.has(key)) this.#keep(key, this.#make(recipe));
    return this.#made.get(key);
  }

  #keep(key, promise) {
    this.#made.set(key, promise);
    promise.catch(() => this.#made.delete(key));
    if (this.#made.size > KEPT) this.#made.delete(this.#made.keys().next().value);
  }

  async #make(recipe) {
    if (recipe.row) {
      const from = recipe.from && await this.made(recipe.from);
      return this.#first(await this.compose([recipe.row], from && [from.latent]), settingsOf(recipe.row));
    }
    if (recipe.between) {
      const { recipes } = await this.path(recipe.between, recipe.groups, [recipe.fraction]);
      return this.made(recipes[0]);
    }
    const original = recipe.pixels === undefined ? this.examples[recipe.example] : bytes(recipe.pixels);
    if (original?.length !== this.size) throw new Problem("The link is of another model.");
    const label = recipe.label ?? -1;
    const { outputs } = await this.model.predict("encode", { ...this.image([original]), seed: [0], label: [label] });
    return { ...this.#first(await this.compose([this.#keeping({ label })], outputs.latent), { label }), original };
  }

  #keeping(settings) { return { keep: this.all(1), temperature: this.all(1), ...settings }; }

  #first({ pixels: [pixels], latents: [latent], request }, settings) { return { pixels, latent, request, settings }; }

  image(pixels) { return { image: pixels.map((one) => intensities(one, this.facts.image, this.facts.num_bits)) }; }

  // Draws of which some groups are kept from a recipe; each is remembered under its own recipe.
  async variants(from, rows) {
    const { latent, settings } = await this.made(from);
    const drawn = rows.map((row) => ({ ...row, ...settings }));
    const found = await this.compose(drawn, rows.map(() => latent));
    return this.#remembered(drawn.map((row) => ({ row, from })), found, rows.map(() => settings));
  }

  #remembered(recipes, { pixels, latents, request }, settings) {
    recipes.forEach((recipe, i) => {
      const made = { pixels: pixels[i], latent: latents[i], request, settings: settings[i] };
      this.#keep(JSON.stringify(recipe), Promise.resolve(made));
    });
    return { recipes, pixels, request };
  }

  // Images on the way from one recipe to another; the groups that are not chosen stay as in the first.
  async path(between, groups, fractions) {
    const [a, b] = await Promise.all(between.map((end) => this.made(end)));
    const latents = fractions.map((fraction) => {
      let start = 0;
      return this.sizes.flatMap((size, g) => {
        const [one, other] = [a, b].map(({ latent }) => latent.slice(start, start + size));
        start += size;
        return groups.includes(g) ? onArc(one, other, fraction) : one;
      });
    });
    const settings = fractions.map((fraction) => (fraction < 0.5 ? a : b).settings);
    const recipes = fractions.map((fraction) => ({ between, groups, fraction }));
    const found = await this.compose(settings.map((of) => this.#keeping(of)), latents);
    return this.#remembered(recipes, found, settings);
  }

  // The bound, and the KL of each group, of the bits of the model's data nearest to an image.
  async score(pixels, label) {
    const { outputs } = await this.model.predict("score", { ...this.image([pixels]), seed: [0], label: [label] });
    return { nats: outputs.nats[0], bits: outputs.bits_per_dim?.[0], kl: outputs.kl_per_group[0] };
  }

  async outlierScore(pixels, label) {
    const { outputs } = await this.model.predict("outlier_score", { ...this.image([pixels]), label: [label] });
    return Object.fromEntries(Object.entries(outputs).map(([name, [value]]) => [name, value]));
  }

  // Fills in what the mask has (Rezende et al. 2014, appendix F): each round the hole moves toward what it is in the
  // image's reconstruction, and as far beyond, which halves the rounds. It begins as in the mean test image.
  async restored(pixels, mask, seed, count, label, show) {
    const [, width, channels] = this.facts.image;
    const known = intensities(pixels, this.facts.image, this.facts.num_bits).flat(2);
    const holes = known.map((_, i) => mask[Math.floor(i / channels)]);
    const mean = (i) => this.examples.reduce((sum, image) => sum + image[i] / 255, 0) / this.examples.length;
    const first = known.map((v, i) => (holes[i] ? (this.examples.length ? mean(i) : 0.5) : v));
    let images = Array(count).fill(first);
    for (let round = 0; round < ROUNDS; round += 1) {
      const { outputs, request } = await this.model.predict("reconstruct", {
        image: images.map((values) => nested(nested(values, channels), width)),
        seed: images.map((_, i) => seedOf(seed * ROUNDS + round, i)), label: images.map(() => label),
      });
      const found = outputs.image.map((image) => image.flat(2));
      const filled = (values) => Uint8Array.from(pixels, (v, i) => (holes[i] ? Math.round(255 * values[i]) : v));
      if (!show(found.map(filled), request)) return;
      const moved = (v, i, n) => (holes[i] ? Math.min(1, Math.max(0, 2 * v - images[n][i])) : known[i]);
      images = found.map((values, n) => values.map((v, i) => moved(v, i, n)));
    }
  }
}

const settingsOf = ({ label, guidance, proposals }) => ({ label, guidance, proposals });

const length = (vector) => Math.sqrt(vector.reduce((sum, v) => sum + v * v, 0));

// Between two latents of a group, on the arc (Shoemake 1985); those that have none go straight.
function onArc(one, other, fraction) {
  const lengths = [length(one), length(other)];
  let weights = [1 - fraction, fraction];
  if (Math.min(...lengths) > 0) {
    const [a, b] = [one.map((v) => v / lengths[0]), other.map((v) => v / lengths[1])];
    const angle = 2 * Math.atan2(length(a.map((v, i) => v - b[i])), length(a.map((v, i) => v + b[i])));
    if (angle > 1e-4 && angle < Math.PI - 1e-4) {
      weights = weights.map((weight) => Math.sin(weight * angle) / Math.sin(angle));
    }
  }
  return one.map((v, i) => Math.fround(weights[0] * v + weights[1] * other[i]));
}
