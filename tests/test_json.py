"""JSON has no NaN and no infinity: whoever writes it says so to Python, which would write them else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("saten_edge", "exporters/saten_exporters", "runtime/saten_runtime", "benchmarks", "tools")
STRICT = "allow_nan"


def loose(source: str) -> Iterator[int]:
    """Lines that call json.dump or json.dumps without `allow_nan=False`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps"):
            given = {each.arg: ast.unparse(each.value) for each in node.keywords}
            if given.get(STRICT) != "False":
                yield node.lineno


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_writer_of_json_is_strict(folder: str) -> None:
    paths = list((ROOT / folder).rglob("*.py"))
    found = [f"{path}:{line}" for path in paths for line in loose(path.read_text("utf-8"))]
    assert paths
    assert found == []


@pytest.mark.parametrize("call", ["json.dumps(x)", "json.dump(x, f, indent=2)", "json.dumps(x, allow_nan=True)"])
def test_one_that_is_not_is_seen(call: str) -> None:
    assert list(loose(f"import json\n{call}\n")) == [2]
    assert list(loose("json.dumps(x, allow_nan=False)")) == []
