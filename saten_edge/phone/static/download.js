// Files by their sha256: fetched once, checked always, kept for the next time where the browser can.

import { Sha256 } from "./sha256.js";

const STORE = "saten-files-1";

/** The file as {blob, sha256}, its content checked; `advance(bytes)` is called as it arrives. */
export async function download(server, file, advance) {
  const store = globalThis.caches ? await caches.open(STORE) : null; // only over https or on localhost
  const key = `/kept/${file.sha256}`;
  const kept = await store?.match(key);
  const response = kept ?? (await server.get(`/api/files/${file.sha256}`));
  const digest = new Sha256();
  const parts = [];
  for await (const part of pieces(response.body)) {
    digest.update(part);
    parts.push(part);
    advance(part.length);
  }
  const sha256 = digest.hex();
  if (sha256 !== file.sha256) {
    await store?.delete(key);
    throw new Error(`${file.name}: what arrived is damaged (its sha256 differs); load the page again`);
  }
  const blob = new Blob(parts);
  // A full disk must not stop the run: the file is only kept for the next one.
  if (!kept) await store?.put(key, new Response(blob)).catch(() => {});
  return { blob, sha256 };
}

async function* pieces(stream) {
  const reader = stream.getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
}
