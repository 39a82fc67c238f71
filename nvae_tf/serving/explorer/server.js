// TensorFlow Serving's REST interface and nothing else, so that the page works with every server of an export.

// What a reader can do something about; other errors are the page's own.
export class Problem extends Error {}

// Servers write NaN, which JSON has not; in base64 the characters around it do not occur.
const NOT_FINITE = /(?<=[[,:]\s*)-?NaN(?=\s*[,\]}])/g;
const SECONDS = 60;

export class Model {
  constructor(server, name) {
    this.server = server;
    this.name = name;
    this.url = `${server}/v1/models/${encodeURIComponent(name)}`;
  }

  // Reads the signatures: the names of their inputs.
  async load() {
    const metadata = await this.#ask("/metadata");
    const definitions = metadata.metadata?.signature_def?.signature_def;
    if (!definitions) throw new Problem(`${this.url}: no metadata of a model; is this a model server's REST address?`);
    this.version = `version ${metadata.model_spec.version}`;
    this.inputs = Object.fromEntries(
      Object.entries(definitions).map(([name, { inputs = {} }]) => [name, Object.keys(inputs)]),
    );
    if (!this.has("compose")) {
      throw new Problem(`${this.name} has no signature compose, as nvae-export makes; export the model again.`);
    }
    return this;
  }

  has(signature) { return signature in this.inputs; }

  takes(signature, input) { return this.has(signature) && this.inputs[signature].includes(input); }

  // The outputs by name, each with a row for every row of the inputs, of which the signature takes those that it has.
  async predict(signature, given) {
    const inputs = Object.fromEntries(Object.entries(given).filter(([name]) => this.takes(signature, name)));
    const request = { signature_name: signature, inputs };
    const { outputs } = await this.#ask(":predict", JSON.stringify(request));
    if (outputs.valid?.includes(false)) throw new Problem("The model refuses a row; is a temperature too high?");
    return { outputs, request };
  }

  async #ask(path, body) {
    const method = body === undefined ? "GET" : "POST";
    let response, text;
    try {
      response = await fetch(this.url + path, { method, body, signal: AbortSignal.timeout(1000 * SECONDS) });
      text = await response.text();
    } catch (error) {
      const late = error.name === "TimeoutError";
      throw new Problem(late ? `${this.server} has not answered within ${SECONDS} s.`
        : `No answer from ${this.server}. Is the server running? If this page is of another address, the server must `
          + "allow that, by --rest_api_enable_cors_support.");
    }
    let answer;
    try {
      answer = text.includes("NaN") ? JSON.parse(text.replace(NOT_FINITE, "null")) : JSON.parse(text);
    } catch {
      throw new Problem(`${this.server} answers without JSON (HTTP ${response.status}); is this its REST address?`);
    }
    if (!response.ok) throw new Problem(`${this.name}: ${answer.error ?? `HTTP ${response.status}`}`);
    return answer;
  }

  // What to type for a request.
  asPython({ signature_name, inputs }) {
    const values = Object.entries(inputs).map(([name, value]) => {
      const zero = Array.isArray(value[0]) && value.flat().every((number) => number === 0);
      return `${name}=${zero ? `[[0] * ${value[0].length}] * ${value.length}` : JSON.stringify(value)}`;
    });
    return `from nvae_tf.serving.client import ServedModel

with ServedModel(${JSON.stringify(this.server)}, ${JSON.stringify(this.name)}) as model:
    outputs = model.predict(${[JSON.stringify(signature_name), ...values].join(", ")})
`;
  }

  asCurl(request) {
    // Nothing of an address ends the shell's string.
    return `curl --data @- '${this.url.replaceAll("'", "%27")}:predict' <<'END'\n${JSON.stringify(request)}\nEND\n`;
  }
}
