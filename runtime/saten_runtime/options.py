"""An option of a command is declared once, in the field of the dataclass that holds its value.

The field's default is the option's default; help, spelling and range are its metadata. `saten-run` and `saten-edge`
build their command lines from that, so that the two cannot differ.
"""

from __future__ import annotations

import dataclasses
import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from saten_runtime.errors import UsageError

__all__ = [
    "Option",
    "Printing",
    "add_options",
    "arguments_of",
    "check_ranges",
    "numbers",
    "option",
    "options_of",
    "spelled",
    "values_of",
]

_KEY = "option"
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Option:
    """What a command line shows of a field.

    help: a whole phrase. flags: as they are spelled, the long one first. low, high: of the numbers that are allowed,
    both included. read: from the text of one argument to the value; without it the field's type says. const: what an
    option that takes no argument sets the field to. metavar: the name of the argument in the help.
    """

    help: str
    flags: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    read: Callable[[str], Any] | None = None
    const: Any = None
    metavar: str | None = None


def option(default: Any, help: str, *flags: str, **how: Any) -> Any:
    """A dataclass field that is an option, too; `flags` and `how` as in `Option`.

    flags: the field's name by default, as in `--batch-size`.
    """
    return dataclasses.field(default=default, metadata={_KEY: Option(help, flags, **how)})


def options_of(kind: type) -> Iterator[tuple[dataclasses.Field[Any], Option]]:
    """The fields of a dataclass that are options."""
    for field in dataclasses.fields(kind):
        if _KEY in field.metadata:
            found: Option = field.metadata[_KEY]
            yield field, dataclasses.replace(found, flags=found.flags or (f"--{field.name.replace('_', '-')}",))


def check_ranges(value: Any) -> None:
    """Refuse a number outside of its option's range, and a list of numbers that is empty or says one twice.

    Raises:
        UsageError: there is one; the message names the option.
    """
    for field, one in options_of(type(value)):
        given = getattr(value, field.name)
        if one.low is None or given is None:
            continue
        several = isinstance(given, Sequence)
        values, kind = (given, "different numbers") if several else ([given], "a number")
        high = math.inf if one.high is None else one.high
        wanted = f"of at least {one.low:g}" if one.high is None else f"from {one.low:g} to {one.high:g}"
        in_range = all(one.low <= each <= high for each in values)
        if not values or not in_range or len(set(values)) < len(values):
            raise UsageError(f"{one.flags[0]} {spelled(given)}: expected {kind} {wanted}")


def spelled(value: Any) -> str:
    """A value as it stands on a command line."""
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from a list with commas.

    Raises:
        ValueError: it is none.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r}: expected whole numbers with commas between them") from None


def words(text: str) -> tuple[str, ...]:
    """Words from a list with commas."""
    return tuple(text.split(","))


def add_options(parser: ArgumentParser, kind: type, only: Sequence[str] | None = None) -> None:
    """Declare the options of a dataclass; only: names of the fields, all by default."""
    for field, one in options_of(kind):
        if only is None or field.name in only:
            parser.add_argument(*reversed(one.flags), dest=field.name, default=field.default, **_settings(field, one))


def values_of(kind: type[Kind], arguments: Namespace) -> Kind:
    """The dataclass with what was given on the command line; fields that were not declared keep their defaults."""
    given = {field.name: getattr(arguments, field.name) for field, _ in options_of(kind) if field.name in arguments}
    return kind(**given)


def arguments_of(value: Any) -> list[str]:
    """The command line that `values_of` reads this dataclass from."""
    parts: list[str] = []
    for field, one in options_of(type(value)):
        given = getattr(value, field.name)
        if one.const is not None:
            parts += [one.flags[0]] if given == one.const else []
        elif given is not None:
            parts += [one.flags[0], spelled(given)]
    return parts


def _settings(field: dataclasses.Field[Any], one: Option) -> dict[str, Any]:
    if one.const is not None:
        return {"action": "store_const", "const": one.const, "help": one.help}
    shown = "" if field.default is None else f" (default: {spelled(field.default)})"
    read = _reader(one.read) if one.read else _TYPES[str(field.type).removesuffix(" | None")]
    return {"type": read, "metavar": one.metavar, "help": f"{one.help}{shown}".replace("%", "%%")}


_TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str, "Path": Path}


def _reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as cause:
            raise ArgumentTypeError(str(cause)) from None

    return checked


@dataclass(frozen=True)
class Printing:
    """What a command prints besides its result, and in which form that is; every command of both programs has it."""

    quiet: bool = option(False, "Print no progress on stderr", "--quiet", "-q", const=True)
    as_json: bool = option(False, "Print JSON instead of text", "--json", const=True)
