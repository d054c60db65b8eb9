"""The recipe: plain data there and back, and as text."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from saten_runtime.bundle.manifest import read_manifest
from saten_runtime.bundle.recipe import Recipe, Stage, options_of, recipe_lines, versions_here
from saten_runtime.errors import BundleError

SHA = "0123456789abcdef" * 4
COMPRESS = Stage(
    "compress",
    {"budget": 0.25, "order": 4, "eps": None, "include": ["*"], "searched": False, "lowering": {"head.*": "dense"}},
    {"model": {"model": "bert", "sha256": SHA}},
    versions={"torch": "2.13.0"},
)
RECIPE = Recipe((COMPRESS,)).then(Stage("finetune", {"steps": 9}, outcome={"steps": 7, "ended": "minutes"}))


@dataclass
class Options:
    minutes: float
    names: tuple[str, ...]


def test_there_and_back() -> None:
    written = json.loads(json.dumps(RECIPE.to_json(), allow_nan=False))
    assert Recipe.from_json(written, "recipe", BundleError) == RECIPE
    assert [stage["stage"] for stage in written] == ["compress", "finetune"]
    written[0]["options"]["budget"] = 0.5
    assert Recipe.from_json(written, "recipe", BundleError) != RECIPE


def test_a_precision_that_bytes_were_not_counted_at_is_named() -> None:
    counted = Recipe((Stage("compress", {"precision": "int8"}), Stage("finetune", {"precision": "fp32"})))
    (words,) = counted.other_precision(["int4", "fp32"])
    assert words.startswith("--precision int4,fp32: the compression counted the bytes of int8")
    assert counted.other_precision(["int4", "int8"]) == []
    # What counts is the last compression, and one by the bytes of the checkpoint is for any precision.
    assert counted.then(Stage("compress", {"precision": None})).other_precision(["fp32"]) == []
    assert RECIPE.other_precision(["int8"]) == Recipe().other_precision(["int8"]) == []


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Stage)])
def test_a_stage_lacks_nothing(field: str) -> None:
    written = RECIPE.to_json()
    del written[1][field]
    with pytest.raises(BundleError, match=r"recipe\[1\]: expected an object of stage, options"):
        Recipe.from_json(written, "recipe", BundleError)


def test_options_of_dataclasses() -> None:
    found = options_of(Options(math.inf, ("a", "b\n")), order=3, rules={"x.*": "dense"}, name="a" * 2000)
    assert found == {
        "minutes": None,
        "names": ["a", "b\\n"],
        "order": 3,
        "rules": {"x.*": "dense"},
        "name": "a" * 1000,
    }
    Recipe.from_json(Recipe((Stage("s", found),)).to_json(), "recipe", BundleError)


def test_versions() -> None:
    assert "onnxruntime" in versions_here()  # on a board none of the others is installed
    assert all(version[0].isdigit() for version in versions_here().values())


def test_as_text() -> None:
    assert recipe_lines(RECIPE) == [
        "recipe: compress budget=0.25, order=4, eps=None, include=[*], searched=False, lowering={head.*: dense}",
        "  model: model=bert, sha256=0123456789ab",
        "  versions: torch=2.13.0",
        "recipe: finetune steps=9",
        "  outcome: steps=7, ended=minutes",
    ]
    assert recipe_lines(None) == ["recipe: not recorded"]


def test_a_manifest_carries_it(tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    path = copy_of(tiny) / "saten_edge.json"
    values: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "recipe": RECIPE.to_json()}))
    manifest = read_manifest(path.parent)
    assert manifest.recipe == RECIPE
    assert manifest.to_json()["recipe"] == RECIPE.to_json()
