"""What trimming changed, on texts: their pieces, and what the model says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saten_edge.checkpoints.models import LoadedModel
from saten_edge.console import Advance
from saten_runtime.vocabulary.tasks import HUB_TASKS

__all__ = ["compare_outputs", "compare_pieces", "count", "pieces_of"]

TEXTS_AT_ONCE = 1024
# Texts whose outputs are compared, and the tokens that are read of each.
COMPARED, MOST_TOKENS = 256, 512


def pieces_of(loaded: LoadedModel, texts: Sequence[str]) -> Iterator[list[list[int]]]:
    """The ids of texts behind the default prompt, uncut and without special tokens, so many texts at once."""
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        prompted = [loaded.prompt + text for text in texts[start : start + TEXTS_AT_ONCE]]
        yield loaded.tokenizer(prompted, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


def count(loaded: LoadedModel, texts: Sequence[str], rows: int, advance: Advance) -> np.ndarray:
    """How often each of `rows` ids is used, (rows,) int64."""
    counts, done = np.zeros(rows, np.int64), 0
    for rows_of_ids in pieces_of(loaded, texts):
        counts += np.bincount(np.concatenate([np.asarray(ids, np.int64) for ids in rows_of_ids]), minlength=rows)
        done += len(rows_of_ids)
        advance(done, len(texts), f"{done} texts read")
    return counts


def compare_pieces(
    before: LoadedModel, after: LoadedModel, texts: Sequence[str], numbers: np.ndarray, advance: Advance
) -> tuple[dict[str, Any], np.ndarray]:
    """How texts are split by both, as JSON, and which texts keep their pieces, (texts,) bool.

    numbers: the new id of each old one, -1 of one that is gone.
    """
    same, pieces, unknown = [], np.zeros(2, np.int64), np.zeros(2, np.int64)
    for rows in zip(pieces_of(before, texts), pieces_of(after, texts), strict=True):
        for old, new in zip(*rows, strict=True):
            same.append(np.array_equal(numbers[np.asarray(old, np.int64)], new))
            pieces += len(old), len(new)
            unknown += old.count(before.tokenizer.unk_token_id), new.count(after.tokenizer.unk_token_id)
        advance(len(same), len(texts), f"{len(same)} texts split")
    kept = np.array(same)
    found = {
        "texts": len(texts),
        "unchanged": float(kept.mean()),
        "pieces_per_text": [round(float(total) / len(texts), 4) for total in pieces],
        "unknown_pieces": [int(total) for total in unknown],
    }
    return found, kept


def compare_outputs(
    before: LoadedModel, after: LoadedModel, texts: Sequence[str], kept: np.ndarray, advance: Advance
) -> dict[str, Any]:
    """The relative change ‖b − a‖ / ‖a‖ of what both say of each of `COMPARED` texts at most, as JSON.

    That is a classification's logits, an embedding, or else the mean of the last block's outputs. kept: texts that keep
    their pieces, whose outputs are the same numbers. For that each text is read alone, and weights lie in memory of
    their own: in products of another shape, or of numbers at another address, sums may be rounded otherwise.
    """
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(COMPARED, len(texts))).astype(int))
    for loaded in (before, after):
        for parameter in loaded.model.parameters():
            parameter.data = parameter.data.clone()
    changes = []
    for done, k in enumerate(chosen):
        advance(done, len(chosen), "outputs compared")
        first, second = (_said(loaded, texts[k]) for loaded in (before, after))
        changes.append(float((second - first).norm() / first.norm().clamp(min=1e-30)))
    found, same = np.array(changes), kept[chosen]
    return {
        "of": _compared(before.task),
        "texts": len(chosen),
        "largest_change": float(found.max()),
        "mean_change": float(found.mean()),
        "texts_unchanged": int(same.sum()),
        "largest_change_of_these": float(found[same].max(initial=0.0)),
    }


def _compared(task: str) -> str:
    row = HUB_TASKS[task]
    return "logits" if row.per_item else "embeddings" if row.pooled else "means of the last block's outputs"


@torch.no_grad()
def _said(loaded: LoadedModel, text: str) -> Tensor:
    """What is compared of a text: a vector, double."""
    inputs = loaded.encode([text], MOST_TOKENS)
    if HUB_TASKS[loaded.task].per_item:
        logits: Tensor = loaded.model(**inputs).logits
        return logits[0].double()
    hidden: Tensor = loaded.model.base_model(**inputs).last_hidden_state
    pooled = loaded.pool(hidden, inputs["attention_mask"]) if HUB_TASKS[loaded.task].pooled else hidden.mean(1)
    return pooled[0].double()
