// Embeddings by transformers.js: `node js_embed.mjs FOLDER_WITH_NODE_MODULES MODEL DTYPE TEXT…` → JSON.
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [modules, model, dtype, ...texts] = process.argv.slice(2);
const found = createRequire(`${path.resolve(modules)}/anything.js`).resolve("@huggingface/transformers");
const { env, pipeline } = await import(pathToFileURL(found));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(model) + path.sep;
const embed = await pipeline("feature-extraction", path.basename(model), dtype === "-" ? {} : { dtype });
const embeddings = await embed(texts, { pooling: "mean", normalize: true });
console.log(JSON.stringify(embeddings.tolist()));
process.exit(0); // its threads would keep the process
