"""A model's metrics on data that only judges."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from saten_edge.checkpoints.models import LoadedModel
from saten_edge.training.data import Examples, checked, collator, encode
from saten_edge.training.heads import output_layer, outputs
from saten_edge.training.losses import Sides
from saten_edge.training.objectives import Training
from saten_edge.training.pooling import pooling_of
from saten_edge.training.spans import NOTE
from saten_runtime.vocabulary.tasks import TEXT_GENERATION

__all__ = ["judge"]

# A decoder's states after every block are there at once; its logits are not.
BATCH, DECODER_BATCH = 64, 8


def judge(
    training: Training, student: LoadedModel, teacher: LoadedModel | None, examples: Examples, max_length: int | None
) -> dict[str, Any]:
    """The task's metrics of a student in evaluation mode, in float32, and the number of examples.

    Texts of one length are read together, so that none is padded: what rounds activations (`saten_edge.training
    .rounding`) would see the padding, which a device that gets a text alone does not.

    Raises:
        DataError: labels that do not fit the model's head.
    """
    labelled, _ = checked(training, examples, student.model.config.num_labels)
    rows = encode(student, labelled, labelled.labels, max_length, noted=True)
    rows.sort(key=_length)  # no metric knows an order
    collate, device = collator(student, labelled), student.model.device
    student.model.eval()
    found = []
    chunked = training.task == TEXT_GENERATION
    size, seen = DECODER_BATCH if chunked else BATCH, teacher if training.label_loss is None else None
    with torch.no_grad():
        for chosen in _of_one_length(rows, size):
            batch = {name: tensor.to(device) for name, tensor in collate(chosen).items()}
            sides = _sides(student, seen, batch, chunked=chunked)
            parts = training.judged(replace(sides, notes=[row.get(NOTE) for row in chosen]))
            found.append([part.reshape(-1, *part.shape[1:]).cpu() for part in parts])
    arrays = (torch.cat(part).double().numpy() for part in zip(*found, strict=True))
    return {**training.metrics(*arrays), "examples": len(labelled.inputs)}


def _length(row: dict[str, Any]) -> int:
    return len(row.get("input_ids", ()))


def _of_one_length(rows: Sequence[dict[str, Any]], most: int) -> Iterator[list[dict[str, Any]]]:
    """Rows in batches; those of a length follow each other."""
    for _, group in itertools.groupby(rows, key=_length):
        same = list(group)
        yield from (same[start : start + most] for start in range(0, len(same), most))


def _sides(student: LoadedModel, teacher: LoadedModel | None, batch: dict[str, Any], *, chunked: bool) -> Sides:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    got = outputs(student.model, inputs, hidden=teacher is not None, chunked=chunked)
    heads = (output_layer(student.model, student.model.device),) if chunked else ()
    if teacher is None:
        return Sides(batch, got, heads=heads)
    wanted = outputs(teacher.model, inputs, hidden=True, chunked=False)
    return Sides(batch, got, wanted, (pooling_of(student), pooling_of(teacher)))
