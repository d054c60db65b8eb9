"""What a tokenizer's model may lose, as one table of its kinds.

An entry stays if every text needs it: one character, in each form that it has; a byte; the unknown piece. Any other
that goes is then spelled by what is left, so that no text becomes unknown that was not. Where all pieces of a text
stay, it keeps them: each kind takes the best of what it has, and what was the best is there yet.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

__all__ = ["KINDS", "Pieces"]

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

Model = dict[str, Any]


class Pieces:
    """The entries of a tokenizer's model, which is a part of its `tokenizer.json`. ids: of each piece."""

    def __init__(self, model: Model, ids: Mapping[str, int]) -> None:
        self.model, self.ids = model, ids

    def letters(self, piece: str) -> list[str]:
        """The entries for its single characters, in the form in which each stands in it."""
        return list(piece)

    def parts(self, piece: str) -> set[str]:
        """Itself, and the pieces without which the tokenizer does not arrive at it."""
        return {piece}

    @cached_property
    def always(self) -> set[str]:
        """The pieces that stay, whatever the texts are.

        One with a character that has no entry of its own is among them, as nothing else spells that character.
        """
        unknown = {piece for piece in self.ids if piece == self.unknown}
        return unknown | {piece for piece in self.ids if self._is_needed(piece)}

    @property
    def unknown(self) -> str | None:
        """The piece that stands for what cannot be spelled, if there is one."""
        return self.model.get("unk_token")

    def kept(self, numbers: Mapping[int, int]) -> Model:
        """The model with the entries that have a new number. numbers: old id → new id, in the same order."""
        return {**self.model, "vocab": {piece: numbers[k] for piece, k in self.ids.items() if k in numbers}}

    def _is_needed(self, piece: str) -> bool:
        letters = self.letters(piece)
        spelled = len(letters) > 1 and all(letter in self.ids for letter in letters)
        return not spelled or (bool(self.model.get("byte_fallback")) and _BYTE.fullmatch(piece) is not None)


class WordPiece(Pieces):
    """The longest piece that a word begins with, then the longest continuation, and so on."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, model["vocab"])

    def letters(self, piece: str) -> list[str]:
        """The first as it begins a word or goes on with one, the others as they go on."""
        prefix = self.model["continuing_subword_prefix"]
        goes_on = piece.startswith(prefix) and piece != prefix
        body = piece.removeprefix(prefix) if goes_on else piece
        return [prefix + letter if goes_on or k else letter for k, letter in enumerate(body)]


class Bpe(Pieces):
    """Neighbours are merged, the pair that is earliest in a list first, until no pair of the list is left."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, model["vocab"])

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {(first, second): rank for rank, (first, second) in enumerate(self.model["merges"])}

    @property
    def _prefix(self) -> str:
        return self.model.get("continuing_subword_prefix") or ""

    def letters(self, piece: str) -> list[str]:
        """The symbols that merging begins with; the last may carry the end of a word."""
        prefix, suffix = self._prefix, self.model.get("end_of_word_suffix") or ""
        goes_on = bool(prefix) and piece.startswith(prefix) and piece != prefix
        ends = bool(suffix) and piece.endswith(suffix) and piece != suffix
        body = piece[len(prefix) * goes_on : len(piece) - len(suffix) * ends]
        letters = [prefix + letter if goes_on or k else letter for k, letter in enumerate(body)]
        return [*letters[:-1], letters[-1] + suffix * ends]

    def parts(self, piece: str) -> set[str]:
        """All that merging makes on the way to it.

        In a text, merges within a piece come in the order that they have in the piece alone: none crosses its ends.
        """
        symbols = self.letters(piece)
        found = {piece, *symbols}
        while len(symbols) > 1:
            pairs = [(self._ranks.get(pair), k) for k, pair in enumerate(itertools.pairwise(symbols))]
            ranked = [(rank, k) for rank, k in pairs if rank is not None]
            if not ranked:
                break
            _, k = min(ranked)
            symbols[k : k + 2] = [self._merged(symbols[k], symbols[k + 1])]
            found.add(symbols[k])
        return {part for part in found if part in self.ids}

    def kept(self, numbers: Mapping[int, int]) -> Model:
        """With the merges of which both parts and the result are there."""
        model = super().kept(numbers)
        there = model["vocab"]
        merges = [
            [first, second]
            for first, second in self.model["merges"]
            if first in there and second in there and self._merged(first, second) in there
        ]
        return {**model, "merges": merges}

    def _merged(self, first: str, second: str) -> str:
        return first + second[len(self._prefix) :]


class Unigram(Pieces):
    """The pieces with the largest sum of scores."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, {piece: k for k, (piece, _) in enumerate(model["vocab"])})

    @cached_property
    def always(self) -> set[str]:
        """With the piece of the lowest score, by which that of an unknown character is reckoned."""
        lowest = min(self.model["vocab"], key=lambda entry: float(entry[1]), default=None)
        return super().always | ({lowest[0]} if lowest else set())

    @property
    def unknown(self) -> str | None:
        """The piece that stands for what cannot be spelled, if there is one."""
        number = self.model.get("unk_id")
        return None if number is None else self.model["vocab"][number][0]

    def kept(self, numbers: Mapping[int, int]) -> Model:
        """The pieces in the order of their new numbers, which is that of the old ones."""
        unknown = self.model.get("unk_id")
        return {
            **self.model,
            "vocab": [entry for k, entry in enumerate(self.model["vocab"]) if k in numbers],
            "unk_id": None if unknown is None else numbers[unknown],
        }


KINDS: Mapping[str, type[WordPiece] | type[Bpe] | type[Unigram]] = {
    "WordPiece": WordPiece,
    "BPE": Bpe,
    "Unigram": Unigram,
}
"""By the names of tokenizers, whose `tokenizer.json` has the model's under `type`."""
