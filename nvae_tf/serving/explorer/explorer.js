// The page: what it shows is a function of `state`, which its link holds, and of what the server answers.

import { Model, Problem } from "./server.js";
import { Maker, seedOf } from "./latents.js";
import * as images from "./images.js";

const COUNTS = [6, 12, 24, 48], VARIANTS = 6, STEPS = 7, RESTORATIONS = 4;
const SIZES = { samples: 64, examples: 40, variants: 64, path: 48, restored: 64, ends: 48, current: 128, paint: 160 };
const LONGEST_LINK = 2 ** 16;
const IN_TURN = "turn";

const $ = (id) => document.getElementById(id);
let model, maker, facts, state, painted;
// What each part shows: { pixels, request }.
const shown = {};

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// ---- Actions: one at a time of each kind, the newest wins; what goes wrong is said in one place.

const running = {}, waiting = {};
let failed; // the kind of the action whose problem is shown

const markRunning = () => { document.body.dataset.running = Object.values(running).filter(Boolean).length; };

async function act(name, action) {
  if (running[name]) {
    waiting[name] = action;
    return;
  }
  running[name] = true;
  markRunning();
  const start = performance.now();
  try {
    const text = await action();
    performance.measure(name, { start });
    if (failed === name || name === "start") {
      failed = undefined;
      $("problem").hidden = true;
    }
    if (text) $("status").textContent = `${text} in ${Math.round(performance.now() - start)} ms`;
  } catch (error) {
    failed = name;
    if (!(error instanceof Problem)) console.error(error);
    $("reason").textContent = error instanceof Problem ? error.message
      : `The page has an error: ${error.message}. If the model was exported by another version of nvae_tf, `
        + "write the folder of this page anew: nvae-serving-files, nvae-export-tflite --page.";
    $("problem").hidden = false;
  } finally {
    running[name] = false;
    const next = waiting[name];
    delete waiting[name];
    if (next) act(name, next);
    markRunning();
    // Also what failed: to be tried again. A start reads the link.
    if (state && name !== "start" && !running.start) remember();
  }
}

// ---- State and link.

function remember() {
  const inLink = isTooLong() ? { ...state, current: null, ends: [null, null] } : state;
  history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(inLink))}`);
}

const isTooLong = () => JSON.stringify({ ...state }).length > LONGEST_LINK;

function fresh() {
  const classes = facts.classes.length && model.takes("compose", "label");
  return {
    seed: 1, count: 24, temperature: maker.all(1), each: false, label: classes ? IN_TURN : -1, guidance: 1,
    prior: false, current: null, variants: { top: 1 }, draws: 0, locks: [], ends: [null, null],
    groups: maker.all(0).map((_, g) => g),
  };
}

function restoredState() {
  try {
    const found = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    return found.temperature?.length === maker.groups ? { ...fresh(), ...found } : fresh();
  } catch {
    return fresh();
  }
}

// ---- Pictures.

function show(part, pixels, label, choose) {
  const place = $(part);
  while (place.children.length > pixels.length) place.lastChild.remove();
  while (place.children.length < pixels.length) {
    place.append(element("button", { className: "picture", type: "button" }, element("canvas")));
  }
  pixels.forEach((image, i) => {
    const button = place.children[i];
    images.draw(button.firstChild, image, facts.image, SIZES[part]);
    button.ariaLabel = label(i);
    button.title = label(i);
    button.onclick = () => choose(i);
  });
}

function press(part, recipes) {
  const wanted = JSON.stringify(state.current);
  [...$(part).children].forEach((button, i) => { button.ariaPressed = String(JSON.stringify(recipes[i]) === wanted); });
}

const plain = (recipe) => JSON.parse(JSON.stringify(recipe)); // as it will be read from a link

function pressAll() {
  for (const part of ["samples", "variants", "path", "examples"]) press(part, shown[part]?.recipes ?? []);
}

// ---- Samples.

function rowOf(i) {
  const label = state.label === IN_TURN ? i % facts.classes.length : state.label;
  const row = { seed: seedOf(state.seed, i), keep: maker.all(0), temperature: [...state.temperature] };
  if (model.takes("compose", "label")) row.label = label;
  if (model.takes("compose", "guidance")) row.guidance = label < 0 ? 1 : state.guidance;
  if (model.takes("compose", "proposals")) row.proposals = state.prior ? 100 : 1;
  return row;
}

const sample = () => act("samples", async () => {
  const rows = Array.from({ length: state.count }, (_, i) => rowOf(i));
  const { pixels, request } = await maker.sample(rows);
  const recipes = rows.map((row) => plain({ row }));
  shown.samples = { pixels, request, recipes };
  show("samples", pixels, (i) => `Sample ${i + 1} of seed ${state.seed}`, (i) => choose(recipes[i]));
  pressAll();
  if (!state.current) choose(recipes[0]);
  else vary();
  if (!state.ends.every(Boolean)) {
    state.ends = state.ends.map((end, i) => end ?? recipes[i]);
    showPath();
  }
  return `${state.count} samples`;
});

// ---- The current image.

function choose(recipe) {
  state.current = recipe;
  showCurrent();
}

function nameOf(recipe) {
  if (recipe.from) return `variant of ${nameOf(recipe.from).replace(/^variant of /, "")}`;
  if (recipe.row) return `sample ${Math.floor(recipe.row.seed / 2 ** 32) + 1} of seed ${recipe.row.seed % 2 ** 32}`;
  if (recipe.between) return `${Math.round(100 * recipe.fraction)}% of the way from A to B`;
  return recipe.pixels === undefined ? `test image ${recipe.example + 1}` : "your picture";
}

const showCurrent = () => act("current", async () => {
  const { current } = state;
  const made = await maker.made(current);
  const seen = made.original ?? made.pixels, label = made.settings.label ?? -1;
  $("of-original").hidden = !made.original;
  for (const [part, pixels] of [["original", seen], ["current", made.pixels]]) {
    images.draw($(part), pixels, facts.image, SIZES.current);
    $(part).ariaLabel = part === "original" ? nameOf(current) : made.original ? "Reconstruction" : nameOf(current);
  }
  const what = made.original ? `reconstruction of ${nameOf(current)}` : nameOf(current);
  $("what").textContent = what + (label >= 0 ? `, class ${facts.classes[label]}` : "");
  shown.current = { pixels: made.original ? [seen, made.pixels] : [seen], request: made.request, made };
  clearMask();
  pressAll();
  if (!model.has("score")) {
    showGroups(maker.all(0));
    vary();
    return "Current image";
  }
  const outlierScore = model.has("outlier_score") && maker.outlierScore(seen, label);
  const [{ nats, bits, kl }, outlier] = await Promise.all([maker.score(seen, label), outlierScore]);
  const inBits = bits === undefined ? "" : `, ${bits.toFixed(3)} bits/dim`;
  $("facts").textContent = `Negative evidence lower bound ${nats.toFixed(2)} nats${inBits}.`;
  showGroups(kl);
  if (outlier) showOutlierScore(outlier);
  vary();
  return "Current image";
});

function showOutlierScore(score) {
  const texts = [
    ["kl_sum", "sum of KLs"], ["kl_p_value", "p-value"],
    ["mahalanobis", "Mahalanobis distance"], ["mahalanobis_p_value", "p-value"],
  ].filter(([name]) => typeof score[name] === "number").map(([name, text]) => `${text} ${score[name].toPrecision(3)}`);
  if (texts.length) $("facts").textContent += ` As an outlier: ${texts.join(", ")}.`;
  $("of-map").hidden = !score.kl_map;
  if (!score.kl_map) return;
  const values = score.kl_map.flat(), least = Math.min(...values, 0), range = Math.max(...values) - least;
  const pixelsOfMap = Uint8Array.from(values, (v) => Math.round(255 * (v - least) / (range || 1)));
  images.draw($("map"), pixelsOfMap, [...facts.image.slice(0, 2), 1], SIZES.current);
}

function showGroups(kl) {
  const most = Math.max(...kl, 1e-6), table = $("groups");
  if (table.children.length !== kl.length) {
    table.replaceChildren(...kl.map((_, g) => {
      const lock = element("input", { type: "checkbox", ariaLabel: `Lock group ${g + 1}` });
      lock.onchange = () => {
        state.locks = state.locks.filter((other) => other !== g).concat(lock.checked ? [g] : []);
        remember();
      };
      const redraw = element("button", { textContent: "Redraw", ariaLabel: `Redraw group ${g + 1} alone` });
      redraw.onclick = () => { state.variants = { group: g }; vary(); };
      const bar = element("div", { className: "bar" }, element("span"), element("b"));
      const named = element("th", { scope: "row" }, groupName(g));
      const cells = [element("td", { hidden: !model.has("score") }, bar), element("td", {}, redraw)];
      return element("tr", {}, element("td", {}, lock), named, ...cells);
    }));
  }
  kl.forEach((nats, g) => {
    const [lock, , bar] = table.children[g].children;
    lock.firstChild.checked = state.locks.includes(g);
    bar.firstChild.firstChild.style.width = `calc(${Math.max(0, nats) / most} * (100% - 4.5em))`;
    bar.firstChild.lastChild.textContent = nats.toFixed(2);
  });
}

const groupName = (g) => `${g + 1}: ${facts.shapes[g].join("×")}`;

// ---- Variants.

const vary = () => act("variants", async () => {
  const { current, draws, locks, temperature, variants: { group, top } } = state;
  const [text, isKept] = group !== undefined ? [`Group ${group + 1} redrawn, all others kept`, (g) => g !== group]
    : top !== undefined ? [`The top ${top} of ${maker.groups} groups kept, the others redrawn`, (g) => g < top]
    : ["All groups redrawn that are not locked", (g) => locks.includes(g)];
  $("variant-text").textContent = text;
  setOutput($("top"), top ?? 0, top ?? "–");
  const keep = maker.all(0).map((_, g) => Number(isKept(g)));
  const count = keep.every(Boolean) ? 1 : VARIANTS;
  const rowAt = (_, i) => ({ seed: seedOf(draws, i), keep, temperature: [...temperature] });
  const rows = Array.from({ length: count }, rowAt);
  const { pixels, request, recipes } = await maker.variants(current, rows);
  shown.variants = { pixels, request, recipes: recipes.map(plain) };
  show("variants", pixels, (i) => `Variant ${i + 1}`, (i) => choose(shown.variants.recipes[i]));
  pressAll();
  return count === 1 ? "All groups kept" : `${count} variants`;
});

// ---- Interpolation.

const showPath = () => act("path", async () => {
  const { ends, groups } = state;
  const made = await Promise.all(ends.map((end) => maker.made(end)));
  show("ends", made.map(({ pixels }) => pixels), (i) => `${"AB"[i]}: ${nameOf(ends[i])}`, (i) => choose(ends[i]));
  const fractions = Array.from({ length: STEPS }, (_, i) => i / (STEPS - 1));
  const { pixels, request, recipes } = await maker.path(ends, [...groups], fractions);
  shown.path = { pixels, request, recipes: recipes.map(plain), columns: STEPS };
  show("path", pixels, (i) => nameOf(recipes[i]), (i) => choose(shown.path.recipes[i]));
  pressAll();
  return "Interpolation";
});

function showChosen() {
  $("chosen").replaceChildren(...maker.all(0).map((_, g) => {
    const box = element("input", { type: "checkbox", checked: state.groups.includes(g) });
    box.onchange = () => {
      state.groups = state.groups.filter((other) => other !== g).concat(box.checked ? [g] : []).sort((a, b) => a - b);
      showPath();
    };
    return element("label", {}, box, groupName(g));
  }));
}

// ---- Restoration.

function clearMask() {
  const [height, width] = facts.image;
  painted = { mask: new Uint8Array(height * width), x: Math.floor(width / 2), y: Math.floor(height / 2), series: 0 };
  shown.restored = undefined;
  show("restored", [], () => "", () => {});
  drawMask();
}

function drawMask(cursor = false) {
  const [height, width] = facts.image, { pixels } = shown.current;
  images.draw($("paint"), pixels[0], facts.image, SIZES.paint);
  const context = $("paint").getContext("2d");
  context.fillStyle = "rgb(235 90 30 / 80%)";
  painted.mask.forEach((hole, i) => { if (hole) context.fillRect(i % width, Math.floor(i / width), 1, 1); });
  context.fillStyle = "rgb(30 110 235)";
  if (cursor) context.fillRect(painted.x, painted.y, 1, 1);
}

function paintAt(x, y) {
  const [height, width] = facts.image, radius = Number($("brush").value);
  painted.mask.forEach((_, i) => {
    if (Math.hypot(i % width - x, Math.floor(i / width) - y) <= radius) painted.mask[i] = 1;
  });
}

function paintWithPointer(event) {
  if (event.buttons !== 1) return;
  const box = $("paint").getBoundingClientRect(), [height, width] = facts.image;
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  paintAt(Math.floor(x * width), Math.floor(y * height));
  drawMask();
}

function paintWithKeys(event) {
  const [height, width] = facts.image;
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step && event.key !== " ") return;
  event.preventDefault();
  if (step) {
    painted.x = Math.min(width - 1, Math.max(0, painted.x + step[0]));
    painted.y = Math.min(height - 1, Math.max(0, painted.y + step[1]));
  } else paintAt(painted.x, painted.y);
  const isPainted = painted.mask[painted.y * width + painted.x];
  $("status").textContent = `Column ${painted.x + 1}, row ${painted.y + 1}${isPainted ? ", painted" : ""}`;
  drawMask(true);
}

const restore = () => act("restored", async () => {
  const { pixels: [seen], made } = shown.current, { mask } = painted, label = made.settings.label ?? -1;
  if (!mask.some(Boolean)) throw new Problem("Paint over a region of the image first.");
  painted.series += 1;
  await maker.restored(seen, mask, painted.series, RESTORATIONS, label, (pixels, request) => {
    if (mask !== painted.mask) return false; // another image, or cleared
    shown.restored = { pixels, request, columns: RESTORATIONS };
    const recipe = (i) => ({ pixels: images.base64(pixels[i]), label });
    show("restored", pixels, (i) => `Restoration ${i + 1}`, (i) => choose(recipe(i)));
    return true;
  });
  return `${RESTORATIONS} restorations`;
});

// ---- Controls.

function setOutput(input, value, text = value) {
  input.value = value;
  input.closest("label").querySelector("output").textContent = text;
}

function showTemperatures() {
  const places = new Map(); // groups that one slider sets
  facts.shapes.forEach(([height, width], g) => {
    const key = state.each ? g : `${height}×${width}`;
    places.set(key, [...(places.get(key) ?? []), g]);
  });
  $("temperatures").replaceChildren(...[...places].map(([key, groups]) => {
    const input = element("input", { type: "range", min: "0.05", max: "1.5", step: "0.05" });
    const counted = groups.length === 1 ? "1 group" : `${groups.length} groups`;
    const label = element("label", {}, state.each ? groupName(key) : `${key}, ${counted}`, input, element("output"));
    const value = state.temperature[groups[0]];
    setOutput(input, value, value.toFixed(2));
    input.oninput = () => {
      for (const g of groups) state.temperature[g] = Number(input.value);
      setOutput(input, input.value, Number(input.value).toFixed(2));
      sample();
    };
    return label;
  }));
  $("of-each").hidden = places.size === maker.groups && !state.each;
}

function showSettings() {
  $("seed").value = state.seed;
  $("class").value = state.label;
  setOutput($("guidance"), state.guidance);
  $("prior").checked = state.prior;
}

function showControls() {
  const has = (input) => model.takes("compose", input);
  $("of-classes").hidden = !has("label");
  const options = [[IN_TURN, "all in turn"], [-1, "none"], ...facts.classes.map((name, i) => [i, name])];
  $("class").replaceChildren(...options.map(([value, text]) => element("option", { value, textContent: text })));
  $("of-guidance").hidden = !has("guidance");
  $("of-prior").hidden = !has("proposals");
  showSettings();
  $("each").checked = state.each;
  $("top").max = maker.groups;
  document.querySelectorAll("[data-needs]").forEach((part) => { part.hidden = !model.has(part.dataset.needs); });
  showTemperatures();
  showChosen();
  show("examples", maker.examples, (i) => `Test image ${i + 1}`, (i) => choose(exampleRecipe(i)));
  shown.examples = { recipes: maker.examples.map((_, i) => exampleRecipe(i)) };
}

const exampleRecipe = (i) => ({ example: i, label: facts.labels?.[i] ?? ownLabel() });

const ownLabel = () => (state.label === IN_TURN ? -1 : state.label);

const upload = (file) => file && act("upload", async () => {
  if (facts.image[2] > 4) throw new Problem("A picture has up to 4 channels; this model takes arrays alone.");
  try {
    choose({ pixels: images.base64(await images.fromFile(file, facts.image)), label: ownLabel() });
  } catch {
    throw new Problem(`${file.name}: no picture that this browser can read; PNG, JPEG and WebP files are.`);
  }
});

async function copy(text, done = "Copied") {
  // Of another machine, without https, a page has no clipboard.
  if (!navigator.clipboard) prompt("To copy:", text);
  else await navigator.clipboard.writeText(text);
  $("status").textContent = done;
}

function addTools(place) {
  const part = place.dataset.of, title = place.previousElementSibling.textContent;
  const tools = {
    PNG: async () => {
      const url = URL.createObjectURL(await images.sheet(shown[part].pixels, facts.image, shown[part].columns));
      element("a", { href: url, download: `${model.name}-${part}.png` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    },
    Python: () => copy(model.asPython(shown[part].request)),
    curl: () => copy(model.asCurl(shown[part].request)),
  };
  for (const [text, action] of Object.entries(tools)) {
    const label = text === "PNG" ? `Download ${title} as PNG` : `Copy ${title} as ${text}`;
    const button = element("button", { type: "button", textContent: text, ariaLabel: label, title: label });
    button.onclick = () => shown[part] && action();
    if (text !== "PNG") button.dataset.needs = "sample"; // of a server
    place.append(button);
  }
}

function listen() {
  document.querySelectorAll(".tools").forEach(addTools);
  const on = (id, event, action) => $(id).addEventListener(event, action);
  on("again", "click", start);
  on("link", "click", () => copy(location.href, isTooLong() ? "Copied without your picture: it is too large" : "Copied"));
  on("model", "change", () => { location.search = new URLSearchParams({ ...query(), model: $("model").value }); });
  const change = (changes) => {
    Object.assign(state, changes);
    showSettings();
    sample();
  };
  const setSeed = (seed) => change({ seed: Math.min(2 ** 31 - 1, Math.max(0, Math.floor(seed) || 0)) });
  on("seed", "change", () => setSeed(Number($("seed").value)));
  on("next", "click", () => setSeed(state.seed + 1));
  const setCount = (step) => change({ count: COUNTS[COUNTS.indexOf(state.count) + step] ?? state.count });
  on("fewer", "click", () => setCount(-1));
  on("more", "click", () => setCount(1));
  on("class", "change", () => change({ label: $("class").value === IN_TURN ? IN_TURN : Number($("class").value) }));
  // The reweighted prior goes with no guidance.
  on("guidance", "input", () => change({ guidance: Number($("guidance").value), prior: false }));
  on("prior", "change", () => change({ prior: $("prior").checked, guidance: 1 }));
  on("each", "change", () => { state.each = $("each").checked; showTemperatures(); remember(); });
  on("top", "input", () => { state.variants = { top: Number($("top").value) }; vary(); });
  on("unlocked", "click", () => { state.variants = {}; vary(); });
  on("others", "click", () => { state.draws += 1; vary(); });
  ["as-a", "as-b"].forEach((id, i) => on(id, "click", () => { state.ends[i] = state.current; showPath(); }));
  on("file", "change", () => upload($("file").files[0]));
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => { // wherever on the page: else a browser would leave it for the picture
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      $("drop").classList.toggle("over", name === "dragover");
      if (name === "drop" && model?.has("encode")) upload(event.dataTransfer.files[0]);
    });
  }
  on("paint", "pointerdown", paintWithPointer);
  on("paint", "pointermove", paintWithPointer);
  on("paint", "keydown", paintWithKeys);
  on("restore", "click", restore);
  on("clear", "click", () => { clearMask(); $("status").textContent = "Cleared"; });
  addEventListener("hashchange", start);
}

const query = () => Object.fromEntries(new URLSearchParams(location.search));

const start = () => act("start", async () => {
  const response = await fetch("explorer.json").catch(() => null);
  if (!response?.ok) throw new Problem(`No explorer.json at ${location.host}. Is the server running?`);
  const { models } = await response.json(), names = Object.keys(models);
  const { model: name = names[0], server = location.origin } = query();
  $("models").hidden = names.length < 2;
  $("model").replaceChildren(...names.map((text) => element("option", { textContent: text })));
  $("model").value = name;
  if (!models[name]) throw new Problem(`explorer.json has no model ${name}; it has ${names.join(", ")}.`);
  facts = models[name];
  const kept = facts.file && await import("./device.js");
  model = await (kept ? new kept.DeviceModel(name, facts) : new Model(server.replace(/\/$/, ""), name)).load();
  maker = new Maker(model, facts);
  images.show(facts.shown ?? []);
  state = restoredState();
  document.title = $("title").textContent = `Explorer: ${name}`;
  const [height, width, channels] = facts.image;
  $("about").textContent = `${height}×${width}×${channels}, ${maker.groups} latent groups, ${model.version}`;
  $("main").hidden = false;
  showControls();
  sample();
  if (state.current) showCurrent();
  if (state.ends.every(Boolean)) showPath();
});

listen();
start();
