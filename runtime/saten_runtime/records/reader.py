"""One strict reader of records: JSON data against dataclasses, whose type hints are the schema.

A hint is `str`, `int`, `float`, `bool`, `Any`, a dataclass, a `list` or `dict` of hints, any of these `| None`, or
`Annotated` with a `Bound`; a class with a `from_json(value, where, error)` reads itself. A field with a default may be
missing: what is added to a record gets one, so that older files still open.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar

from saten_runtime.errors import DataError
from saten_runtime.records.plain_text import printable

__all__ = ["RESULTS", "Bound", "Count", "Natural", "Positive", "Reader", "read_result"]

T = TypeVar("T")
_MOST = 2**63  # whole numbers beyond are no count of anything, and have no float
_SCALARS = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a string"}
_MOST_NAMED = 5


@dataclass(frozen=True)
class Bound:
    """What a value must satisfy beyond its type; `words` say it in a message, after "expected"."""

    words: str
    holds: Callable[[Any], bool]


Positive = Annotated[float, Bound("a number above 0", lambda value: value > 0)]
Natural = Annotated[int, Bound("a number above 0", lambda value: value > 0)]
Count = Annotated[int, Bound("a number 0 or more", lambda value: value >= 0)]


@dataclass(frozen=True)
class Reader:
    """How records of one kind are read.

    error: builds what is raised. exact: every field must be there and no other; else fields with a default may be
    missing, and unknown ones are left alone, as a newer writer may add some. text: applied to every string.
    """

    error: Callable[[str], Exception]
    exact: bool = False
    text: Callable[[str], str] = str

    def read(self, kind: type[T], value: object, where: str) -> T:
        """`value`, as JSON gives it, as a `kind`; `where` names it in messages.

        Raises:
            whatever `error` builds: naming the field by its path, what was found and what was expected.
        """
        try:
            return typing.cast(T, self._read(kind, value, where))
        except RecursionError:
            raise self.error(f"{where}: is nested too deep") from None

    def _read(self, kind: Any, value: Any, where: str) -> Any:
        if kind is Any:
            return self._tree(value)
        if hasattr(kind, "from_json"):
            return kind.from_json(value, where, self.error)
        if dataclasses.is_dataclass(kind):
            return self._record(kind, value, where)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is Annotated:
            return self._bounded(arguments[0], arguments[1], value, where)
        if origin in (typing.Union, types.UnionType):
            (hint,) = (argument for argument in arguments if argument is not type(None))
            return None if value is None else self._read(hint, value, where)
        if origin is list and isinstance(value, list):
            return [self._read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
        if origin is dict and isinstance(value, dict):
            return dict(self._items(arguments[0], arguments[1], value, where))
        return self._scalar(kind, value, where)

    def _items(self, key_kind: Any, kind: Any, value: dict[str, Any], where: str) -> Iterator[tuple[Any, Any]]:
        for key, item in value.items():
            inside = f"{where}.{printable(key)[:60]}"
            yield self._read(key_kind, key, inside), self._read(kind, item, inside)

    def _record(self, kind: Any, value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            self._refuse(value, "an object", where)
        hints, needed = _fields(kind)
        wanted = set(hints) if self.exact else needed
        if missing := sorted(wanted - set(value)):
            raise self.error(f"{where}: {missing[0]} is missing, expected {', '.join(sorted(wanted))}")
        if self.exact and (odd := sorted(set(value) - set(hints))):
            names = ", ".join(f"{name!r:.60}" for name in odd[:_MOST_NAMED])
            raise self.error(f"{where}: found the unknown {names}, expected {', '.join(sorted(hints))}")
        known = {name: self._read(hints[name], value[name], f"{where}.{name}") for name in hints if name in value}
        try:
            return kind(**known)
        except ValueError as cause:
            raise self.error(f"{where}: {cause}") from None

    def _bounded(self, kind: Any, bound: Bound, value: Any, where: str) -> Any:
        result = self._read(kind, value, where)
        if not bound.holds(result):
            self._refuse(value, bound.words, where)
        return result

    def _scalar(self, kind: Any, value: Any, where: str) -> Any:
        if kind is str and isinstance(value, str) and _is_whole_text(text := self.text(value)):
            return text
        if kind is float and (_is_whole(value) or (type(value) is float and math.isfinite(value))):
            return float(value)
        if kind is int and _is_whole(value):
            return value
        if kind is bool and type(value) is bool:
            return value
        self._refuse(value, _SCALARS.get(kind, "a list or an object"), where)

    def _tree(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self.text(key): self._tree(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._tree(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def _refuse(self, value: object, expected: str, where: str) -> NoReturn:
        raise self.error(f"{where}: found {printable(f'{value!r:.60}')}, expected {expected}")


def _is_whole_text(text: str) -> bool:
    """Whether every character is one: JSON can spell half of a surrogate pair, which no file can hold."""
    return not any("\ud800" <= mark <= "\udfff" for mark in text)


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < _MOST


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The hints of a dataclass by field, and the fields without a default."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = dataclasses.fields(kind)
    absent = dataclasses.MISSING
    needed = (field.name for field in fields if field.default is absent and field.default_factory is absent)
    return {field.name: hints[field.name] for field in fields}, frozenset(needed)


RESULTS = Reader(DataError, text=printable)
"""For what was measured elsewhere: its strings steer no terminal, and a newer runtime may have recorded more."""


def read_result(kind: type[T], value: object, where: str, version: int) -> T:
    """A result of one schema version, which says so in its field `schema_version`.

    Raises:
        DataError: another schema version, or a field missing, of a wrong type or out of range.
    """
    found = value.get("schema_version") if isinstance(value, dict) else version
    if type(found) is not int or found != version:
        raise DataError(f"{where}: schema_version is {found!r:.60}, expected {version}; measure again")
    return RESULTS.read(kind, value, where)
