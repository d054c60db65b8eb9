"""The schema of a recipe in a file: stages, and the options that each may have.

The options are the fields of the dataclasses that the commands take, so that a new option needs no line here. pydantic
checks names and types; the dataclasses say which values contradict each other.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from saten_edge.options import CompressOptions, ExportOptions, FinetuneOptions, OptimizeOptions, TrimOptions
from saten_edge.recipes.lines import Lines, read_yaml, write_yaml
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import MANIFEST_FILE
from saten_runtime.bundle.recipe import Option, Recipe, Stage, options_of
from saten_runtime.errors import UsageError
from saten_runtime.options import options_of as declared
from saten_runtime.options import spelled
from saten_runtime.records.files import read_json, replace_file
from saten_runtime.vocabulary.files import CONFIG_FILE

__all__ = ["RecipeFile", "given_by", "merged", "other_inputs", "read_recipe", "recorded", "stages_in", "write_recipe"]

Kind = TypeVar("Kind")

# stage → the dataclass of its options, and those of its fields that say where things are, not what is made of them
STAGES: Mapping[str, tuple[type, frozenset[str]]] = {
    "optimize": (OptimizeOptions, frozenset({"workers", "engine", "address", "prices", "emulated"})),
    "trim": (TrimOptions, frozenset({"judge"})),
    "compress": (CompressOptions, frozenset()),
    "finetune": (FinetuneOptions, frozenset({"columns", "teacher", "judge", "judge_split"})),
    "export": (ExportOptions, frozenset({"task", "name", "dense", "judge", "max_loss", "device"})),
}
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Stage(BaseModel):
    """A stage as it stands in a file."""

    model_config = _STRICT

    stage: str
    options: dict[str, Any] = {}
    inputs: dict[str, dict[str, Any]] = {}
    outcome: dict[str, Any] = {}
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class RecipeFile:
    """A recipe, the file it came from, and the line of each entry."""

    path: Path
    recipe: Recipe
    lines: Lines

    def stage(self, name: str) -> Stage:
        """The stage of this name.

        Raises:
            UsageError: there is none, or more than one.
        """
        found = [stage for stage in self.recipe.stages if stage.stage == name]
        if len(found) != 1:
            there = ", ".join(stage.stage for stage in self.recipe.stages) or "none"
            raise UsageError(f"{self.path}: has {len(found)} stages {name!r}, expected one; its stages are: {there}")
        return found[0]

    def where(self, stage: Stage, key: str | None = None) -> str:
        """File and line of a stage, or of one of its options."""
        number = next(k for k, each in enumerate(self.recipe.stages) if each is stage)
        place = (number,) if key is None else (number, "options", key)
        return f"{self.path}:{self.lines.get(place, self.lines[(number,)])}"

    def options(self, stage: Stage) -> Any:
        """The dataclass that the command of the stage takes.

        Raises:
            UsageError: with the line: a name or a value that there is not, or values that contradict each other.
        """
        return _options(stage, lambda key: self.where(stage, key))


def read_recipe(path: Path) -> RecipeFile:
    """Read a recipe.

    Raises:
        UsageError: with file and line, whatever is no recipe.
    """
    data, lines = read_yaml(path)
    if not isinstance(data, list) or not data:
        raise UsageError(f"{path}:1: expected a list of stages, such as '- stage: compress'")
    stages = [_read_stage(path, number, item, lines) for number, item in enumerate(data)]
    checked = Recipe.from_json([dataclasses.asdict(stage) for stage in stages], str(path), UsageError)
    file = RecipeFile(path, checked, lines)
    for stage in checked.stages:
        file.options(stage)
    return file


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write a recipe as YAML, atomically."""
    replace_file(path, write_yaml(recipe.to_json()).encode())


def recorded(stage: str, options: Any) -> dict[str, Option]:
    """What a recipe says of the options of a stage; `given_by` reads it."""
    values = {name: value for name, value in _flat(options) if name in _fields(stage)}
    return options_of(**values)


def given_by(stage: str, options: Mapping[str, Any]) -> Any:
    """The dataclass of a stage's options back from `recorded`.

    Raises:
        UsageError: a name or a value that there is not, or values that contradict each other.
    """
    return _options(Stage(stage, dict(options)), lambda key: f"recipe, {stage}")


def merged(file: RecipeFile, name: str, asked: Kind) -> Kind:
    """The options of a stage of the file, with those of the command line that say nothing else.

    Raises:
        UsageError: an option that the file gives another value.
    """
    stage = file.stage(name)
    read, plain = dict(_flat(file.options(stage))), dict(_flat(type(asked)()))
    given = {key: value for key, value in _flat(asked) if value != plain[key]}
    for key, value in given.items():
        if key in stage.options and read[key] != value:
            raise UsageError(
                f"{file.where(stage, key)}: {key} is {spelled(read[key])}, and {_as_typed(type(asked), key, value)} "
                "contradicts it; leave one of them out"
            )
    return _built(type(asked), {**plain, **{key: read[key] for key in stage.options}, **given})


def other_inputs(wanted: Stage, found: Stage) -> list[str]:
    """The inputs of a stage, by role, that are not those that a recipe was made with; one that says none fits all."""
    return [
        f"{role}: sha256 {str(there['sha256'])[:12]}, the recipe has {str(each['sha256'])[:12]}"
        for role, each in wanted.inputs.items()
        if "sha256" in each and (there := found.inputs.get(role)) and there.get("sha256") != each["sha256"]
    ]


def stages_in(folder: Path) -> tuple[Stage, ...]:
    """The record in a checkpoint or bundle that was written here; none where it has none."""
    config, manifest = folder / CONFIG_FILE, folder / MANIFEST_FILE
    if manifest.is_file():
        recipe = Bundle.open(folder, check_content=False).manifest.recipe
        return recipe.stages if recipe is not None else ()
    there = read_json(config, UsageError).get("quantization_config", {}) if config.is_file() else {}
    return Recipe.from_json(there.get("recipe", []), str(config), UsageError).stages


def _read_stage(path: Path, number: int, item: Any, lines: Lines) -> Stage:
    try:
        read = _Stage.model_validate(item)
    except ValidationError as error:
        place, problem = _first(error)
        line = lines.get((number, *place), lines[(number,)])
        raise UsageError(f"{path}:{line}: {problem}") from None
    if read.stage not in STAGES:
        line = lines[(number, "stage")]
        raise UsageError(f"{path}:{line}: no stage {read.stage!r:.60} can be run; there are {', '.join(STAGES)}")
    return Stage(**read.model_dump())


def _options(stage: Stage, where: Any) -> Any:
    kind, _ = STAGES[stage.stage]
    try:
        values = _model(stage.stage).model_validate(_as_declared(stage)).model_dump(include=set(stage.options))
    except ValidationError as error:
        (key, *_), problem = _first(error)
        raise UsageError(f"{where(str(key))}: {stage.stage}: {problem}{_meant(stage.stage, str(key))}") from None
    try:
        return _built(kind, {**dict(_flat(kind())), **values})
    except UsageError as cause:
        named = next((key for key in stage.options if f"--{key.replace('_', '-')}" in str(cause)), None)
        raise UsageError(f"{where(named)}: {stage.stage}: {cause}") from None


def _as_declared(stage: Stage) -> dict[str, Any]:
    """What JSON does not have: infinity of a number that may be infinite, which is null there; tuples, and paths."""
    fields = _fields(stage.stage)
    endless = {name for name, (_, default) in fields.items() if default == math.inf}
    paths = {name for name, (hint, _) in fields.items() if Path in get_args(hint)}
    values: dict[str, Any] = dict(stage.options)
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    values |= {key: Path(values[key]) for key in paths & set(values) if isinstance(values[key], str)}
    return {key: math.inf if value is None and key in endless else value for key, value in values.items()}


def _first(error: ValidationError) -> tuple[tuple[str | int, ...], str]:
    """Where the first of the errors is, and what is wrong there."""
    found = error.errors(include_url=False)[0]
    place = tuple(found["loc"])
    name = str(place[-1]) if place else "a stage"
    problems = {
        "extra_forbidden": f"there is no {name!r:.60}",
        "missing": f"{name} is missing",
        "model_type": "expected a stage with its name and options",
    }
    return place or ("",), problems.get(found["type"], f"{name} is {found['input']!r:.60}; {found['msg']}")


def _meant(stage: str, key: str) -> str:
    names = list(_fields(stage))
    near = difflib.get_close_matches(key, names, 1)
    if key in names:
        return ""
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(names))}"


@functools.cache
def _model(stage: str) -> type[BaseModel]:
    """The options of a stage, each of its type, as pydantic checks them."""
    fields: dict[str, Any] = dict(_fields(stage))
    return create_model(f"{stage.title()}Options", __config__=_STRICT, **fields)


@functools.cache
def _fields(stage: str) -> dict[str, tuple[Any, Any]]:
    """Type and default of every option of a stage that a recipe may hold."""
    kind, left_out = STAGES[stage]
    return {name: (hint, default) for name, hint, default in _typed(kind) if name not in left_out}


def _typed(kind: type) -> Iterator[tuple[str, Any, Any]]:
    hints, options = get_type_hints(kind), {field.name for field, _ in declared(kind)}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _typed(hints[field.name])
        elif field.name in options:
            yield field.name, hints[field.name], field.default


def _flat(options: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value)
        else:
            yield field.name, value


def _as_typed(kind: type, name: str, value: Any) -> str:
    """An option as it stands on the command line."""
    hints = get_type_hints(kind)
    nested = [hints[field.name] for field in dataclasses.fields(kind) if dataclasses.is_dataclass(hints[field.name])]
    found = [one for each in (kind, *nested) for field, one in declared(each) if field.name == name]
    flag = found[0].flags[0] if found else f"--{name.replace('_', '-')}"
    if "/" in flag:
        return flag.split("/")[not value]
    return flag if found and found[0].const is not None else f"{flag} {spelled(value)}"


def _built(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    hints = get_type_hints(kind)
    return kind(
        **{
            field.name: _built(hints[field.name], values)
            if dataclasses.is_dataclass(hints[field.name])
            else values[field.name]
            for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        }
    )
