"""Who may import whom: packages, rooms, modules. The arrows point one way, and no file or function is long."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import saten_edge
import saten_exporters
import saten_runtime

PACKAGES = (saten_edge, saten_exporters, saten_runtime)
FORBIDDEN = {
    saten_runtime: {"saten_edge", "saten_exporters", "torch", "transformers", "onnx", "onnx_ir", "onnxscript"},
    saten_exporters: {"saten_edge"},
    saten_edge: set(),
}
FILES = {path: package for package in FORBIDDEN for path in sorted(Path(package.__path__[0]).rglob("*.py"))}

# The rooms of each package, a module beside them counting as one, in the order in which they may import each other:
# each only those before it. The package's own `__init__` shows what is inside, and anybody may ask it for the version.
ROOMS = {
    "saten_runtime": (
        *(
            "errors",
            "start",
            "lazy",
            "vocabulary",
            "options",
            "records",
            "machine",
            "bundle",
            "run",
            *("runner", "generation", "parity"),
            "bench",
            "accuracy",
            "serve",
        ),
        *("doctor", "arguments", "cli", "__main__"),
    ),
    "saten_exporters": (
        "exportable",
        "grids",
        "two_bits",
        "quantize",
        "forms",
        "choice",
        "tracing",
        "passes",
        "sources",
        "bundles",
    ),
    "saten_edge": (
        *(
            "console",
            "units",
            "corpus",
            "texts",
            "images",
            "ranks",
            "processor",
            "decomposition",
            "engines",
            "checkpoints",
            "registration",
            "training",
            "reports",
        ),
        *("devices", "phone", "integrations", "options", "recipes", "methods", "trimming"),
        *("stages", "optimize", "demo", "cli", "__main__"),
    ),
}

LONGEST_FILE, LONGEST_FUNCTION = 450, 60
ROOT = Path(__file__).parents[1]
MEASURED = [
    path
    for folder in ("saten_edge", "exporters", "runtime", "benchmarks", "tools", "optimum", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


# --- the scan ----------------------------------------------------------------------------------------------------


def imported(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of everything a file imports, at any depth, by statement or `import_module("…")`.

    Names are "" where the module itself is imported. What only a type checker imports counts, too.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0]
            yield str(name.value) if isinstance(name, ast.Constant) else "", ""


def module_name(path: Path, folder: Path) -> str:
    """The module in a file, e.g. saten_runtime.run.session; that of an `__init__` is its package."""
    parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, str]:
    """Source of every module of the three packages, by name."""
    folders = [Path(package.__path__[0]) for package in PACKAGES]
    return {module_name(path, each): path.read_text("utf-8") for each in folders for path in sorted(each.rglob("*.py"))}


def arrows(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Who imports which of these modules."""
    found: dict[str, set[str]] = {name: set() for name in sources}
    for importer, source in sources.items():
        for module, name in imported(source):
            target = f"{module}.{name}" if f"{module}.{name}" in sources else module
            if target in sources and name != "__version__":
                found[importer].add(target)
    return found


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Modules that import each other in a ring, or none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def upward(graph: Mapping[str, Iterable[str]], rooms: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Arrows from a room to a later one of its package; an unlisted room is an error."""
    found = []
    for importer, targets in graph.items():
        package, _, inside = importer.partition(".")
        for target in targets if inside else ():
            if target.startswith(f"{package}."):
                here, there = (rooms[package].index(name.split(".")[1]) for name in (importer, target))
                found += [f"{importer} → {target}"] * (there > here)
    return found


def long_functions(source: str) -> list[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, functions)]
    return [node.name for node in found if (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION]


# --- packages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_imports_nothing_from_above(path: Path):
    package = FILES[path]
    assert not {module.partition(".")[0] for module, _ in imported(path.read_text("utf-8"))} & FORBIDDEN[package]


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
    assert {module.partition(".")[0] for module, _ in imported(line)} & FORBIDDEN[saten_runtime] == {"torch"}


# --- modules -----------------------------------------------------------------------------------------------------


def test_no_modules_import_each_other_in_a_circle():
    assert circle(arrows(modules())) == []


@pytest.mark.parametrize(
    "line", ["import p.a", "from p import a", "from p.a import x", "if TYPE_CHECKING:\n    import p.a"]
)
def test_the_scan_finds_a_circle(line: str):
    chain = {"p": "", "p.a": "from p.b import x", "p.b": "def f():\n    from p import c", "p.c": "x = 1"}
    assert circle(arrows(chain)) == []
    assert set(circle(arrows({**chain, "p.c": line}))) == {"p.a", "p.b", "p.c"}


# --- rooms -------------------------------------------------------------------------------------------------------


def test_every_room_has_its_place():
    names = [name.split(".") for name in modules()]
    for package, rooms in ROOMS.items():
        assert {inside[0] for first, *inside in names if first == package and inside} == set(rooms)


def test_rooms_import_only_those_before_them():
    assert upward(arrows(modules()), ROOMS) == []


def test_the_scan_finds_a_room_that_imports_a_later_one():
    rooms = {"p": ("low", "high")}
    sources = {"p": "from p.high import x", "p.low.a": "", "p.high": "from p.low.a import x"}
    assert upward(arrows(sources), rooms) == []
    assert upward(arrows({**sources, "p.low.a": "from p import high"}), rooms) == ["p.low.a → p.high"]
    with pytest.raises(ValueError, match="not in tuple"):
        upward(arrows({**sources, "p.other": "from p.low.a import x"}), rooms)


# --- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path):
    source = path.read_text("utf-8")
    assert len(source.splitlines()) <= LONGEST_FILE
    assert long_functions(source) == []


def test_the_scan_finds_a_long_function():
    body = "\n".join(["    x = 1"] * (LONGEST_FUNCTION - 1))
    assert long_functions(f"def short():\n{body}\n") == []
    assert long_functions(f"class C:\n  async def long(self):\n{body}\n    x = 2\n") == ["long"]
    assert len(MEASURED) > 150
