"""Texts, or seeded random ids, as the arrays a graph takes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import BundleError, UsageError
from saten_runtime.records.plain_text import one_line
from saten_runtime.vocabulary.tasks import PAIRS, PROMPTS

__all__ = ["Encoder", "Feeds", "Ids", "Spans", "Text", "random_feeds", "refuse_long", "spans_of", "stride_of"]

Text = str | tuple[str, str]  # one text, or a pair that the model reads together
Feeds = dict[str, npt.NDArray[Any]]

# An Encoding of `tokenizers` holds offsets and strings too; keeping all of them costs ~100 times the ids.
_TEXTS_AT_ONCE = 512
_OVERLAP = 4  # windows of a long context share one in so many of their tokens


@dataclass(frozen=True)
class Ids:
    """One tokenized text: ids and token types, both (tokens,) int64, no padding.

    cut: whether the text went on behind them.
    """

    ids: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64]
    cut: bool = field(default=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Spans(Ids):
    """Tokens, and where they stand.

    offsets: (tokens, 2) characters of the text; words: (tokens,) index of the word, -1 for special
    tokens; parts: (tokens,) which text of a pair, 0 or 1, -1 for special tokens.
    """

    offsets: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]
    parts: npt.NDArray[np.int64]


class Encoder:
    """The tokenizer of a bundle. Safe to share between threads."""

    def __init__(self, bundle: Bundle) -> None:
        from tokenizers import Tokenizer

        entry = bundle.tokenizer
        try:
            self._tokenizer = Tokenizer.from_file(str(bundle.path / entry.file))
        except Exception as cause:  # `tokenizers` raises plain Exception
            raise BundleError(f"{bundle.path / entry.file}: not a tokenizer ({one_line(cause)})") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = entry.split_special_tokens
        self._cut: dict[str, Any] = {"direction": entry.truncation_side}
        self._stride = stride_of(entry.max_length) if bundle.items == PAIRS else None
        if self._stride is not None:  # the question must be whole
            self._cut |= {"strategy": "only_second", "stride": self._stride}
        if bundle.items != PROMPTS:  # a decoder would continue another prompt than the one that was given
            self._tokenizer.enable_truncation(entry.max_length, **self._cut)
        self._prompt = entry.prompt
        self._pad_id = entry.pad_id
        self._inputs = bundle.manifest.inputs
        self._name, self._longest, self._said = bundle.name, entry.max_length, False
        self._most = entry.max_length

    @property
    def vocabulary(self) -> int:
        """Number of ids: valid ones are 0 … vocabulary - 1."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def longest(self) -> int:
        """Tokens that a text is cut to, or that a decoder takes."""
        return self._longest

    def cut_to(self, tokens: int) -> None:
        """Cut texts to fewer tokens than the bundle takes.

        Raises:
            UsageError: more than it takes, or none.
        """
        if not 0 < tokens <= self._most:
            raise UsageError(f"{self._name}: takes texts of 1 to {self._most} tokens, not {tokens}")
        self._longest = tokens
        self._tokenizer.enable_truncation(tokens, **self._cut)

    def encode(self, texts: Sequence[Text], prompt: str | None = None) -> list[Ids]:
        """Tokenize, behind `prompt` or else the bundle's prompt, with special tokens, cut to the bundle's `max_length`.

        The first cut is logged. What a decoder continues is not cut: it refuses what is too long.
        """
        before = self._prompt if prompt is None else prompt
        return [
            Ids(
                np.array(encoding.ids, np.int64),
                np.array(encoding.type_ids, np.int64),
                cut=bool(encoding.overflowing),
            )
            for part in _parts([_behind(before, text) for text in texts], _TEXTS_AT_ONCE)
            for encoding in self._watched(self._tokenizer.encode_batch(part))
        ]

    def spelled(self, text: str) -> Ids:
        """Tokenize a text that spells its special tokens itself, as a rendered conversation does; nothing is added."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return Ids(np.array(encoding.ids, np.int64), np.array(encoding.type_ids, np.int64))

    def windows(self, texts: Sequence[Text | list[str]]) -> list[list[Spans]]:
        """Tokenize, keeping where tokens stand; a list of strings is a text that was split into words before.

        What does not fit `max_length` is cut, which is logged once, or, for question answering, follows in further
        windows that overlap.

        Raises:
            UsageError: a question that leaves no room for its context.
        """
        split = any(isinstance(text, list) for text in texts)
        try:
            if self._stride is not None:
                refuse_long(self._tokenizer, [text[0] for text in texts], self._longest, self._stride, self._name)
            return [
                [spans_of(window) for window in (encoding, *encoding.overflowing)]
                for part in _parts(texts, _TEXTS_AT_ONCE)
                for encoding in self._watched(self._tokenizer.encode_batch(part, is_pretokenized=split))
            ]
        except UsageError:
            raise
        except Exception as cause:  # `tokenizers` raises plain Exception
            raise UsageError(f"cannot be tokenized ({one_line(cause)}); is the question too long?") from None

    def _watched(self, encodings: list[Any]) -> list[Any]:
        """The encodings; the first time that one of a text was cut, this is said."""
        if self._stride is None and any(encoding.overflowing for encoding in encodings):
            self._say_cut()
        return encodings

    def shortened(self, row: Ids) -> Ids:
        """As many of a text's tokens as fit, the first ones; the first cut is logged."""
        if len(row) <= self._longest:
            return row
        self._say_cut()
        return Ids(row.ids[: self._longest], row.types[: self._longest], cut=True)

    def _say_cut(self) -> None:
        if not self._said:
            self._said = True
            logging.getLogger("saten_runtime").warning(
                f"{self._name}: takes {self._longest} tokens of a text; what is beyond them is cut off, as of one here"
            )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def feeds(self, rows: Sequence[Ids]) -> Feeds:
        """The inputs of the graph, each (len(rows), longest row) int64, padded on the right."""
        width = max(1, *(len(row) for row in rows)) if rows else 1
        shape = (len(rows), width)
        arrays = {
            "input_ids": np.full(shape, self._pad_id, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for index, row in enumerate(rows):
            arrays["input_ids"][index, : len(row)] = row.ids
            arrays["attention_mask"][index, : len(row)] = 1
            arrays["token_type_ids"][index, : len(row)] = row.types
        return _only(arrays, self._inputs)


def random_feeds(inputs: Sequence[str], *, vocabulary: int, batch: int, tokens: int) -> Feeds:
    """Always the same ids for the same sizes: each input (batch, tokens) int64, nothing masked.

    Raises:
        UsageError: a size below 1.
    """
    if min(vocabulary, batch, tokens) < 1:
        raise UsageError(f"batch {batch}, tokens {tokens}, vocabulary {vocabulary}: each must be at least 1")
    shape = (batch, tokens)
    arrays = {
        "input_ids": np.random.default_rng(0).integers(0, vocabulary, shape, np.int64),
        "attention_mask": np.ones(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }
    return _only(arrays, inputs)


def _behind(prompt: str, text: Text) -> Text:
    return prompt + text if isinstance(text, str) else (prompt + text[0], text[1])


def stride_of(longest: int) -> int:
    """How many tokens two windows of a context share, of so many tokens each."""
    return longest // _OVERLAP


def refuse_long(tokenizer: Any, questions: Sequence[str], longest: int, stride: int, where: str) -> None:
    """Refuse a question whose windows could not overlap by `stride`, at which `tokenizers` ends the process.

    Raises:
        UsageError: there is one.
    """
    most = longest - tokenizer.num_special_tokens_to_add(True) - stride - 1
    for part in _parts(questions, _TEXTS_AT_ONCE):
        for encoding in tokenizer.encode_batch(part, add_special_tokens=False):
            if len(encoding) > most:
                raise UsageError(
                    f"{where}: a question has {len(encoding)} tokens, {most} at most leave room for its context; "
                    "is the question too long?"
                )


def spans_of(encoding: Any) -> Spans:
    """What `tokenizers` found, as arrays."""
    return Spans(
        ids=np.array(encoding.ids, np.int64),
        types=np.array(encoding.type_ids, np.int64),
        offsets=np.array(encoding.offsets, np.int64).reshape(-1, 2),
        words=_indices(encoding.word_ids),
        parts=_indices(encoding.sequence_ids),
    )


def _indices(values: Sequence[int | None]) -> npt.NDArray[np.int64]:
    return np.array([-1 if value is None else value for value in values], np.int64)


def _only(arrays: Feeds, inputs: Sequence[str]) -> Feeds:
    unknown = [name for name in inputs if name not in arrays]
    if unknown:
        raise BundleError(f"the graph takes the input {unknown[0]!r}; this saten-runtime makes {', '.join(arrays)}")
    return {name: arrays[name] for name in inputs}


def _parts(values: Sequence[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(values)
    while part := list(itertools.islice(rest, size)):
        yield part
