// A worker, asked by messages and ended by a signal.

export class Engine {
  #worker = new Worker("/worker.js", { type: "module" });
  #waiting = new Map();
  #count = 0;

  constructor(signal) {
    this.#worker.onmessage = ({ data }) => this.#settle(data.id, data.error, data.ok);
    this.#worker.onerror = (event) => this.#fail(event.message || "the worker ended; is the memory full?");
    signal.addEventListener("abort", () => this.end(), { once: true });
  }

  ask(verb, request = {}) {
    const id = ++this.#count;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, verb, ...request });
    });
  }

  end() {
    this.#worker.terminate();
    this.#fail("stopped");
  }

  #settle(id, error, ok) {
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) resolve(ok);
    else reject(new Error(error));
  }

  #fail(reason) {
    for (const id of [...this.#waiting.keys()]) this.#settle(id, reason);
  }
}
