"""torch model → verified bundle on disk."""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from saten_exporters.card import model_card
from saten_exporters.forms import DOMAIN
from saten_exporters.parts import Exportable
from saten_exporters.passes import DENSE_PASSES, run_passes
from saten_exporters.targets import TARGETS, Target
from saten_exporters.trace import sample_inputs, trace
from saten_runtime.bundle import Bundle
from saten_runtime.errors import ExportError, UsageError
from saten_runtime.files import new_folder, sha256_file, write_json
from saten_runtime.manifest import MANIFEST_FILE, SCHEMA_VERSION, FileEntry, Layer, Manifest, Tokenizer, sealed
from saten_runtime.parity import Comparison, check_parity, write_case

__all__ = ["PRECISIONS", "export", "rounding_bound"]

PRECISIONS = tuple(DENSE_PASSES)
TASK = "feature-extraction"

# (tokens, padded length) of each row: batches of 1, 2 and 3, short and long, with and without padding
CASES = {
    "single": [(1, 1)],
    "short": [(7, 7)],
    "padded": [(16, 16), (5, 16)],
    "ragged": [(33, 33), (2, 33), (20, 33)],
}

# Large weights start where Windows, too, can map a file into memory; padding small ones would waste more than it gives.
ALIGNMENT_BYTES = 64 * 1024
ALIGNED_FROM_BYTES = 1024 * 1024


def export(
    source: Exportable,
    out: Path,
    *,
    name: str | None = None,
    precision: str = "fp32",
    target: str = "cpu",
    overwrite: bool = False,
) -> Bundle:
    """Trace, lower, quantize, write and verify; the bundle appears at `out` complete or not at all.

    name: what results are reported under; the folder's own name by default.

    Raises:
        UsageError: `out` exists, or there is no such precision or target.
        ExportError: the model cannot be expressed.
        ParityError: ONNX Runtime's outputs differ from torch's beyond the bound.
    """
    _known("precision", precision, PRECISIONS)
    _known("target", target, TARGETS)
    row = TARGETS[target]
    with new_folder(out, overwrite=overwrite) as folder:
        exported = trace(source, row)
        layers = run_passes(exported.program, source.layer_parts(), precision)
        _save_graph(exported, folder, row)
        tokenizer = _save_tokenizer(source, folder)
        graph = exported.program.graph
        _write_cases(source, folder, [value.name for value in graph.outputs])
        manifest = _manifest(source, name or out.name, precision, row, graph, layers, tokenizer)
        _write_manifest(folder, manifest)
        comparisons = check_parity(Bundle.open(folder))
        _write_reports(folder, manifest, comparisons)
    return Bundle.open(out)


def rounding_bound(graph: ir.Graph) -> float:
    """Relative difference that rounding alone may cause between two float32 evaluations of `graph`.

    A product of length k rounded at every step has relative error of about √k · u, u = eps / 2 (Higham & Mary,
    "A New Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41(5), 2019); n products
    one after the other add up to n √k u. n is the number of products in the graph, k the longest of them.
    """
    products = [node for node in graph if node.op_type == "MatMul" or node.domain == DOMAIN]
    weights = [
        value.const_value
        for node in products
        if "Embedding" not in node.op_type
        for value in node.inputs
        if value is not None and value.const_value is not None
    ]
    longest = max((max(weight.shape.numpy()) for weight in weights if len(weight.shape) == 2), default=1)
    return len(products) * math.sqrt(longest) * float(np.finfo(np.float32).eps) / 2


def _known(what: str, value: str, known: Any) -> None:
    if value not in known:
        raise UsageError(f"--{what} {value}: there are {', '.join(known)}")


def _save_graph(exported: Any, folder: Path, target: Target) -> None:
    """model.onnx, model.onnx.data, export.json and config.json, as transformers lays them out."""
    exported.program.ir_version = target.ir_version
    exported.program.producer_name, exported.program.producer_version = "saten-edge", version("saten-edge")
    exported.save_pretrained(folder)
    ir.save(
        exported.program,
        folder / "model.onnx",
        external_data="model.onnx.data",
        alignment=ALIGNMENT_BYTES,
        align_threshold=ALIGNED_FROM_BYTES,
    )


def _save_tokenizer(source: Exportable, folder: Path) -> Tokenizer:
    backend = getattr(source.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(
            f"{source.source['model']}: {type(source.tokenizer).__name__} has no `tokenizers` form; "
            "use a fast tokenizer"
        )
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer("tokenizer.json", int(source.tokenizer.pad_token_id or 0), source.max_length)


def _write_cases(source: Exportable, folder: Path, outputs: list[str]) -> None:
    """What torch computes for each of `CASES`."""
    for case, lengths in CASES.items():
        cut = [(min(tokens, source.max_length), min(padded, source.max_length)) for tokens, padded in lengths]
        inputs = sample_inputs(source, cut)
        with torch.no_grad():
            results = source.model(**inputs)
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        write_case(folder, case, {**arrays, **{name: results[name].numpy() for name in outputs}})


def _manifest(
    source: Exportable,
    name: str,
    precision: str,
    target: Target,
    graph: ir.Graph,
    layers: list[Layer],
    tokenizer: Tokenizer,
) -> Manifest:
    packages = ("saten-edge", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime")
    return Manifest(
        schema_version=SCHEMA_VERSION,
        made_by={package: version(package) for package in packages},
        name=name,
        source=source.source,
        task=TASK,
        precision=precision,
        opset=target.opset,
        ir_version=target.ir_version,
        smallest_onnxruntime=target.smallest_onnxruntime,
        inputs=[value.name or "" for value in graph.inputs],
        outputs=[value.name or "" for value in graph.outputs],
        tokenizer=tokenizer,
        postprocess=source.postprocess,
        tolerance={"relative": rounding_bound(graph)} if precision == "fp32" else {},
        layers=layers,
    )


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put size and sha256 of every file of the bundle into its manifest, and write that."""
    manifest.files.clear()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST_FILE:
            manifest.files[path.relative_to(folder).as_posix()] = FileEntry(path.stat().st_size, sha256_file(path))
    write_json(folder / MANIFEST_FILE, sealed(manifest))


def _write_reports(folder: Path, manifest: Manifest, comparisons: list[Comparison]) -> None:
    rows = [comparison.to_json() for comparison in comparisons]
    write_json(folder / "validation" / "report.json", {"comparisons": rows})
    (folder / "README.md").write_text(model_card(manifest, comparisons), encoding="utf-8")
    _write_manifest(folder, manifest)
