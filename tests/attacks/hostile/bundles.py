"""Hostile bundles for the runtime (R), libraries it might load (O), and measurements (N)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hostile.case import MEBIBYTE, Case, Place, saten_run
from hostile.recipes import BAD_RECIPES
from hostile.sound import LOOKUP, TABLE, WIDTH, WORDS, external, graph, model, node, seal_bundle, tensor
from hostile.wire import bytes_field, packed, varint_field
from saten_runtime.bundle.manifest import Choice

__all__ = ["CASES"]

BUNDLE = "BundleError"
Make = Callable[[Place], Any]


def predict(place: Place) -> int:
    return saten_run("predict", place.folder / "bundle", "w1")


def refused(threat: str, name: str, make: Make, words: str, *, run: Make = predict, **options: Any) -> Case:
    """A bundle that is none."""
    return Case(threat, name, make, run, BUNDLE, words, **options)


# --- makers ----------------------------------------------------------------------------------------------------------


def file(name: str, change: Callable[[bytes], bytes], *, sealed: bool = False) -> Make:
    """Other bytes in a file, sealed anew or not."""

    def make(place: Place) -> None:
        folder = place.copy("bundle")
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        if sealed:
            seal_bundle(folder)

    return make


def onnx(content: bytes, more: Callable[[Path], Any] = lambda folder: None) -> Make:
    """Another graph, sealed."""

    def make(place: Place) -> None:
        folder = place.copy("bundle")
        (folder / "model.onnx").write_bytes(content)
        seal_bundle(folder)
        more(folder)

    return make


def manifest(**changes: Any) -> Make:
    def make(place: Place) -> None:
        place.copy("bundle")
        _edit(place, **changes)

    return make


def listed(name: str, size: int = 1) -> Make:
    """One more file in the manifest."""

    def make(place: Place) -> None:
        path = place.copy("bundle") / "saten_edge.json"
        values = json.loads(path.read_text())
        _edit(place, files={**values["files"], name: {"bytes": size, "sha256": "0" * 64}})

    return make


def instead(name: str, by: Callable[[Path], Any]) -> Make:
    def make(place: Place) -> None:
        path = place.copy("bundle") / name
        path.unlink()
        by(path)

    return make


def weights_at(**entries: object) -> bytes:
    """The graph with its table described otherwise."""
    described = {"location": "model.onnx.data", "offset": 0, "length": len(WORDS) * WIDTH * 4, **entries}
    kept = {key: value for key, value in described.items() if value is not None}
    return model(graph(initializers=[external("table", (len(WORDS), WIDTH), **kept)]))


def table(array: np.ndarray) -> bytes:
    """The graph with a table inside it."""
    return model(graph(initializers=[tensor("table", array.astype(np.float32))]))


def text(name: str, value: str) -> bytes:
    return bytes_field(1, name) + bytes_field(3, value) + varint_field(20, 3)


def many(count: int) -> np.ndarray:
    return np.array([count], np.int64)


def into_output(*nodes: bytes, initializers: list[bytes]) -> bytes:
    """The lookup, to which `big` (a scalar or anything that broadcasts) is added."""
    lookup = node("Gather", ["table", "input_ids"], "rows")
    total = node("Add", ["rows", "small"], "last_hidden_state")
    return model(graph([lookup, *nodes, total], [TABLE, *initializers]))


TOKENIZER = {"file": "tokenizer.json", "pad_id": 0, "max_length": 16}
POOLING = {"pooling": "mean", "normalize": True}
MODULE = {"kind": "dense", "weight": "w.npy", "bias": "", "activation": "tanh", "eps": 1e-5}


def choosing(**changes: Any) -> dict[str, Any]:
    return {"generation": {"cache": [], "stop_ids": [], "choice": {**vars(Choice()), **changes}}}


# What a manifest may say of a model's settings, and must not: (label, fields, words of the refusal).
BAD_SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    (
        "a third side",
        {"tokenizer": {**TOKENIZER, "truncation_side": "both"}},
        "tokenizer.truncation_side: found 'both'",
    ),
    ("a prompt of numbers", {"tokenizer": {**TOKENIZER, "prompt": [1]}}, r"tokenizer.prompt: found \[1\]"),
    ("no dimension", {"postprocess": {**POOLING, "dimensions": 0}}, "postprocess.dimensions: found 0"),
    ("a negative dimension", {"postprocess": {**POOLING, "dimensions": -3}}, "postprocess.dimensions: found -3"),
    (
        "a module with a hook",
        {"postprocess": {**POOLING, "modules": [{**MODULE, "hook": 1}]}},
        "postprocess.modules.*hook",
    ),
    (
        "a module without numbers",
        {"postprocess": {**POOLING, "modules": [{"kind": "dense"}]}},
        "postprocess.modules.* is missing",
    ),
    ("no temperature", choosing(temperature=0.0), "generation.choice.temperature: found 0.0"),
    ("a nucleus of nothing", choosing(top_p=0.0), "generation.choice.top_p: found 0.0"),
    ("a share above 1", choosing(min_p=1.5), "generation.choice.min_p: found 1.5"),
    ("a penalty of nothing", choosing(repetition_penalty=-1.0), "generation.choice.repetition_penalty: found -1.0"),
    (
        "n-grams of a negative size",
        choosing(no_repeat_ngram_size=-1),
        "generation.choice.no_repeat_ngram_size: found -1",
    ),
    ("a banned token below 0", choosing(suppress_tokens=[-1]), r"generation.choice.suppress_tokens\[0\]: found -1"),
    ("a number beyond all counts", choosing(top_k=2**70), "generation.choice.top_k: found"),
]

EXPAND = into_output(
    node("Expand", ["one", "size"], "big"),
    node("ReduceSum", ["big", "axes"], "small", bytes_field(1, "keepdims") + varint_field(3, 0) + varint_field(20, 2)),
    initializers=[
        tensor("one", np.ones(1, np.float32)),
        tensor("size", many(1 << 36)),
        tensor("axes", np.array([0], np.int64)),
    ],
)
RANGE = into_output(
    node("Range", ["zero", "end", "step"], "big"),
    node("ReduceSum", ["big"], "small", bytes_field(1, "keepdims") + varint_field(3, 0) + varint_field(20, 2)),
    initializers=[
        tensor("zero", np.array(0, np.float32)),
        tensor("end", np.array(1e11, np.float32)),
        tensor("step", np.array(1, np.float32)),
    ],
)


def function(name: str, *nodes: bytes) -> bytes:
    return bytes_field(
        25, bytes_field(1, name) + b"".join(bytes_field(7, one) for one in nodes) + bytes_field(10, "saten")
    )


def nested(depth: int) -> bytes:
    inner = graph([node("Identity", ["x"], "y")], [])
    for _ in range(depth):
        inner = graph([node("If", ["x"], "y", bytes_field(1, "then_branch") + bytes_field(6, inner))], [])
    return model(inner)


CALL = node("f", ["table"], "t", domain="saten")
CHAIN = b"".join(function(f"f{k}", *[node(f"f{k + 1}", ["x"], "y", domain="saten")] * 10) for k in range(9))
GRAPHS = [
    refused("R1", "empty graph file", onnx(b""), "is not a sound ONNX file .it is empty"),
    refused("R1", "random bytes", onnx(bytes(range(7, 256)) * 4), r"model\.onnx: is not a sound ONNX file"),
    refused("R1", "half a graph", onnx(model()[: len(model()) // 2]), r"model\.onnx: is not a sound ONNX file"),
    refused(
        "R1", "a graph cut off, not sealed", file("model.onnx", lambda whole: whole[:-1]), r"model\.onnx: \d+ bytes"
    ),
    refused("R1", "a bit of a graph", file("model.onnx", lambda w: w[:-1] + bytes([w[-1] ^ 1])), "its sha256 differs"),
    refused(
        "R1", "a bit of a tokenizer", file("tokenizer.json", lambda w: b" " + w[1:]), r"tokenizer\.json: its sha256"
    ),
    refused("R1", "a tokenizer of random bytes", file("tokenizer.json", lambda w: b"{" * 99, sealed=True), "tokenizer"),
    refused("R1", "no manifest", instead("saten_edge.json", lambda path: None), r"has no saten_edge\.json"),
    refused("R1", "a manifest that is a list", file("saten_edge.json", lambda w: b"[]"), "expected a JSON object"),
    refused(
        "R1", "a manifest of NaN", file("saten_edge.json", lambda w: w.replace(b"1e-05", b"NaN")), "NaN is not JSON"
    ),
    refused("R1", "a manifest of 1e999", file("saten_edge.json", lambda w: w.replace(b"1e-05", b"1e999")), "too large"),
    refused(
        "R1",
        "a key of the manifest twice",
        file("saten_edge.json", lambda w: b'{"name": "a", ' + w[1:]),
        "occurs twice",
    ),
    refused("R1", "a nested manifest", file("saten_edge.json", lambda w: b'{"a":' * 100_000), "not JSON"),
    refused(
        "R1",
        "a manifest of 65 MiB",
        file("saten_edge.json", lambda w: b" " * (65 * MEBIBYTE) + w),
        "has more than 67108864 bytes",
        most_bytes=160 * MEBIBYTE,
    ),
    refused(
        "R1",
        "an edited manifest",
        file("saten_edge.json", lambda w: w.replace(b"cls", b"clS").replace(b"mean", b"none")),
        "does not match its seal",
    ),
    refused("R1", "the next schema", manifest(schema_version=99), "schema version 99, this saten-runtime reads"),
    refused("R1", "an unknown field", manifest(hook="x"), r"saten_edge\.json: found the unknown 'hook'"),
    refused("R1", "a number for a string", manifest(name=7), r"saten_edge\.json\.name: found 7, expected a string"),
    *(
        refused("R1", f"a recipe with {label}", manifest(recipe=recipe), rf"saten_edge\.json\.recipe{words}")
        for label, (recipe, words) in BAD_RECIPES.items()
    ),
    *(
        refused("R1", f"{label} in the manifest", manifest(**fields), rf"saten_edge\.json\..*{words}")
        for label, fields, words in BAD_SETTINGS
    ),
    refused("R1", "an unknown task", manifest(task="mind-reading"), "task 'mind-reading'; this saten-runtime runs"),
    refused(
        "R1", "another opset than the graph's", manifest(opset=18), "opset 20, IR version 10; the manifest says 18"
    ),
    *(
        refused("R2", f"a file at {label}", listed(name), f"names {name!r}, which is not a path inside the bundle")
        for label, name in {
            "../x": "../x",
            "/etc/passwd": "/etc/passwd",
            "nothing": "",
            "a/../../x": "a/../../x",
        }.items()
    ),
    refused("R2", "weights at ..", onnx(weights_at(location="../model.onnx.data")), r"takes weights from '\.\./model"),
    refused("R2", "weights at /", onnx(weights_at(location="/etc/passwd")), "takes weights from '/etc/passwd'"),
    refused("R2", "weights in memory", onnx(weights_at(location="*/_ORT_MEM_ADDR_/*")), "takes weights from "),
    refused(
        "R2", "weights in an unlisted file", onnx(weights_at(location="evil.data")), "takes weights from 'evil.data'"
    ),
    refused("R2", "weights beyond the end", onnx(weights_at(offset=4)), "ends at byte 260 of model.onnx.data"),
    refused("R2", "weights before the start", onnx(weights_at(offset=-4)), "an offset or length is '-4'"),
    refused("R2", "weights of a false length", onnx(weights_at(length=1 << 60)), "claims 1152921504606846976"),
    refused("R2", "an unknown key", onnx(weights_at(hook="x")), "tensor 'table' describes its file with"),
    refused("R2", "no location", onnx(weights_at(location=None)), "tensor 'table' describes its file with"),
    refused(
        "R2",
        "weights that are a link",
        instead("model.onnx.data", lambda path: path.symlink_to("tokenizer.json")),
        r"model\.onnx\.data: is no regular file \(a link\)",
    ),
    refused(
        "R2",
        "weights that are a hard link",
        lambda place: os.link(place.copy("bundle") / "model.onnx.data", place.folder / "bundle" / "other"),
        "has 2 names",
    ),
    refused(
        "R2", "weights that are a pipe", instead("model.onnx.data", os.mkfifo), r"model\.onnx\.data: is no regular"
    ),
    refused(
        "R2", "a graph that is a device", instead("model.onnx", lambda p: p.symlink_to("/dev/zero")), r"\(a link\)"
    ),
    refused(
        "R2", "a manifest that is a pipe", instead("saten_edge.json", os.mkfifo), r"has no saten_edge\.json|regular"
    ),
    refused(
        "R2", "a graph that is missing", instead("model.onnx", lambda path: None), r"model\.onnx: is no regular file"
    ),
    refused("R3", "a sparse initializer", onnx(model(graph(rest=bytes_field(15, b"")))), "holds a sparse initializer"),
    refused(
        "R3",
        "a sparse value",
        onnx(model(graph([LOOKUP, node("Constant", [], "c", bytes_field(1, "sparse_value") + bytes_field(22, b""))]))),
        "holds a sparse tensor",
    ),
    refused("R4", "a foreign domain", onnx(model(graph([node("X", [], "y", domain="evil")]))), "of the domain 'evil'"),
    refused(
        "R4",
        "a foreign domain in a subgraph",
        onnx(model(graph([node("If", ["x"], "y", bytes_field(6, graph([node("X", [], "y", domain="evil")], [])))]))),
        "of the domain 'evil'",
    ),
    refused(
        "R4",
        "a foreign domain in a function",
        onnx(model(rest=function("f", node("X", [], "y", domain="evil")))),
        "of the domain 'evil'",
    ),
    Case(
        "R5",
        "an operator that is not there",
        onnx(model(graph([node("Strange", ["input_ids"], "last_hidden_state")]))),
        predict,
        "RuntimeMismatch",
        r"model\.onnx: .*Strange",
    ),
    Case(
        "R5",
        "a kernel that is not there",
        onnx(model(graph([node("Unheard", ["input_ids"], "last_hidden_state", domain="saten")]))),
        predict,
        "BundleError|RuntimeMismatch",
        r"model\.onnx: .*(Unheard|saten)",
    ),
    Case(
        "R5",
        "the opset after next",
        lambda place: (onnx(model(opset=99))(place), _edit(place, opset=99)),
        predict,
        "RuntimeMismatch",
        r"model\.onnx: .*opset",
    ),
    Case(
        "R5",
        "an IR version to come",
        lambda place: (onnx(model(ir_version=99))(place), _edit(place, ir_version=99)),
        predict,
        "RuntimeMismatch",
        r"model\.onnx: .*IR version",
    ),
    Case(
        "R5",
        "an ONNX Runtime to come",
        manifest(smallest_onnxruntime="99.0"),
        predict,
        "RuntimeMismatch",
        r"needs onnxruntime 99\.0 or newer",
    ),
    refused("R5", "an ONNX Runtime of no number", manifest(smallest_onnxruntime="new"), "onnxruntime version 'new'"),
    Case("R6", "an Expand bomb", onnx(EXPAND), predict, "BundleError|UsageError", r"model\.onnx|lookup: run"),
    Case("R6", "a Range bomb", onnx(RANGE), predict, "BundleError|UsageError", r"model\.onnx|lookup: run"),
    refused(
        "R6", "a function that calls itself", onnx(model(graph([CALL, LOOKUP]), function("f", CALL))), "call themselves"
    ),
    refused(
        "R6",
        "functions without end",
        onnx(model(graph([node("f0", ["table"], "t", domain="saten"), LOOKUP]), CHAIN)),
        r"grows to \d+ nodes",
    ),
    refused("R6", "graphs in graphs", onnx(nested(40)), "nests graphs more than 32 deep"),
    refused(
        "R6",
        "a shape of 10^5 axes",
        onnx(model(graph(initializers=[packed(1, [2] * 100_000) + varint_field(2, 1) + bytes_field(8, "table")]))),
        "tensor 'table' has 100000 axes",
    ),
    refused(
        "R6",
        "a dim of four million bytes",
        onnx(model(graph(initializers=[bytes_field(1, b"\xff" * (4 * MEBIBYTE)) + bytes_field(8, "table")]))),
        r"model\.onnx: is not a sound ONNX file \(a number .* is longer than 10 bytes\)",
    ),
    refused("R6", "training", onnx(model(rest=bytes_field(20, b""))), "holds training information"),
    Case(
        "R7",
        "an input that the graph does not have",
        manifest(inputs=["token_type_ids"]),
        predict,
        "UsageError|BundleError",
        "lookup: run|token_type_ids|input",
    ),
    Case(
        "R7",
        "an output that the graph does not have",
        manifest(outputs=["logits"]),
        predict,
        "UsageError|BundleError|InvalidRun",
        "lookup: run|logits",
    ),
    *(
        Case(
            "R8",
            f"weights of {label}",
            onnx(table(np.full((len(WORDS), WIDTH), value))),
            predict,
            "InvalidRun",
            "bundle: output 'last_hidden_state' holds NaN or infinity",
            code=4,
        )
        for label, value in {"NaN": np.nan, "infinity": np.inf}.items()
    ),
]


def _edit(place: Place, **changes: Any) -> None:
    """Other values in the manifest, unsealed."""
    path = place.folder / "bundle" / "saten_edge.json"
    values = {**json.loads(path.read_text()), **changes}
    values.pop("seal", None)
    path.write_text(json.dumps(values))


CASES = GRAPHS
