"""The recipe of a model: which stages made it, what each was told, on what data, and by which versions.

It is plain data. A checkpoint carries it in `quantization_config`, a bundle in its manifest, and each stage adds its
own entry to what the stages before it wrote. It comes from elsewhere as the rest of a bundle does, so that reading is
strict: names are short words, strings are short and printable, and nothing is nested deeper than an option's own
table.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeAlias

from saten_runtime.records.plain_text import printable

__all__ = ["OTHERWISE", "UNRECORDED", "Option", "Recipe", "Stage", "options_of", "recipe_lines", "versions_here"]

Scalar: TypeAlias = str | int | float | bool | None
Option: TypeAlias = Scalar | list[Scalar] | dict[str, Scalar]

_PACKAGES = ("saten-edge", "torch", "transformers", "onnxruntime")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_MOST_STAGES = 64
_MOST_ITEMS = 10_000
_MOST_CHARACTERS = 1_000
_LARGEST = 1 << 63
# stage that makes weights for a precision → what to say where another one is asked for
_MADE_FOR = {
    "compress": (
        "the compression counted the bytes of {0}, and split them for it; --precision {0} keeps to the size that was "
        "asked for"
    ),
    "gptq": (
        "the weights were rounded for {0}, and any other rounds them again or stores more than is in them; "
        "--precision {0} keeps them as they are"
    ),
}
_SHOWN_ITEMS, _SHOWN_DIGITS = 8, 12


@dataclass(frozen=True)
class Stage:
    """One stage: its name, such as "compress".

    options: what it was told, by name. inputs: what it read, by role (model, teacher, calibration …), each with a
    sha256. outcome: what only the run itself could tell, such as the steps that fitted into the minutes.
    versions: of the packages that decide what comes out.
    """

    stage: str
    options: Mapping[str, Option] = field(default_factory=dict)
    inputs: Mapping[str, Mapping[str, Option]] = field(default_factory=dict)
    outcome: Mapping[str, Option] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """The stages, in the order in which they were run."""

    stages: tuple[Stage, ...] = ()

    def then(self, stage: Stage) -> Recipe:
        """With one more stage."""
        return Recipe((*self.stages, stage))

    def other_precision(self, given: Sequence[str]) -> list[str]:
        """What to say of precisions that leave out the one that the weights were made for; else nothing."""
        found = [(stage.stage, stage.options.get("precision")) for stage in self.stages if stage.stage in _MADE_FOR]
        if not found or found[-1][1] is None or found[-1][1] in given:
            return []
        stage, precision = found[-1]
        return [f"--precision {','.join(given)}: {_MADE_FOR[stage].format(precision)}"]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON data, one object per stage."""
        return [dataclasses.asdict(stage) for stage in self.stages]

    @classmethod
    def from_json(cls, value: Any, where: str, error: Callable[[str], Exception]) -> Recipe:
        """Back from `to_json`.

        Raises:
            whatever `error` builds: naming the place in the file where something else stands.
        """
        return cls(tuple(_stage(item, f"{where}[{k}]", error) for k, item in enumerate(_items(value, where, error))))


# Of an export by the prices of a device, among the outcome: how those of x86-64 would write the layers that differ.
OTHERWISE = "by-shipped-prices"
# What stands in a recipe for stages that a version without recipes ran.
UNRECORDED = Stage("not-recorded")


def options_of(*groups: Any, **single: Any) -> dict[str, Option]:
    """The fields of dataclasses of options, and single options, as plain data; infinity is None, as JSON has none."""
    named = [(field.name, getattr(group, field.name)) for group in groups for field in dataclasses.fields(group)]
    return {name: _plain(value) for name, value in (*named, *single.items())}


def versions_here() -> dict[str, str]:
    """Of the packages that decide what a stage makes, as installed here."""
    return {package: found for package in _PACKAGES if (found := _version(package))}


def recipe_lines(recipe: Recipe | None) -> list[str]:
    """The recipe as lines of text, each option as name=value."""
    if recipe is None:
        return ["recipe: not recorded"]
    lines = []
    for stage in recipe.stages:
        lines.append(f"recipe: {stage.stage} {_pairs(stage.options)}".rstrip())
        lines += [f"  {role}: {_pairs(found)}" for role, found in stage.inputs.items()]
        lines += [f"  {name}: {_pairs(each)}" for name in ("outcome", "versions") if (each := getattr(stage, name))]
    return lines


def _pairs(values: Mapping[str, Option]) -> str:
    return ", ".join(f"{name}={_text(name, value)}" for name, value in values.items())


def _text(name: str, value: Option) -> str:
    if isinstance(value, list):
        return "[" + ", ".join([*map(str, value[:_SHOWN_ITEMS]), *["…"] * (len(value) > _SHOWN_ITEMS)]) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {each}" for key, each in value.items()) + "}"
    return str(value)[:_SHOWN_DIGITS] if name == "sha256" else str(value)


def _plain(value: Any) -> Option:
    if isinstance(value, float) and math.isinf(value):
        return None
    if isinstance(value, str):
        return printable(value)[:_MOST_CHARACTERS]
    if isinstance(value, Mapping):
        return {str(_plain(name)): _plain(each) for name, each in value.items()}  # type: ignore[misc]
    return [_plain(each) for each in value] if isinstance(value, Sequence) else value  # type: ignore[misc]


@functools.cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _stage(value: Any, where: str, error: Callable[[str], Exception]) -> Stage:
    names = [each.name for each in dataclasses.fields(Stage)]
    if not isinstance(value, dict) or set(value) != set(names):
        raise error(f"{where}: expected an object of {', '.join(names)}, found {value!r:.60}")
    return Stage(
        _word(value["stage"], f"{where}.stage", error),
        _table(value["options"], f"{where}.options", _option, error),
        _table(value["inputs"], f"{where}.inputs", _options, error),
        _table(value["outcome"], f"{where}.outcome", _option, error),
        _table(value["versions"], f"{where}.versions", _string, error),
    )


def _items(value: Any, where: str, error: Callable[[str], Exception]) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MOST_STAGES:
        raise error(f"{where}: expected a list of at most {_MOST_STAGES} stages, found {value!r:.60}")
    return value


def _table(value: Any, where: str, read: Callable[[Any, str, Callable[[str], Exception]], Any], error: Any) -> Any:
    """An object whose keys are words, with `read` of each value."""
    if not isinstance(value, dict) or len(value) > _MOST_ITEMS:
        raise error(f"{where}: expected an object of at most {_MOST_ITEMS} entries, found {value!r:.60}")
    return {_word(name, where, error): read(each, f"{where}.{name:.64}", error) for name, each in value.items()}


def _options(value: Any, where: str, error: Callable[[str], Exception]) -> Any:
    return _table(value, where, _option, error)


def _option(value: Any, where: str, error: Callable[[str], Exception]) -> Option:
    if isinstance(value, (list, dict)) and len(value) > _MOST_ITEMS:
        raise error(f"{where}: has {len(value)} entries, more than {_MOST_ITEMS}")
    if isinstance(value, list):
        return [_scalar(each, where, error) for each in value]
    if isinstance(value, dict):
        return {_string(name, where, error): _scalar(each, where, error) for name, each in value.items()}
    return _scalar(value, where, error)


def _scalar(value: Any, where: str, error: Callable[[str], Exception]) -> Scalar:
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        if abs(value) >= _LARGEST:
            raise error(f"{where}: is {value!r:.40}, which is no number of 64 bits")
        return value
    return _string(value, where, error)


def _string(value: Any, where: str, error: Callable[[str], Exception]) -> str:
    if not isinstance(value, str) or len(value) > _MOST_CHARACTERS or not value.isprintable():
        raise error(f"{where}: expected at most {_MOST_CHARACTERS} printable characters, found {value!r:.60}")
    return value


def _word(value: Any, where: str, error: Callable[[str], Exception]) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise error(f"{where}: {value!r:.60} is no name; expected letters, digits, _ and -, at most 64")
    return value
