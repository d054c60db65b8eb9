// The measured thread: one session, obeying messages {id, verb, …}; the answer is {id, ok} or {id, error}.

import { feedsOf, pool } from "./tensors.js";

const OPTIONS = {
  executionProviders: ["wasm"],
  graphOptimizationLevel: "all",
  enableCpuMemArena: true,
  enableMemPattern: false,
};
const LEAST_STEPS = 100; // a sample lasts at least so many steps of the clock

let ort;
let session;
let sessions; // of probes, by name
let feeds;

const verbs = {
  /** Start ONNX Runtime and make the session; session_ms includes instantiating the WebAssembly. */
  async load({ module, wasm, graph, weights, threads }) {
    await begin(module, wasm, threads);
    const externalData = [];
    for (const { name, blob } of weights) {
      externalData.push({ path: name, data: new Uint8Array(await blob.arrayBuffer()) });
    }
    const bytes = new Uint8Array(await graph.arrayBuffer());
    const start = performance.now();
    session = await ort.InferenceSession.create(bytes, { externalData, ...OPTIONS });
    return { session_ms: performance.now() - start };
  },

  /** Start ONNX Runtime on one thread, and make a session of every small graph. */
  async loadAll({ module, wasm, graphs }) {
    await begin(module, wasm, 1);
    sessions = new Map();
    for (const { name, graph } of graphs) {
      const bytes = new Uint8Array(await graph.arrayBuffer());
      sessions.set(name, await ort.InferenceSession.create(bytes, OPTIONS));
    }
    return {};
  },

  /** Samples of one of them on `rows` rows: numbers of a width, or ids below `ids`. */
  time({ name, width, ids, rows, ...how }) {
    session = sessions.get(name);
    const count = ids ? rows : rows * width;
    const ready = ids
      ? new ort.Tensor("int64", BigInt64Array.from({ length: count }, (_, k) => BigInt((k * 7919) % ids)), [rows])
      : new ort.Tensor("float32", Float32Array.from({ length: count }, () => 2 * Math.random() - 1), [rows, width]);
    feeds = { x: ready };
    return verbs.run({ warmup: 1, warmup_ms: 0, ...how });
  },

  async prepare({ inputs, shape, lists }) {
    feeds = feedsOf(ort, inputs, shape, lists);
    return {};
  },

  /** Samples of the prepared input: until there are `iterations` and `min_ms` have passed, `most` at most. */
  async run({ warmup, warmup_ms, iterations, min_ms: minimum, most, tick_ms: tick }) {
    const cold = performance.now();
    for (let k = 0; k < warmup || performance.now() - cold < warmup_ms; k++) await session.run(feeds);
    const repeat = await runsPerSample(tick, minimum, most);
    const samples = [];
    const begin = performance.now();
    let last;
    do {
      const start = performance.now();
      for (let k = 0; k < repeat; k++) last = await session.run(feeds);
      samples.push((performance.now() - start) / repeat);
    } while (samples.length < most && (samples.length < iterations || performance.now() - begin < minimum));
    for (const name of session.outputNames) refuseNotFinite(name, last[name].data);
    return { samples_ms: samples, runs_per_sample: repeat };
  },

  /** The first run after loading; a message later the page's clock says when it had finished. */
  async first() {
    const start = performance.now();
    await session.run(feeds);
    return { first_run_ms: performance.now() - start };
  },

  async answer({ inputs, question }) {
    const asked = feedsOf(ort, inputs, question.shape, question.feeds);
    const start = performance.now();
    const results = await session.run(asked, question.outputs);
    const elapsed_ms = performance.now() - start;
    const outputs = question.outputs.map((name) => [name, answered(name, results[name], question)]);
    return { elapsed_ms, outputs: Object.fromEntries(outputs) };
  },
};

async function begin(module, wasm, threads) {
  ort = await import(module);
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmBinary = await wasm.arrayBuffer();
}

async function runsPerSample(tick, minimum, most) {
  let repeat = 1;
  let elapsed = await timed(repeat);
  while (elapsed < LEAST_STEPS * tick) {
    repeat = Math.ceil(Math.max(2, Math.min(10, (LEAST_STEPS * tick) / Math.max(elapsed, tick))) * repeat);
    elapsed = await timed(repeat);
  }
  return Math.max(repeat, Math.ceil(minimum / (elapsed / repeat) / most));
}

async function timed(runs) {
  const start = performance.now();
  for (let k = 0; k < runs; k++) await session.run(feeds);
  return performance.now() - start;
}

function answered(name, tensor, { pooling, feeds: lists }) {
  refuseNotFinite(name, tensor.data);
  if (pooling !== "none") return pool(tensor.data, tensor.dims, lists.attention_mask ?? null, pooling);
  return { shape: [...tensor.dims], data: Float32Array.from(tensor.data) };
}

function refuseNotFinite(name, data) {
  for (const value of data) {
    if (!Number.isFinite(value)) throw new Error(`output ${name} holds NaN or infinity; export the model again`);
  }
}

onmessage = async ({ data: { id, verb, ...request } }) => {
  try {
    postMessage({ id, ok: await verbs[verb](request) });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
};
