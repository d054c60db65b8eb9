"""Four bundles of a six-layer encoder with the numbers a two-core machine gives, all made up."""

import copy
import json
from pathlib import Path

import pytest

from saten_edge.reports import build_report, html_page
from saten_exporters.forms import DENSE_FORMS, RESIDUAL_FORMS, TRAIN_FORMS, sum_of
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import FileEntry, Layer, Manifest, Postprocess, Tokenizer

LINEARS = {
    "attention.self.query": (384, 384),
    "attention.self.key": (384, 384),
    "attention.self.value": (384, 384),
    "attention.output.dense": (384, 384),
    "intermediate.dense": (1536, 384),
    "output.dense": (384, 1536),
}
# bundle: precision, share of a linear's and of the embedding's dense fp32 bytes that is kept
KEPT = {
    "dense-fp32": ("fp32", 1.0, 1.0),
    "dense-int8": ("int8", 0.254, 0.258),
    "saten-fp32": ("fp32", 0.262, 0.241),
    "saten-int8": ("int8", 0.0711, 0.0648),
}
# bundle: p50 at 32 and at 128 tokens in ms, cold load in ms, peak and loaded anonymous MiB, metrics
MEASURED = {
    "dense-fp32": (5.134, 21.31, 312.4, 176.3, 151.2, (0.6121, 0.8712, 0.6987, 1.0)),
    "dense-int8": (2.418, 9.827, 171.6, 91.85, 74.31, (0.6094, 0.8689, 0.6961, 0.9978)),
    "saten-fp32": (2.906, 11.19, 158.2, 84.12, 66.74, (0.5713, 0.8424, 0.6601, 0.9531)),
    "saten-int8": (2.217, 9.142, 121.9, 58.47, 44.05, (0.5664, 0.8381, 0.6548, 0.9502)),
}
INTERPRETER_MIB = 28.5


def _layer(name, shape, precision, kept):
    rows, width = shape
    dense = 4 * rows * width
    compressed = kept != 1.0 and not (precision == "int8" and kept > 0.2)
    kind = "embedding" if name.endswith("embeddings") else "linear"
    return Layer(
        name=name,
        kind=kind,
        form=_form(kind, precision, compressed),
        shape=[rows, width],
        ranks=[24, 64, 24] if compressed else [],
        nnz=rows * width // 10 if compressed else 0,
        bytes=round(dense * kept),
        dense_fp32_bytes=dense,
        macs_per_row=0 if kind == "embedding" else round(rows * width * min(1.0, 1.2 * kept)),
    )


def _form(kind, precision, compressed):
    """A name of the exporter's own."""
    if not compressed:
        return DENSE_FORMS[kind, precision].op_type
    layout = "grouped" if kind == "linear" else "rows"
    return sum_of(TRAIN_FORMS[kind, precision], RESIDUAL_FORMS[layout, kind, precision]).op_type


def make_bundle(name, precision="fp32", linear=1.0, embedding=1.0):
    layers = [_layer("embeddings.word_embeddings", (30522, 384), precision, embedding)]
    for number in range(6):
        layers += [
            _layer(f"encoder.layer.{number}.{tail}", shape, precision, linear) for tail, shape in LINEARS.items()
        ]
    files = {
        "model.onnx": FileEntry(213_804, "ab" * 32),
        "model.onnx.data": FileEntry(sum(layer.bytes for layer in layers) + 841_728, "cd" * 32),
        "tokenizer.json": FileEntry(711_661, "ef" * 32),
    }
    manifest = Manifest(
        schema_version=1,
        made_by={"saten-edge": "0.1.0"},
        name=name,
        source={"model": "all-MiniLM-L6-v2"},
        task="embedding",
        precision=precision,
        opset=20,
        ir_version=10,
        smallest_onnxruntime="1.28",
        inputs=["input_ids", "attention_mask"],
        outputs=["last_hidden_state"],
        tokenizer=Tokenizer("tokenizer.json", 0, 256),
        postprocess=Postprocess("mean", True),
        tolerance={"max_abs": 1e-4},
        layers=layers,
        files=files,
    )
    return Bundle(Path("bundles") / name, manifest)


def _cell(bundle, tokens, p50, dense):
    quotient = p50 / dense
    ratio = {"to": "dense-fp32", "value": quotient, "low": quotient * 0.985, "high": quotient * 1.017}
    return {
        "bundle": bundle,
        "threads": 1,
        "batch": 1,
        "tokens": tokens,
        "memory_mode": "fast",
        "count": 412 if tokens == 32 else 128,
        "p50_ms": p50,
        "p90_ms": p50 * 1.083,
        "p99_ms": p50 * 1.274,
        "mean_ms": p50 * 1.021,
        "ratio": None if bundle == "dense-fp32" else ratio,
        "failed": None,
    }


def _load(bundle, cold, peak, loaded):
    files = make_bundle(bundle, *KEPT[bundle]).manifest.files

    def point(anon):
        return {
            "rss_anon_bytes": round(anon * 2**20),
            "rss_file_bytes": 41_000_000,
            "pss_bytes": round(anon * 2**20) + 39_000_000,
            "hwm_bytes": round(anon * 2**20) + 41_000_000,
        }

    return {
        "bundle": bundle,
        "threads": 1,
        "memory_mode": "fast",
        "cold_load_ms": cold,
        "session_ms": cold * 0.81,
        "first_run_ms": cold * 0.11,
        "memory": {
            "base": point(INTERPRETER_MIB),
            "loaded": point(loaded),
            "steady": point(peak * 0.97),
            "peak_anon_bytes": round(peak * 2**20),
            "peak_rss_bytes": round(peak * 2**20) + 41_000_000,
            "interpreter_anon_bytes": round(INTERPRETER_MIB * 2**20),
        },
        "disk_bytes": {name: entry.bytes for name, entry in files.items()},
    }


@pytest.fixture
def bundles():
    return [make_bundle(name, *kept) for name, kept in KEPT.items()]


@pytest.fixture
def bundle():
    """Makes a bundle of another name."""
    return make_bundle


def make_bench():
    dense = MEASURED["dense-fp32"]
    cells = [
        _cell(name, tokens, values[index], dense[index])
        for index, tokens in enumerate((32, 128))
        for name, values in MEASURED.items()
    ]
    environment = {
        "cpu": {"model": "Intel Xeon Processor @ 2.60GHz", "flags": ["avx2", "fma", "avx512f", "avx512_vnni"]},
        "cores": 2,
        "governor": None,
        "frequency_mhz": {"before": 2600, "after": 2600},
        "versions": {"python": "3.11.7", "onnxruntime": "1.31.1", "numpy": "2.4.6", "saten-runtime": "0.1.0"},
    }
    loads = [_load(name, *values[2:5]) for name, values in MEASURED.items()]
    verdict = {"valid": True, "reasons": []}
    return copy.deepcopy(
        {"schema_version": 1, "environment": environment, "verdict": verdict, "cells": cells, "loads": loads}
    )


def make_evaluation():
    names = ("recall_at_1", "recall_at_10", "mrr_at_10", "cosine")
    rows = [
        {"bundle": name, "metrics": dict(zip(names, values[5], strict=True)), "seconds": 31.7}
        for name, values in MEASURED.items()
    ]
    data = {"file": "held-out.jsonl", "sha256": "12" * 32, "count": 1204}
    return {"schema_version": 1, "task": "search", "data": data, "rows": rows}


def make_history():
    return [{"step": step, "loss": 0.9 / (1 + step / 40) + 0.04 + 0.01 * (step % 7)} for step in range(0, 400, 5)]


@pytest.fixture
def bench():
    return make_bench()


@pytest.fixture
def evaluation():
    return make_evaluation()


@pytest.fixture
def history():
    return make_history()


@pytest.fixture(scope="session")
def full_page():
    """The HTML of a report in which every picture has its numbers. Drawn once, it takes seconds."""
    bench = make_bench()
    for cell in bench["cells"]:
        cell["quantiles_ms"] = [cell["p50_ms"] * (0.9 + 0.01 * place) for place in range(21)]
        cell["floor"] = {"ms": cell["p50_ms"] / 4, "bound": "compute"}
    for load in bench["loads"]:
        load["memory"]["timeline"] = {
            "times_ms": [0.0, 100.0, 300.0],
            "rss_anon_bytes": [2**20, 2**25, 2**26],
            "rss_file_bytes": [2**20] * 3,
        }
    bundles = [make_bundle(name, *kept) for name, kept in KEPT.items()]
    return html_page(build_report(bundles, bench, make_evaluation(), history=make_history()))


@pytest.fixture
def report(bundles, bench, evaluation, history):
    notes = [
        ("The data", "Docstrings of the standard library and of installed packages.\n\nThe query is a first sentence.")
    ]
    return build_report(bundles, bench, evaluation, notes=notes, history=history)


@pytest.fixture
def write_run(tmp_path, bench):
    """write_run(name, factor) -> the folder of a run whose samples take `factor` times as long."""

    def write(name, factor, *, samples=True):
        folder = tmp_path / name
        folder.mkdir()
        content = copy.deepcopy(bench)
        lines = []
        for cell in content["cells"]:
            cell["p50_ms"] *= factor
            for index in range(10):
                row = {key: cell[key] for key in ("bundle", "threads", "memory_mode", "batch", "tokens")}
                time = round(1e6 * cell["p50_ms"] * (1 + 0.002 * (index % 3)))
                lines.append({"kind": "samples", "schema_version": 1, **row, "round": index, "samples_ns": [time] * 3})
        (folder / "bench.json").write_text(json.dumps(content))
        if samples:
            (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return write
