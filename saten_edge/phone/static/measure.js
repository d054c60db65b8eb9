// One run of the job, from downloading to the last post. Mirrors `saten_runtime.bench.measure`: in each round
// every bundle starts in a fresh worker, then the bundles take turns, size by size.

import { download } from "./download.js";
import { base64 } from "./tensors.js";

const NEEDS_ISOLATION = "more than one thread needs https or localhost (the page is not cross-origin isolated)";

/** A worker with one bundle loaded. */
class Engine {
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

/**
 * Runs a job. `on.step(stage, fraction, what)` is called as it goes, `on.samples(cell)` after each turn,
 * `on.failed(name, reason)` for a bundle that cannot run here; `signal` ends it.
 *
 * Posts are kept until they are taken: when the computer cannot be reached, `send` can be called again.
 */
export class Measurement {
  #job;
  #server;
  #on;
  #signal;
  #files = []; // by bundle: {graph, weights}
  #loaded = {}; // by bundle: {file name: sha256 of what arrived}
  #wasm;
  #failures = new Map(); // "bundle threads" -> reason
  #outbox = [];
  #questions = [];
  #hidden = false;

  constructor(job, server, on, signal) {
    this.#job = job;
    this.#server = server;
    this.#on = on;
    this.#signal = signal;
  }

  async measure() {
    const noteHidden = () => (this.#hidden ||= document.hidden);
    document.addEventListener("visibilitychange", noteHidden);
    try {
      await this.#download();
      const cases = (bundle) => [0, bundle.cases];
      await this.#answerAll("check", this.#job.threads[0], cases);
      this.#hidden = document.hidden;
      const measured = await this.#bench();
      const facts = { loaded: this.#loaded, device: device(), hidden: this.#hidden, failures: this.#failed() };
      this.#queue("bench", { ...facts, ...measured });
      await this.#trySend();
      await this.#answerAll("accuracy", this.#job.threads[0], (bundle) => [bundle.cases, bundle.questions]);
      this.#queue("end", {});
      await this.#trySend();
    } finally {
      document.removeEventListener("visibilitychange", noteHidden);
    }
  }

  /** Whether there is something the computer has not taken yet. */
  get unsent() {
    return this.#outbox.length > 0;
  }

  /** Post everything that was not taken yet; the answers go to `on.result(path, answer)`. */
  async send() {
    while (this.unsent) {
      const { path, value } = this.#outbox[0];
      const answer = await this.#server.post(`/api/${path}`, value);
      this.#outbox.shift();
      this.#on.result(path, answer);
    }
  }

  async #download() {
    const total = this.#job.bundles.flatMap((bundle) => bundle.files).reduce((sum, file) => sum + file.bytes, 0);
    let arrived = 0;
    const { version, wasm } = this.#job.ort;
    this.#on.step("download", 0, "the engine");
    this.#wasm = await (await fetch(`/ort/${version}/${wasm}`)).blob();
    for (const [index, bundle] of this.#job.bundles.entries()) {
      const blobs = new Map();
      for (const file of bundle.files) {
        const advance = (bytes) => this.#on.step("download", (arrived += bytes) / total, bundle.name);
        const { blob, sha256 } = await download(this.#server, file, advance);
        blobs.set(file.name, blob);
        (this.#loaded[index] ??= {})[file.name] = sha256;
        this.#signal.throwIfAborted();
      }
      const weights = [...blobs].filter(([name]) => name !== "model.onnx").map(([name, blob]) => ({ name, blob }));
      this.#files[index] = { graph: blobs.get("model.onnx"), weights };
      const sheet = await download(this.#server, bundle.sheet, () => {});
      this.#questions[index] = JSON.parse(await sheet.blob.text());
    }
  }

  async #start(index, threads) {
    const { version, module } = this.#job.ort;
    const worker = new Engine(this.#signal);
    try {
      const loaded = { module: `/ort/${version}/${module}`, wasm: this.#wasm, ...this.#files[index], threads };
      return { worker, ...(await worker.ask("load", loaded)) };
    } catch (error) {
      worker.end();
      throw error;
    }
  }

  async #answerAll(stage, threads, range) {
    const asked = this.#job.bundles.flatMap((bundle, index) => {
      const [first, end] = range(bundle);
      return first < end && !this.#failures.has(`${index} ${threads}`) ? [{ bundle, index, first, end }] : [];
    });
    const total = asked.reduce((sum, { first, end }) => sum + end - first, 0);
    let done = 0;
    for (const { bundle, index, first, end } of asked) {
      await this.#failing(index, threads, async () => {
        this.#on.step(stage, done / total, bundle.name);
        const { worker } = await this.#start(index, threads);
        try {
          for (let number = first; number < end; number++) {
            const question = this.#questions[index][number];
            const answer = await worker.ask("answer", { inputs: bundle.inputs, question });
            this.#queue("answer", this.#answerPost(index, number, answer));
            this.#on.step(stage, ++done / total, bundle.name);
          }
        } finally {
          worker.end();
        }
      });
      await this.#trySend();
    }
  }

  async #bench() {
    const { bundles, rounds, sizes, threads } = this.#job;
    const steps = threads.length * rounds.length * bundles.length * (sizes.length + 1);
    const result = { starts: [], turns: [] };
    let done = 0;
    const step = (what) => this.#on.step("measure", done++ / steps, what);
    const tick_ms = clockStep();
    for (const count of threads) {
      if (count > 1 && !crossOriginIsolated) {
        bundles.forEach((_, index) => this.#fail(index, count, NEEDS_ISOLATION));
      }
      for (const [round, order] of rounds.entries()) {
        const workers = new Map();
        const going = (index) => !this.#failures.has(`${index} ${count}`);
        try {
          for (const index of order) {
            step(`${bundles[index].name}, round ${round + 1} of ${rounds.length}`);
            if (!going(index)) continue;
            await this.#failing(index, count, async () => {
              const begin = performance.now();
              const { worker, session_ms } = await this.#start(index, count);
              workers.set(index, worker);
              await worker.ask("prepare", prepared(bundles[index], sizes[0]));
              const { first_run_ms } = await worker.ask("first");
              const cold_load_ms = performance.now() - begin;
              const times = { cold_load_ms, session_ms: positive(session_ms), first_run_ms: positive(first_run_ms) };
              result.starts.push({ bundle: index, threads: count, round, ...times });
            });
          }
          for (const size of sizes) {
            for (const index of order) {
              step(`${bundles[index].name}, ${size.tokens} tokens, round ${round + 1} of ${rounds.length}`);
              if (!going(index)) continue;
              await this.#failing(index, count, async () => {
                const worker = workers.get(index);
                await worker.ask("prepare", prepared(bundles[index], size));
                const { warmup, warmup_ms, iterations, min_ms, most_samples: most } = this.#job;
                const turn = await worker.ask("run", { warmup, warmup_ms, iterations, min_ms, most, tick_ms });
                const { batch, tokens } = size;
                const cell = { bundle: index, threads: count, batch, tokens, round };
                const samples_ns = turn.samples_ms.map(nanoseconds);
                result.turns.push({ ...cell, runs_per_sample: turn.runs_per_sample, samples_ns });
                this.#on.samples(cell, turn.samples_ms);
              });
            }
          }
        } finally {
          workers.forEach((worker) => worker.end());
        }
      }
    }
    // A bundle that failed later on has no result: its rounds would not pair with the others'.
    const whole = ({ bundle, threads: count }) => !this.#failures.has(`${bundle} ${count}`);
    return { starts: result.starts.filter(whole), turns: result.turns.filter(whole) };
  }

  /** Runs `action`; an error is the failure of this bundle, and the rest goes on. */
  async #failing(index, threads, action) {
    try {
      await action();
    } catch (error) {
      this.#signal.throwIfAborted();
      this.#fail(index, threads, error.message);
    }
  }

  #fail(index, threads, reason) {
    const line = reason.replaceAll(/\s+/g, " ").trim().slice(0, 300);
    this.#failures.set(`${index} ${threads}`, line);
    this.#on.failed(this.#job.bundles[index].name, line);
  }

  #failed() {
    return [...this.#failures].map(([key, reason]) => {
      const [bundle, threads] = key.split(" ").map(Number);
      return { bundle, threads, reason };
    });
  }

  #queue(path, value) {
    this.#outbox.push({ path, value: { run: this.#job.run, ...value } });
  }

  #answerPost(index, number, { elapsed_ms, outputs }) {
    const packed = Object.entries(outputs).map(([name, { shape, data }]) => [name, { shape, float32: base64(data) }]);
    return {
      bundle: index,
      question: number,
      loaded: this.#loaded[index],
      elapsed_ns: nanoseconds(elapsed_ms),
      outputs: Object.fromEntries(packed),
    };
  }

  /** `send`, unless the computer cannot be reached now; what it refuses is an error. */
  async #trySend() {
    try {
      await this.send();
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // fetch says so when there is no connection
    }
  }
}

function prepared({ inputs }, { batch, tokens, feeds }) {
  return { inputs, shape: [batch, tokens], lists: feeds };
}

function device() {
  return {
    cores: navigator.hardwareConcurrency ?? null,
    memory_gib: navigator.deviceMemory ?? null,
    isolated: crossOriginIsolated,
    secure: isSecureContext,
    tick_ns: nanoseconds(clockStep()),
  };
}

/** Smallest step of performance.now(), milliseconds: browsers make it coarse on purpose. */
function clockStep() {
  let least = Infinity;
  for (let seen = 0, then = performance.now(); seen < 20; ) {
    const now = performance.now();
    if (now > then) {
      least = Math.min(least, now - then);
      then = now;
      seen++;
    }
  }
  return least;
}

function nanoseconds(milliseconds) {
  return Math.max(1, Math.round(milliseconds * 1e6));
}

/** Below the clock's step, the step. */
function positive(milliseconds) {
  return Math.max(milliseconds, clockStep());
}
