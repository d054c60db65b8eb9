"""torch model → ONNX graph, with one placeholder node per compressed layer and no weight of its."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir
import torch

from saten_exporters.choice.targets import Target
from saten_exporters.exportable import Exportable
from saten_exporters.tracing.attention import placeholders
from saten_exporters.tracing.signatures import kind_of, task_of
from saten_runtime.errors import ExportError
from saten_runtime.records.plain_text import one_line

__all__ = ["forget_graphs", "name_axes", "trace"]

LARGEST_BATCH = 4096


def trace(source: Exportable, target: Target) -> Any:
    """Export through `transformers.exporters`, dynamic in batch and tokens.

    A decoder becomes one graph that reads new tokens after any number of earlier ones, none included. Returns a
    `transformers.exporters.ExportedModel` whose `.program` is an `onnx_ir.Model` with named axes.

    Raises:
        ExportError: torch or transformers cannot express the model as ONNX, or the graph lost an input or an output.
    """
    from transformers.exporters import OnnxConfig, OnnxExporter

    kind = kind_of(source)
    inputs = kind.sample(source)
    config = OnnxConfig(
        dynamic=True,
        dynamic_shapes={name: _dynamic(source, kind.axes(name), value) for name, value in inputs.items()},
        # A cache of every length makes torch prove inequalities of sums; the comparison with torch shows them instead.
        prefer_deferred_runtime_asserts_over_guards=kind.cached,
        opset_version=target.opset,
        ort_fusions="cpu",
    )
    if not kind.cached and hasattr(source.model.config, "use_cache"):
        inputs["use_cache"] = False
    where = f"{source.source['model']}: {source.source['architecture']}"
    try:
        with _quiet(), placeholders(source.model, cached=kind.cached):
            exported = OnnxExporter().export(source.model, inputs, config=config)
    except Exception as cause:
        reason = one_line(cause, 300)
        raise ExportError(f"{where} cannot be traced to ONNX ({reason})") from cause
    graph = exported.program.graph
    _refuse_lost(where, "input", {name for name in inputs if name != "use_cache"}, graph.inputs)
    _refuse_lost(where, "output", set(task_of(source).outputs), graph.outputs)
    name_axes(graph, {value.name or "": kind.axes(value.name or "") for value in graph.inputs})
    return exported


def forget_graphs() -> None:
    """Free the weights of graphs that are no longer used.

    The tracer's rewriting rules live as long as the process; each keeps what it last looked at, and so its graph.
    """
    from onnxscript.rewriter._matcher import SimplePatternMatcher

    for matcher in gc.get_objects():
        if type(matcher) is SimplePatternMatcher:
            vars(matcher).update(dict.fromkeys(vars(matcher).keys() - {"pattern"}))
    gc.collect()


def _dynamic(source: Exportable, axes: Mapping[int, str], value: Any) -> Any:
    """Bounds of an input's dynamic axes; of a cache, for each of its tensors."""
    from torch.export import Dim

    bounds = {
        "batch": Dim("batch", min=1, max=LARGEST_BATCH),
        "sequence": Dim("sequence", min=1, max=source.max_length),
        "past_sequence": Dim("past_sequence", min=0, max=source.max_length),
    }
    own = {axis: bounds.get(name, Dim.AUTO) for axis, name in axes.items()}
    return own if isinstance(value, torch.Tensor) else [own, own] * len(value.layers)


def _refuse_lost(where: str, what: str, wanted: set[str], values: Any) -> None:
    """Refuse a graph without something the model has; of a cache, one tensor stands for all."""
    names = [value.name for value in values]
    if lost := sorted(each for each in wanted if not any(each in name.split(".") for name in names)):
        raise ExportError(f"{where}: its graph has no {what} {lost[0]!r}; found {', '.join(names[:4])}")


def name_axes(graph: ir.Graph, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Rename the tracer's symbols (s44, s70 …) in the shapes of all values, by what they are on the inputs.

    Raises:
        ExportError: an axis that was to be dynamic was traced as a number.
    """
    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, name in axes[value.name or ""].items():
            dim = value.shape[axis] if value.shape is not None else None
            if not isinstance(dim, ir.SymbolicDim):
                raise ExportError(f"axis {name} of {value.name} was traced as {dim}, so the graph has no other")
            names[str(dim)] = name
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape(
                [_renamed(str(dim), names) if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape]
            )


def _renamed(expression: str, names: Mapping[str, str]) -> str:
    return re.sub(r"\w+", lambda match: names.get(match[0], match[0]), expression)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's progress lines off stdout, which is for data, and its advice off stderr."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
