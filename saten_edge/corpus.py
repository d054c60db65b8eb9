"""Text that every Python installation has: the docstrings of its standard library and packages.

A docstring whose first sentence says what a thing does and whose rest explains it is a question and its
answer. That makes a documentation search task with no download: find the rest, given the first sentence.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import hashlib
import inspect
import itertools
import re
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from saten_runtime.errors import DataError

__all__ = ["Passage", "SearchTask", "read_docstrings", "search_task"]

# A file of test cases documents nothing, and vendored copies repeat what stands elsewhere.
SKIPPED_FOLDERS = {"test", "tests", "testing", "idlelib", "lib2to3", "_vendor", "vendored", "site-packages"}
LARGEST_FILE_BYTES = 400_000
QUERY_CHARACTERS = (20, 160)
SMALLEST_ANSWER_CHARACTERS = 80
LARGEST_ANSWER_CHARACTERS = 1200


@dataclass(frozen=True)
class Passage:
    """One docstring: its first sentence and the rest."""

    query: str
    answer: str


@dataclass(frozen=True)
class SearchTask:
    """Passages to train on and passages held out, disjoint in queries and in answers."""

    train: list[Passage]
    held_out: list[Passage]


def search_task(held_out: int = 1000, at_least: int = 5000, at_most: int = 10000) -> SearchTask:
    """Docstrings of this Python installation, split by a hash of their text.

    Files are read in the order of a hash of their names until `held_out + at_most` passages are found, so the
    choice is spread over all packages and the same installation gives the same split.

    Raises:
        DataError: fewer than `at_least` usable docstrings.
    """
    roots = (Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib")))
    with _uncollected():
        found = list(itertools.islice(_distinct(read_docstrings(roots)), held_out + at_most))
    passages = sorted(found, key=lambda passage: _digest(passage.query))
    if len(passages) < at_least:
        raise DataError(
            f"found {len(passages)} usable docstrings under {', '.join(map(str, roots))}, expected at least "
            f"{at_least}; install more packages into this environment"
        )
    return SearchTask(train=passages[held_out:], held_out=passages[:held_out])


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: syntax trees hold no cycles, and looking for some takes as long as parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_docstrings(roots: Iterable[Path]) -> Iterator[Passage]:
    """Every usable docstring below `roots`, files in the order of a hash of their names."""
    files = [(path, path.relative_to(root)) for root in roots for path in root.rglob("*.py")]
    for path, inside in sorted(files, key=lambda file: _digest(file[1].as_posix())):
        if not SKIPPED_FOLDERS.intersection(inside.parts) and path.stat().st_size <= LARGEST_FILE_BYTES:
            yield from _passages_of(path)


def _passages_of(path: Path) -> Iterator[Passage]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError, OSError, RecursionError):
        return
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            passage = _passage(ast.get_docstring(node, clean=False))
            if passage is not None:
                yield passage


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes of `ast.walk` but for expressions, which are most of them and define nothing."""
    ahead: deque[ast.AST] = deque([tree])
    while ahead:
        node = ahead.popleft()
        yield node
        children = ast.iter_child_nodes(node)
        ahead.extend(child for child in children if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case))


def _passage(docstring: str | None) -> Passage | None:
    """First sentence and rest of a docstring, or None where it is too short or no English prose."""
    if docstring is None:
        return None
    prose = re.sub(r"^\s*(>>>|\.\.\. ).*$|[=~*^\-]{3,}", " ", inspect.cleandoc(docstring), flags=re.MULTILINE)
    text = re.sub(r"\s+", " ", prose).strip()
    match = re.match(r"(.+?[.!?])\s+(?=[A-Z`*(\"'\[:])(.+)", text)
    if match is None:
        return None
    query, answer = match.group(1).strip(), match.group(2)[:LARGEST_ANSWER_CHARACTERS].strip()
    letters = sum(character.isalpha() or character.isspace() for character in answer)
    usable = (
        QUERY_CHARACTERS[0] <= len(query) <= QUERY_CHARACTERS[1]
        and len(answer) >= SMALLEST_ANSWER_CHARACTERS
        and letters >= 0.7 * len(answer)
        and text.isascii()
    )
    return Passage(query, answer) if usable else None


def _distinct(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Passages none of whose queries or answers occurred before: a copy could stand on both sides of the split."""
    seen: set[str] = set()
    for passage in passages:
        keys = {_normal(passage.query), _normal(passage.answer)[:200]}
        if not keys & seen:
            yield passage
        seen |= keys


def _normal(text: str) -> str:
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
