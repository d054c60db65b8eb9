// A run that prices are fitted to: small graphs, each timed at every number of rows. Mirrors
// `saten_runtime.bench.probing`: in each round a fresh worker loads all of them, and they take turns.

import { clockStep, device, nanoseconds, Watch } from "./device.js";
import { download } from "./download.js";
import { Engine } from "./engine.js";
import { Outbox } from "./server.js";

/** As `Measurement`, for a job of probes. */
export class Pricing {
  #job;
  #server;
  #on;
  #signal;
  #outbox;

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
      const files = await this.#download();
      watch.begin();
      const turns = await this.#rounds(files);
      this.#outbox.add("prices", { loaded: files.sha256, device: device(), hidden: watch.hidden, turns });
      this.#outbox.add("end", {});
      await this.#outbox.trySend();
    } finally {
      watch.end();
    }
  }

  send() {
    return this.#outbox.send();
  }

  async #download() {
    const { ort, pack } = this.#job;
    this.#on.step("download", 0, "the engine");
    const wasm = await (await fetch(`/ort/${ort.version}/${ort.wasm}`)).blob();
    let arrived = 0;
    const advance = (bytes) => this.#on.step("download", (arrived += bytes) / pack.bytes, pack.name);
    const { blob, sha256 } = await download(this.#server, pack, advance);
    this.#signal.throwIfAborted();
    return { wasm, blob, sha256 };
  }

  /** As many rounds as end within the limit, one at least. */
  async #rounds(files) {
    const { rounds, limit_ms } = this.#job;
    const turns = [];
    const begin = performance.now();
    for (const [round, order] of rounds.entries()) {
      if (round && ((performance.now() - begin) * (round + 1)) / round > limit_ms) break;
      turns.push(...(await this.#round(files, round, order)));
    }
    return turns;
  }

  async #round({ wasm, blob }, round, order) {
    const { ort, probes, rows, rounds, runs, turn_ms, most_samples: most } = this.#job;
    const worker = new Engine(this.#signal);
    const tick_ms = clockStep();
    const turns = [];
    const total = rounds.length * rows.length * order.length;
    let done = round * rows.length * order.length;
    try {
      const graphs = order.map((index) => {
        const { name, offset, bytes } = probes[index];
        return { name, graph: blob.slice(offset, offset + bytes) };
      });
      await worker.ask("loadAll", { module: `/ort/${ort.version}/${ort.module}`, wasm, graphs });
      for (const count of rows) {
        for (const index of order) {
          const { name, width, ids } = probes[index];
          this.#on.step("measure", done++ / total, `${count} rows, round ${round + 1} of ${rounds.length}`);
          const asked = { name, width, ids, rows: count, iterations: runs, min_ms: turn_ms, most, tick_ms };
          const { samples_ms, runs_per_sample } = await worker.ask("time", asked);
          turns.push({ probe: index, rows: count, round, runs_per_sample, samples_ns: samples_ms.map(nanoseconds) });
        }
      }
    } finally {
      worker.end();
    }
    return turns;
  }
}
