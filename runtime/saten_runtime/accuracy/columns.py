"""What the columns of data are usually called, in one table for training and for evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterable

__all__ = ["IMAGE", "LABEL_COLUMNS", "LAYOUTS", "PAIR", "QUESTION", "WORDS", "WORD_COLUMNS", "label_in", "layouts_in"]

Layout = tuple[str, ...]

# What an example may be made of, by our names.
TEXT, PAIR, IMAGE, WORDS, QUESTION = LAYOUTS = (
    ("text",),
    ("text_a", "text_b"),
    ("image",),
    ("words",),
    ("question", "context"),
)
_TOGETHER = (
    (PAIR, ("text_a", "text_b")),
    (PAIR, ("sentence1", "sentence2")),
    (PAIR, ("premise", "hypothesis")),
    (PAIR, ("question1", "question2")),
    (PAIR, ("question", "sentence")),
    (PAIR, ("text", "text_pair")),
    (QUESTION, ("question", "context")),
)
_ALONE = {
    **dict.fromkeys(("text", "sentence", "content", "review", "question"), TEXT),
    **dict.fromkeys(("image", "img"), IMAGE),
}
WORD_COLUMNS = ("words", "tokens")
LABEL_COLUMNS = ("label", "labels")
_LABELS = {WORDS: ("labels", "ner_tags", "tags", "label"), QUESTION: ("answers",)}


def layouts_in(columns: Collection[str]) -> list[dict[str, str]]:
    """What an example could be made of, ours → theirs; more than one where the names leave it open."""
    pairs = [dict(zip(ours, theirs, strict=True)) for ours, theirs in _TOGETHER if set(theirs) <= set(columns)]
    paired = {column for pair in pairs for column in pair.values()}
    alone = [{_ALONE[name][0]: name} for name in _ALONE if name in columns and name not in paired]
    words = [{"words": name} for name in WORD_COLUMNS if name in columns]
    return pairs + alone or words[:1]  # beside a text, words may well be their number


def label_in(columns: Collection[str], layout: Iterable[str] = ()) -> str | None:
    """The column of the labels of examples of such a layout, if there is one."""
    usual = _LABELS.get(tuple(layout), LABEL_COLUMNS)
    return next((name for name in usual if name in columns), None)
