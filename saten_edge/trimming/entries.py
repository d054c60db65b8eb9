"""The vocabulary of a tokenizer, whole: its model's pieces and the tokens added to them, under one numbering."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from saten_edge.trimming.pieces import KINDS
from saten_runtime.errors import ExportError, UsageError

__all__ = ["Entries"]

# Of an id, what stands for it.
Number = Callable[[int], int]


class Entries:
    """What a fast tokenizer knows. ids: every entry by its text; always: ids of those that every text may need.

    Raises:
        ExportError: it has no `tokenizer.json`, or one whose model or template is of another kind.
    """

    def __init__(self, where: str, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ExportError(
                f"{where}: its tokenizer, {type(tokenizer).__name__}, is a program in Python; a vocabulary is trimmed "
                f"in tokenizer.json, of the kinds {', '.join(KINDS)}"
            )
        self._content: dict[str, Any] = json.loads(backend.to_str())
        kind = self._content["model"]["type"]
        if kind not in KINDS:
            raise ExportError(f"{where}: its tokenizer is of the kind {kind}; there are {', '.join(KINDS)}")
        self._pieces = KINDS[kind](self._content["model"])
        added = {token["content"]: token["id"] for token in self._content["added_tokens"]}
        self.ids: dict[str, int] = {**self._pieces.ids, **added}
        named = _noted(lambda number: _post_processor(where, self._content.get("post_processor"), number))
        named |= _noted(lambda number: _padding(self._content.get("padding"), number))
        self.always = {self._pieces.ids[piece] for piece in self._pieces.always}
        self.always |= {*added.values(), *tokenizer.all_special_ids, *named} & set(self.ids.values())
        self._where = where

    def choose(self, counts: Sequence[int], always: set[int], size: int | None) -> set[int]:
        """The ids that stay: `always`, and of the others those used most, the earlier of two used alike.

        counts: how often each id is used. size: entries in all; None keeps every one that is used.

        Raises:
            UsageError: `size` is less than what every text needs, or more than there are.
        """
        there = len(set(self.ids.values()))
        if size is not None and not len(always) <= size <= there:
            raise UsageError(
                f"--vocabulary {size}: expected {len(always)}, the entries that every text needs, to {there}, those "
                f"that {self._where} has"
            )
        kept, texts = set(always), {number: text for text, number in self.ids.items()}
        for number in sorted(texts.keys() - always, key=lambda number: (-counts[number], number)):
            if size is None and not counts[number]:
                break
            parts = {self.ids[part] for part in self._pieces.parts(texts[number])} - kept
            if size is None or len(kept) + len(parts) <= size:
                kept |= parts
        return kept

    def renumbered(self, numbers: Mapping[int, int]) -> Any:
        """The tokenizer with the entries that have a new number, as `tokenizers.Tokenizer`."""
        from tokenizers import Tokenizer

        number, content = numbers.__getitem__, self._content
        return Tokenizer.from_str(
            json.dumps(
                {
                    **content,
                    "model": self._pieces.kept(numbers),
                    "added_tokens": [{**token, "id": numbers[token["id"]]} for token in content["added_tokens"]],
                    "post_processor": _post_processor(self._where, content.get("post_processor"), number),
                    "padding": _padding(content.get("padding"), lambda k: numbers.get(k, k)),
                },
                ensure_ascii=False,
                allow_nan=False,
            )
        )


def _noted(renumber: Callable[[Number], object]) -> set[int]:
    """The ids that a renumbering asks for."""
    found: set[int] = set()

    def note(number: int) -> int:
        found.add(number)
        return number

    renumber(note)
    return found


def _padding(said: dict[str, Any] | None, number: Number) -> dict[str, Any] | None:
    return said and {**said, "pad_id": number(said["pad_id"])}


def _post_processor(where: str, said: dict[str, Any] | None, number: Number) -> dict[str, Any] | None:
    if said is None:
        return None
    if said["type"] == "Sequence":
        return {**said, "processors": [_post_processor(where, each, number) for each in said["processors"]]}
    if said["type"] not in _POST_PROCESSORS:
        known = ", ".join([*_POST_PROCESSORS, "Sequence"])
        raise ExportError(f"{where}: its tokenizer has a post-processor {said['type']!r:.60}; there are {known}")
    return _POST_PROCESSORS[said["type"]](said, number)


def _template(said: dict[str, Any], number: Number) -> dict[str, Any]:
    tokens = said["special_tokens"]
    return {
        **said,
        "special_tokens": {name: {**token, "ids": [*map(number, token["ids"])]} for name, token in tokens.items()},
    }


def _ends(said: dict[str, Any], number: Number) -> dict[str, Any]:
    return {**said, **{end: [said[end][0], number(said[end][1])] for end in ("sep", "cls")}}


def _without_ids(said: dict[str, Any], number: Number) -> dict[str, Any]:
    return said


_POST_PROCESSORS = {
    "TemplateProcessing": _template,
    "BertProcessing": _ends,
    "RobertaProcessing": _ends,
    "ByteLevel": _without_ids,
}
