// The page: what is shown, and the one button. Everything from outside becomes text, never markup.

import { drawBars } from "./chart.js";
import { Measurement } from "./measure.js";
import { Pricing } from "./prices.js";
import { Server } from "./server.js";
import { median } from "./tensors.js";

const KEPT_JOB = "saten-job";
const STAGES = { download: "Download", check: "Check", measure: "Measure", accuracy: "Accuracy", send: "Send" };
const TONES = { true: ["dense-0", "dense-1"], false: ["saten-0", "saten-1", "saten-2"] };

const at = (id) => document.getElementById(id);
const server = new Server(decodeURIComponent(location.hash.slice(1)));

let job;
let measurement;
let stop;
let samples = new Map(); // "threads batch tokens" -> by bundle, all samples so far
let wakeLock;

function make(name, text = "", properties = {}) {
  const element = Object.assign(document.createElement(name), properties);
  element.textContent = text;
  return element;
}

function show(id, shown = true) {
  at(id).hidden = !shown;
}

function problem(text) {
  at("problem").textContent = text;
  show("problem", Boolean(text));
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
const sizeOf = (bundle) => bundle.files.reduce((sum, file) => sum + file.bytes, 0);
const pricing = () => "probes" in job;
const significant = (value) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));

async function open() {
  try {
    job = await server.json("/api/job");
    keep(job);
  } catch (error) {
    job = error instanceof TypeError ? kept() : null;
    if (!job) return explain(error);
    problem("The computer cannot be reached. You can measure what was downloaded before, and send it later.");
  }
  describe();
  at("go").disabled = false;
  at("go").onclick = start;
}

/** The last job, for a page that is opened without the computer. */
function keep(value) {
  if (isSecureContext) localStorage.setItem(KEPT_JOB, JSON.stringify(value));
}

function kept() {
  return JSON.parse(localStorage.getItem(KEPT_JOB) ?? "null");
}

function explain(error) {
  at("intro").textContent =
    "This page measures how fast and how well language models run on this device. " +
    "Open it with the code that saten-edge phone shows on your computer.";
  problem(error instanceof TypeError ? "The computer cannot be reached. Is this device on the same network?" : error.message);
}

function describe() {
  const total = pricing() ? job.pack.bytes : job.bundles.reduce((sum, bundle) => sum + sizeOf(bundle), 0);
  const models = pricing() ? job.probes : job.bundles;
  const noun = pricing() ? "graph" : "model";
  const count = models.length === 1 ? `1 ${noun}` : `${models.length} ${noun}s`;
  at("intro").textContent =
    `${count}, ${megabytes(total)} to download, about ${minutes()} to measure. ` +
    "Keep this page open, the screen on, and other apps closed.";
  at("models").replaceChildren(
    ...job.bundles.map((bundle) => {
      const item = document.createElement("li");
      item.append(make("span", bundle.name), make("span", megabytes(sizeOf(bundle))));
      return item;
    }),
  );
  at("hints").replaceChildren(...hints().map((text) => make("li", text)));
  at("stages").replaceChildren(...stagesOf(job).map((stage) => make("li", STAGES[stage], { id: `stage-${stage}` })));
  show("models-section", !pricing());
  show("plan");
}

function stagesOf({ bundles, probes }) {
  if (probes) return ["download", "measure", "send"];
  const scored = bundles.some((bundle) => bundle.questions > bundle.cases);
  return Object.keys(STAGES).filter((stage) => stage !== "accuracy" || scored);
}

/** Least time of the benchmark, and a second per start. */
function minutes() {
  if (pricing()) return `${Math.ceil(job.limit_ms / 60_000)} minutes at most`;
  const starts = job.threads.length * job.rounds.length * job.bundles.length;
  const seconds = starts * (1 + (job.sizes.length * job.min_ms) / 1000);
  return seconds < 90 ? `${Math.max(10, Math.ceil(seconds / 10) * 10)} seconds` : `${Math.ceil(seconds / 60)} minutes`;
}

function hints() {
  const found = [];
  if (!crossOriginIsolated) found.push("Over plain http a browser gives one thread and a coarse clock; short runs are timed together.");
  if (navigator.deviceMemory < 4) found.push("This device has little memory; large models may not start.");
  return found;
}

async function start() {
  stop = new AbortController();
  samples = new Map();
  problem("");
  show("result", false);
  show("chart-section", false);
  show("plan", false);
  show("progress");
  button("Stop", () => stop.abort(), "stop");
  await stayAwake();
  const Run = pricing() ? Pricing : Measurement;
  measurement = new Run(job, server, { step, samples: addSamples, failed, result }, stop.signal);
  try {
    await measurement.measure();
    await finish();
  } catch (error) {
    show("progress", false);
    show("plan");
    problem(stop.signal.aborted ? "Stopped. The computer has what was complete; the rest is lost." : error.message);
    button("Start again", start);
  } finally {
    wakeLock?.release();
  }
}

async function finish() {
  try {
    step("send", 0, "");
    await measurement.send();
    problem("");
    show("progress", false);
    at("go").parentElement.hidden = true;
    at("title").textContent = "Done";
    at("intro").textContent = "The computer has the result. You may close this page.";
    scrollTo({ top: 0 });
  } catch (error) {
    show("progress", false);
    problem(
      error instanceof TypeError
        ? "Measured, but the computer cannot be reached. Keep this page open and send again on its network."
        : error.message,
    );
    button("Send again", finish);
  }
}

/** The screen stays on; over plain http browsers do not allow it, and the intro asks for it. */
async function stayAwake() {
  wakeLock = await navigator.wakeLock?.request("screen").catch(() => undefined);
}

function button(text, action, kind = "") {
  Object.assign(at("go"), { textContent: text, onclick: action, className: kind });
}

function step(stage, fraction, what) {
  const order = stagesOf(job);
  if (at("stage").textContent !== STAGES[stage]) at("stage").textContent = STAGES[stage];
  at("bar").value = fraction;
  at("what").textContent = what;
  order.forEach((name, index) => {
    const place = order.indexOf(stage);
    at(`stage-${name}`).className = index < place ? "done" : index === place ? "now" : "";
  });
}

function addSamples({ bundle, threads, batch, tokens }, milliseconds) {
  const key = `${threads} ${batch} ${tokens}`;
  if (!samples.has(key)) samples.set(key, job.bundles.map(() => []));
  samples.get(key)[bundle].push(...milliseconds);
  draw();
}

function draw() {
  const groups = [...samples].map(([key, bundles]) => ({
    title: settingText(...key.split(" ").map(Number)),
    bars: bundles.map((values, index) => ({
      name: job.bundles[index].name,
      tone: tone(index),
      value: values.length ? median(values) : null,
      text: values.length ? `${significant(median(values))} ms` : "–",
    })),
  }));
  show("chart-section");
  drawBars(at("chart"), groups);
}

function settingText(threads, batch, tokens) {
  const parts = [`${tokens} tokens`];
  if (job.threads.length > 1) parts.push(threads === 1 ? "1 thread" : `${threads} threads`);
  if (new Set(job.sizes.map((size) => size.batch)).size > 1) parts.push(`batch ${batch}`);
  return parts.join(", ");
}

/** Dense bundles are grey and compressed ones coloured, as in the report. */
function tone(index) {
  const { dense } = job.bundles[index];
  const place = job.bundles.slice(0, index).filter((other) => other.dense === dense).length;
  return TONES[dense][place % TONES[dense].length];
}

function failed(name, reason) {
  const index = job.bundles.findIndex((bundle) => bundle.name === name);
  const label = at("models").children[index].firstChild;
  label.replaceChildren(name, make("small", reason));
  problem(`${name} cannot be measured here: ${reason}`);
}

function result(path, answer) {
  if (path === "bench") showCells(answer);
  if (path === "prices") showVerdict(answer.verdict);
  if (path === "end") showScores(answer.rows);
}

function showVerdict({ valid, reasons: [first, ...others] }) {
  const more = others.length ? ` (${others.length} more reasons are on the computer)` : "";
  at("verdict").textContent = valid ? "✓ You can trust these times." : `Do not trust these times: ${first}${more}`;
  at("verdict").className = valid ? "valid" : "invalid";
  show("result");
}

function showCells({ cells, verdict }) {
  showVerdict(verdict);
  const compared = job.baseline !== null;
  const head = ["model", "p50", "p99", ...(compared ? ["ratio"] : [])];
  const below = compared ? `ratio to ${job.baseline}'s time, with its 95 % interval` : "";
  const keyOf = ({ threads, batch, tokens }) => [threads, batch, tokens].join(" ");
  const tables = [...new Set(cells.map(keyOf))].map((key) => {
    const rows = cells.filter((cell) => keyOf(cell) === key).map(cellRow);
    return table(`${settingText(...key.split(" ").map(Number))}, milliseconds`, below, head, rows);
  });
  at("tables").replaceChildren(...tables);
}

function cellRow({ bundle, p50_ms: p50, p99_ms: p99, ratio, failed: reason }) {
  const times = reason === null ? [significant(p50), significant(p99)] : ["–", "–"];
  const compared = ratio === null ? "–" : [ratio.value.toFixed(2), `${ratio.low.toFixed(2)}–${ratio.high.toFixed(2)}`];
  return [bundle, ...times, ...(job.baseline === null ? [] : [compared])];
}

function showScores(rows) {
  if (!rows.length) return;
  const names = Object.keys(rows[0].metrics);
  const head = ["model", ...names.map((name) => name.replace("_at_", "@").replaceAll("_", " "))];
  const cells = rows.map(({ bundle, metrics }) => [bundle, ...names.map((name) => metrics[name]?.toPrecision(3) ?? "–")]);
  at("tables").append(table("Accuracy", "", head, cells));
}

/** A cell is a text, or [text, smaller text below it]. */
function table(title, below, head, rows) {
  const made = document.createElement("table");
  const caption = make("caption", title);
  if (below) caption.append(make("small", below));
  made.append(caption);
  made.createTHead().insertRow().append(...head.map((text) => make("th", text, { scope: "col" })));
  const body = made.createTBody();
  for (const [name, ...values] of rows) {
    const row = body.insertRow();
    row.append(make("th", name, { scope: "row" }));
    for (const [value, smaller] of values.map((entry) => [entry].flat())) {
      const cell = make("td", value);
      if (smaller !== undefined) cell.append(make("small", smaller));
      row.append(cell);
    }
  }
  const frame = make("div", "", { className: "scroll" });
  frame.append(made);
  return frame;
}

if (isSecureContext) navigator.serviceWorker?.register("/offline.js");
await open();
