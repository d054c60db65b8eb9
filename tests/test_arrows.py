"""The arrows between the packages point one way: saten_edge → saten_exporters → saten_runtime."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import saten_edge
import saten_exporters
import saten_runtime

FORBIDDEN = {
    saten_runtime: {"saten_edge", "saten_exporters", "torch", "transformers", "onnx", "onnx_ir", "onnxscript"},
    saten_exporters: {"saten_edge"},
    saten_edge: set(),
}
FILES = {path: package for package in FORBIDDEN for path in sorted(Path(package.__path__[0]).rglob("*.py"))}


def imported(source: str) -> Iterator[str]:
    """Top-level names of everything a file imports, at any depth, by statement or `import_module("…")`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield str(node.module).partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0]
            yield str(name.value).partition(".")[0] if isinstance(name, ast.Constant) else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_imports_nothing_from_above(path: Path):
    package = FILES[path]
    assert not set(imported(path.read_text("utf-8"))) & FORBIDDEN[package]


def test_the_scan_covers_the_three_packages():
    assert [sum(package is other for other in FILES.values()) > 2 for package in FORBIDDEN] == [True] * 3


@pytest.mark.parametrize(
    "line",
    [
        "import torch",
        "import torch.nn as nn",
        "from torch.nn import Linear",
        "def f():\n    from torch import nn",
        "import importlib\nimportlib.import_module('torch.nn')",
    ],
)
def test_the_scan_finds_an_arrow_that_points_up(line: str):
    assert set(imported(line)) & FORBIDDEN[saten_runtime] == {"torch"}
