"""Text that ships with Python, to train and judge a small language model with nothing downloaded.

The manual's topics (`pydoc_data.topics`, what `help("…")` prints) and the docstrings of the standard library: the same
text for the same version of Python, whatever else is installed.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from saten_edge.corpus import read_docstrings

__all__ = ["Corpus", "python_corpus"]

SMALLEST_CHARACTERS, LARGEST_CHARACTERS = 200, 1200


@dataclass(frozen=True)
class Corpus:
    """Passages to train on and passages held out; no passage is in both."""

    train: list[str]
    held_out: list[str]


def python_corpus(held_out: int, *, docstrings: bool = True) -> Corpus:
    """The passages in the order of a hash of their text, the first `held_out` of them held out.

    docstrings: reading those of the whole library takes seconds; without, there are only the topics.
    """
    found = [*_topics(), *(_docstrings() if docstrings else ())]
    passages = sorted(dict.fromkeys(found), key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    return Corpus(passages[held_out:], passages[:held_out])


def _topics() -> Iterator[str]:
    """Paragraphs, put together until they are long enough to be a text; a paragraph of two topics counts once."""
    seen: set[str] = set()
    for name in sorted(topics):
        text = ""
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            line = " ".join(paragraph.split())
            if line in seen:
                continue
            seen.add(line)
            text = f"{text} {line}".strip()[:LARGEST_CHARACTERS]
            if len(text) >= SMALLEST_CHARACTERS:
                yield text
                text = ""


def _docstrings() -> Iterator[str]:
    for passage in read_docstrings([Path(sysconfig.get_path("stdlib"))]):
        yield f"{passage.query} {passage.answer}"
