"""Examples whose labels belong to tokens: words with a label each, and questions whose answers stand in a context.

Their texts become tokens as on a device, see `saten_runtime.run.text.Encoder.windows`; of words, what does not fit is
cut, and a context that does not fit is read in windows that overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from saten_edge.checkpoints.models import LoadedModel
from saten_edge.training.losses import IGNORED
from saten_runtime.accuracy.data import CSV_LISTS
from saten_runtime.errors import DataError
from saten_runtime.run.text import Spans, refuse_long, spans_of, stride_of
from saten_runtime.vocabulary.tasks import QUESTION_ANSWERING, TOKEN_CLASSIFICATION

__all__ = ["ENCODERS", "NOTE", "Asked", "Tagged", "answers_in", "count_long", "list_in"]

Row = dict[str, Any]
NOTE = "note"
"""The entry of an encoded example that is for the judge alone: `Tagged` or `Asked`."""

_NOWHERE = (0, 0)  # start and end of an answer that a window does not hold: its first token, as BERT's authors have it


@dataclass(frozen=True)
class Tagged:
    """The labels of an example's words, where their first tokens stand, and what the model calls its classes."""

    wanted: list[str]
    spans: Spans
    names: Sequence[str]


@dataclass(frozen=True)
class Asked:
    """One window of example `number`, and the answers that are right."""

    number: int
    context: str
    spans: Spans
    answers: list[str]


def list_in(where: str, value: Any) -> list[Any]:
    """The items of a list, which a CSV file keeps in one cell.

    Raises:
        DataError: it is no list.
    """
    items = value.split(CSV_LISTS) if isinstance(value, str) else value
    if not isinstance(items, list):
        raise DataError(f"{where}: found {value!r:.60}, expected a list, or in CSV its items with {CSV_LISTS} between")
    return items


def answers_in(where: str, context: str, value: Any) -> list[tuple[str, int]]:
    """The answers in a context, each with its first character; a text alone is looked for.

    value: texts, or `{"text": [...], "answer_start": [...]}` as SQuAD has it.

    Raises:
        DataError: there is none, or one does not stand where it should.
    """
    given = value if isinstance(value, dict) else {"text": list_in(where, value)}
    texts = given.get("text") or []
    starts = given.get("answer_start") or [context.find(text) for text in texts if isinstance(text, str)]
    if not texts or len(texts) != len(starts):
        raise DataError(f"{where}: has no answer; expected one at least, which stands in the context")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(start, int) or start < 0 or context[start : start + len(text)] != text:
            raise DataError(f"{where}: the answer {text!r:.60} does not stand in the context")
    return list(zip(texts, starts, strict=True))


def count_long(loaded: LoadedModel, items: Sequence[Any], cut: int) -> int:
    """How many examples of words are cut; contexts are not."""
    if loaded.task != TOKEN_CLASSIFICATION.hub:
        return 0
    return sum(len(rows) > 1 for rows in _windows(loaded, [words for (words,) in items], cut))


def _encode_words(
    loaded: LoadedModel, items: Sequence[Any], labels: Sequence[Any] | None, cut: int, noted: bool
) -> list[Row]:
    """A row for each example; the first token of a word has its label, and all others have none."""
    names = [str(name) for _, name in sorted(loaded.model.config.id2label.items())]
    rows = []
    for number, (spans, *_) in enumerate(_windows(loaded, [words for (words,) in items], cut)):
        row = _inputs(loaded, spans)
        if labels is not None:
            own, first = np.asarray(labels[number]), _first_tokens(spans)
            row["labels"] = np.where(first, own[spans.words], IGNORED).tolist()
            if noted:
                row[NOTE] = Tagged([names[label] for label in labels[number]], spans, names)
        rows.append(row)
    return rows


def _first_tokens(spans: Spans) -> Any:
    """(tokens,) bool: whether a token begins a word."""
    return (spans.words >= 0) & (spans.words != np.concatenate([[-1], spans.words[:-1]]))


def _encode_questions(
    loaded: LoadedModel, items: Sequence[Any], labels: Sequence[Any] | None, cut: int, noted: bool
) -> list[Row]:
    """A row for each window of each example; its label is where the first of the answers begins and ends."""
    rows = []
    for number, windows in enumerate(_windows(loaded, list(items), cut, stride_of(cut))):
        for spans in windows:
            row = _inputs(loaded, spans)
            if labels is not None:
                text, start = labels[number][0]
                row["labels"] = _place(spans, start, start + len(text))
                if noted:
                    row[NOTE] = Asked(number, items[number][1], spans, [text for text, _ in labels[number]])
            rows.append(row)
    return rows


def _place(spans: Spans, start: int, end: int) -> tuple[int, int]:
    """The first and the last token of characters [start, end) of the context."""
    places = np.flatnonzero(spans.parts == 1)
    starts, ends = spans.offsets[places].T
    touched = places[(ends > start) & (starts < end)]
    if not len(touched) or starts[0] > start or ends[-1] < end:
        return _NOWHERE
    return int(touched[0]), int(touched[-1])


def _windows(loaded: LoadedModel, items: list[Any], cut: int, stride: int | None = None) -> list[list[Spans]]:
    """The tokens of each item, with where they stand; more than one window where they do not fit `cut`."""
    tokenizer = Tokenizer.from_str(loaded.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = bool(getattr(loaded.tokenizer, "split_special_tokens", False))
    how: dict[str, Any] = {"direction": loaded.tokenizer.truncation_side}
    if stride is not None:
        refuse_long(tokenizer, [question for question, _ in items], cut, stride, loaded.source["model"])
        how |= {"strategy": "only_second", "stride": stride}
    tokenizer.enable_truncation(cut, **how)
    encodings = tokenizer.encode_batch(items, is_pretokenized=stride is None)
    return [[spans_of(window) for window in (encoding, *encoding.overflowing)] for encoding in encodings]


def _inputs(loaded: LoadedModel, spans: Spans) -> Row:
    arrays = {"input_ids": spans.ids, "token_type_ids": spans.types, "attention_mask": np.ones_like(spans.ids)}
    return {name: array.tolist() for name, array in arrays.items() if name in loaded.tokenizer.model_input_names}


Encoder = Callable[[LoadedModel, Sequence[Any], "Sequence[Any] | None", int, bool], list[Row]]
# task → rows of (model, inputs of the examples, labels, most tokens, whether a judge reads them)
ENCODERS: dict[str, Encoder] = {
    TOKEN_CLASSIFICATION.hub: _encode_words,
    QUESTION_ANSWERING.hub: _encode_questions,
}
