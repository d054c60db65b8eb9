"""The Python API: the script and the notebooks of docs/ run as they stand, and `help` shows what the script uses."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import saten_edge

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT, NOTEBOOKS = DOCS / "notebook.py", sorted((DOCS / "notebooks").glob("*.ipynb"))
STAGES = ("compress", "finetune", "export", "bench", "evaluate", "report")


def lines(source: str) -> list[str]:
    """The lines of a script that do something: no docstring, comments, imports and blanks."""
    body = ast.parse(source).body
    told = [node for node in body if not isinstance(node, (ast.Import, ast.ImportFrom, ast.Expr))]
    told += [node for node in body if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)]
    numbers = {number for node in told for number in range(node.lineno, node.end_lineno + 1)}
    return [line for number, line in enumerate(source.splitlines(), 1) if number in numbers]


def test_it_goes_from_weights_to_a_report(tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, tiny_bert, data, tmp_path / "out", "0.02"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"compressed", "finetuned", "dense-fp32", "saten-int8", "bench", "report.html"}
    page = (tmp_path / "out" / "report.html").read_text()
    measured = json.loads((tmp_path / "out" / "bench" / "bench.json").read_text())
    assert {cell["bundle"] for cell in measured["cells"]} == {"dense-fp32", "saten-int8"}
    assert all(name in page for name in ("dense-fp32", "saten-int8", "recall"))


def test_it_takes_at_most_fifteen_lines_and_every_stage() -> None:
    source = SCRIPT.read_text()
    assert len(lines(source)) <= 15
    assert all(f"se.{stage}(" in source for stage in STAGES)


@pytest.mark.parametrize(("source", "count"), [('"""a\nb"""\nimport c\n\nd = 1\n# e\n', 1), ("f(\n    1,\n)\n", 3)])
def test_lines_are_counted(source: str, count: int) -> None:
    assert len(lines(source)) == count


def code_of(notebook: dict[str, Any]) -> str:
    return "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", code_of(json.loads(path.read_text("utf-8")))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r"^(\S+): (\d+) bytes, (\d+) of (\d+) ", done.stdout, re.MULTILINE)
    (dense, whole, *before), (tuned, less, *after) = found
    assert (dense, tuned) == ("dense-fp32", "tuned-int8")
    assert 2 * int(less) < int(whole)
    for right, asked in (before, after):
        assert int(right) >= 0.6 * int(asked)  # a guess is right a third of the time at most


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_results(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["cells"][0]["cell_type"]) == (4, "markdown")
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_help_shows_the_functions_with_their_types() -> None:
    command = [sys.executable, "-c", "import saten_edge; help(saten_edge)"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=100).stdout
    for name in STAGES:
        assert f"\n    {name}(" in shown
        assert getattr(saten_edge, name).__doc__.split("\n")[0] in shown
        parameters = inspect.signature(getattr(saten_edge, name)).parameters.values()
        assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)
    assert "class CompressOptions" in shown


def test_every_public_name_is_there() -> None:
    assert all(getattr(saten_edge, name) is not None for name in saten_edge.__all__)
    assert set(saten_edge.__all__) <= set(dir(saten_edge))
    with pytest.raises(AttributeError, match="module 'saten_edge' has no attribute 'compres'"):
        saten_edge.compres  # noqa: B018


def test_importing_it_imports_no_torch() -> None:
    light = (
        "import sys, saten_edge; saten_edge.CompressOptions(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    heavy = f"{light}; saten_edge.compress; print('torch' in sys.modules)"
    for code, expected in ((light, "False False\n"), (heavy, "False False\nTrue\n")):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == expected


def test_progress_is_told_stage_by_stage(tiny_bert: Path, texts: list[str], tmp_path: Path) -> None:
    calls: list[tuple[str, float, float, str]] = []
    options = saten_edge.CompressOptions(0.4, group=8, recipe=saten_edge.Recipe(rounds=1, share=0.6))
    told = lambda *call: calls.append(call)  # noqa: E731
    saten_edge.compress(tiny_bert, tmp_path / "out", options, calibration=texts[:8], progress=told)
    stages = list(dict.fromkeys(stage for stage, *_ in calls))
    assert stages == ["calibrate on 8 texts", "compress 14 matrices to 0.4 of their bytes"]
    for stage in stages:
        mine = [call[1:] for call in calls if call[0] == stage]
        assert (mine[0], mine[-1]) == ((0, 1, ""), (1, 1, ""))
        assert all(0 <= done <= total for done, total, _ in mine)
