// What plain_ort.py does, with onnxruntime-web in WebAssembly: `MODULES=FOLDER node plain_ort.mjs CASES OUT`;
// FOLDER is the one with node_modules.
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [cases, out] = process.argv.slice(2);
const ort = createRequire(`${process.env.MODULES}/anything.js`)("onnxruntime-web");
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal";

const DTYPES = {
  "<f4": ["float32", Float32Array],
  "<i4": ["int32", Int32Array],
  "<i8": ["int64", BigInt64Array],
};

/** An array of NumPy's format 1.0, as a tensor. */
function read(file) {
  const content = fs.readFileSync(file);
  const start = 10 + content.readUInt16LE(8);
  const header = content.toString("latin1", 10, start);
  const dims = [...header.match(/'shape': \(([^)]*)\)/)[1].matchAll(/\d+/g)].map(Number);
  const [type, Typed] = DTYPES[header.match(/'descr': '([^']*)'/)[1]];
  return new ort.Tensor(type, new Typed(content.buffer.slice(content.byteOffset + start, content.byteOffset + content.length)), dims);
}

/** A tensor of float32, in NumPy's format 1.0. */
function write(file, tensor) {
  const dims = `${tensor.dims.join(", ")}${tensor.dims.length === 1 ? "," : ""}`;
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${dims}), }\n`;
  const length = Buffer.from([header.length & 255, header.length >> 8]);
  const magic = Buffer.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0]);
  const values = Buffer.from(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
  fs.writeFileSync(file, Buffer.concat([magic, length, Buffer.from(header, "latin1"), values]));
}

for (const name of fs.readdirSync(cases)) {
  const folder = path.join(cases, name);
  try {
    const weights = path.join(folder, "model.onnx.data");
    const externalData = fs.existsSync(weights) ? [{ path: "model.onnx.data", data: fs.readFileSync(weights) }] : [];
    const session = await ort.InferenceSession.create(fs.readFileSync(path.join(folder, "model.onnx")), { externalData });
    const feeds = Object.fromEntries(session.inputNames.map((input) => [input, read(path.join(folder, `${input}.npy`))]));
    write(path.join(out, `${name}.npy`), (await session.run(feeds))[session.outputNames[0]]);
  } catch (error) {
    fs.writeFileSync(path.join(out, `${name}.txt`), String(error?.message ?? error));
  }
}
console.log(ort.env.versions.common);
process.exit(0); // its threads would keep the process
