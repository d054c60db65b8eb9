// Arrays in and out of the graph. `saten_runtime` says what each of these means.

/** The inputs of a graph: int64 tensors of one shape, from flat lists of numbers. */
export function feedsOf(ort, names, shape, lists) {
  return Object.fromEntries(
    names.map((name) => [name, new ort.Tensor("int64", BigInt64Array.from(lists[name], BigInt), shape)]),
  );
}

/**
 * One row per text out of (batch, tokens, width), as `saten_runtime.run.predict.pool` but never normalized.
 *
 * mask: (batch, tokens), or null where the graph has none.
 */
export function pool(data, [batch, tokens, width], mask, how) {
  const rows = new Float32Array(batch * width);
  for (let text = 0; text < batch; text++) {
    const row = rows.subarray(text * width, (text + 1) * width);
    let weights = 0;
    for (let token = 0; token < (how === "cls" ? 1 : tokens); token++) {
      const place = text * tokens + token;
      if (how === "mean" && mask && !mask[place]) continue;
      weights += 1;
      for (let k = 0; k < width; k++) row[k] += data[place * width + k];
    }
    for (let k = 0; k < width; k++) row[k] /= Math.max(weights, 1);
  }
  return { shape: [batch, width], data: rows };
}

/** Base64 of the bytes of a Float32Array; every browser's processor is little-endian. */
export function base64(floats) {
  const bytes = new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}

export function median(values) {
  const sorted = Float64Array.from(values).sort();
  const middle = (sorted.length - 1) / 2;
  return (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
}
