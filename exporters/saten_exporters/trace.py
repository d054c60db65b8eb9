"""torch model → ONNX graph, with one placeholder node per compressed layer and no weight of its."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from saten_exporters.parts import Exportable
from saten_exporters.targets import Target
from saten_runtime.errors import ExportError

__all__ = ["sample_inputs", "trace"]


def trace(source: Exportable, target: Target) -> Any:
    """Export through `transformers.exporters`, dynamic in batch and sequence.

    Returns a `transformers.exporters.ExportedModel` whose `.program` is an `onnx_ir.Model`.

    Raises:
        ExportError: torch or transformers cannot express the model as ONNX.
    """
    from torch.export import Dim
    from transformers.exporters import OnnxConfig, OnnxExporter

    inputs = sample_inputs(source, [(2, 16), (2, 16)])
    axes = {0: Dim("batch", min=1, max=4096), 1: Dim("sequence", min=1, max=source.max_length)}
    config = OnnxConfig(
        dynamic=True, dynamic_shapes=dict.fromkeys(inputs, axes), opset_version=target.opset, ort_fusions="cpu"
    )
    try:
        with _quiet():
            return OnnxExporter().export(source.model, inputs, config=config)
    except Exception as cause:
        reason = " ".join(str(cause).split())[:300]
        raise ExportError(
            f"{source.source['model']}: {source.source['architecture']} cannot be traced to ONNX ({reason})"
        ) from cause


def sample_inputs(source: Exportable, lengths: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Model inputs of random ids (seeded), one row for each (first, last) of `lengths`.

    A row's text is `first` tokens long and padded to the longest; a mask without padding would be traced
    away by some models, so `lengths` ought to differ or leave room: (2, 16) is 2 tokens padded to 16.
    """
    longest = max(padded for _, padded in lengths)
    generator = torch.Generator().manual_seed(len(lengths) * 1009 + longest)
    vocabulary = int(source.model.config.vocab_size)
    ids = torch.randint(0, vocabulary, (len(lengths), longest), generator=generator)
    mask = torch.zeros_like(ids)
    for row, (length, _) in enumerate(lengths):
        mask[row, :length] = 1
    ids = torch.where(mask.bool(), ids, int(source.tokenizer.pad_token_id or 0))
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: known[name] for name in source.tokenizer.model_input_names if name in known}


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
