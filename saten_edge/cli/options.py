"""Typer's parameters from dataclasses of options: help, default, range and spelling stand in the dataclass alone."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from saten_runtime.options import Option, options_of, spelled

__all__ = ["Devices", "Only", "Output", "Overwrite", "Recipe", "expanded"]

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; it must not exist")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if saten-edge wrote it")]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        help="Device to run on: ssh://[user@]host[:port][/folder], adb:SERIAL or local; separate several by commas. "
        "Each gets its own folder in the output",
    ),
]


Recipe = Annotated[
    Path | None,
    typer.Option(help="YAML file of a recipe, which gives this stage's options; one given here, too, must agree"),
]


class Only:
    """In `Annotated[Options, Only("a", "b")]`: the command has these of the options, the others keep their defaults."""

    def __init__(self, *names: str) -> None:
        self.names = names


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer takes it: instead of a parameter that is a dataclass of options, one for each option."""
    hints = get_type_hints(command, include_extras=True)
    hints.pop("return", None)
    groups = {name: _group(hint) for name, hint in hints.items()}
    parameters: list[Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        group = groups[name]
        plain = parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY)
        parameters += [plain] if group is None else _parameters(*group)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(**{name: _value(*group, given) if group else given[name] for name, group in groups.items()})

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # typer reads it
    run.__annotations__ = {}
    return run


Group = tuple[type, "Sequence[str] | None"]


def _group(hint: Any) -> Group | None:
    """A dataclass of options and those that are chosen of them; None for any other type."""
    kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if not dataclasses.is_dataclass(kind):
        return None
    return kind, next((mark.names for mark in marks if isinstance(mark, Only)), None)  # type: ignore[return-value]


def _parameters(kind: type, only: Sequence[str] | None) -> Iterator[Parameter]:
    hints, options = get_type_hints(kind), {field.name: one for field, one in options_of(kind)}
    for field in dataclasses.fields(kind):
        if _group(hints[field.name]):
            yield from _parameters(hints[field.name], only)
        elif field.name in options and (only is None or field.name in only):
            yield _parameter(field, options[field.name], hints[field.name])


def _parameter(field: dataclasses.Field[Any], one: Option, hint: Any) -> Parameter:
    if one.const is not None:
        return _declared(field.name, one, bool, False)
    if one.read is not None:
        return _declared(field.name, one, str | None, None if field.default is None else spelled(field.default))
    if get_origin(hint) is tuple:
        return _declared(field.name, one, list[str] | None, None)
    return _declared(field.name, one, hint, field.default)


def _declared(name: str, one: Option, annotation: Any, default: Any) -> Parameter:
    parser = None if one.read is None else _parser(one.read)
    how = typer.Option(*one.flags, help=one.help, min=one.low, max=one.high, metavar=one.metavar, parser=parser)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, how])


def _parser(read: Callable[[str], Any]) -> Callable[[Any], Any]:
    def parse(text: str) -> Any:
        try:
            return read(text)
        except ValueError as cause:
            raise typer.BadParameter(str(cause)) from None

    return parse


def _value(kind: type, only: Sequence[str] | None, given: Mapping[str, Any]) -> Any:
    """The dataclass with what typer read."""
    hints: dict[str, Any] = get_type_hints(kind)
    options = {field.name: one for field, one in options_of(kind)}
    nested = {name: _value(hint, only, given) for name, hint in hints.items() if _group(hint)}
    values = nested | {name: _read(one, given[name]) for name, one in options.items() if name in given}
    return kind(**{name: value for name, value in values.items() if value is not None})


def _read(one: Option, value: Any) -> Any:
    """None is what was not given: the field's own default."""
    if one.const is not None:
        return one.const if value else None
    return tuple(value) if isinstance(value, list) else value
