// One run of the job, from downloading to the last post. Mirrors `saten_runtime.bench.measure`: in each round
// every bundle starts in a fresh worker, then the bundles take turns, size by size.

import { clockStep, device, nanoseconds, Watch } from "./device.js";
import { download } from "./download.js";
import { Engine } from "./engine.js";
import { Outbox } from "./server.js";
import { base64 } from "./tensors.js";

const NEEDS_ISOLATION = "more than one thread needs https or localhost (the page is not cross-origin isolated)";

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
  #outbox;
  #questions = [];

  constructor(job, server, on, signal) {
    this.#job = job;
    this.#server = server;
    this.#on = on;
    this.#signal = signal;
    this.#outbox = new Outbox(server, job.run, on.result);
  }

  async measure() {
    const watch = new Watch();
    try {
      await this.#download();
      const cases = (bundle) => [0, bundle.cases];
      await this.#answerAll("check", this.#job.threads[0], cases);
      watch.begin();
      const measured = await this.#bench();
      const facts = { loaded: this.#loaded, device: device(), hidden: watch.hidden, failures: this.#failed() };
      this.#outbox.add("bench", { ...facts, ...measured });
      await this.#outbox.trySend();
      await this.#answerAll("accuracy", this.#job.threads[0], (bundle) => [bundle.cases, bundle.questions]);
      this.#outbox.add("end", {});
      await this.#outbox.trySend();
    } finally {
      watch.end();
    }
  }

  /** Post everything that was not taken yet. */
  send() {
    return this.#outbox.send();
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
            this.#outbox.add("answer", this.#answerPost(index, number, answer));
            this.#on.step(stage, ++done / total, bundle.name);
          }
        } finally {
          worker.end();
        }
      });
      await this.#outbox.trySend();
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
}

function prepared({ inputs }, { batch, tokens, feeds }) {
  return { inputs, shape: [batch, tokens], lists: feeds };
}

/** Below the clock's step, the step. */
function positive(milliseconds) {
  return Math.max(milliseconds, clockStep());
}
