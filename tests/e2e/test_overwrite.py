"""`--overwrite`, as a person types it, at what must not be lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]

# command → its options, and the place of the output in a refusal
COMMANDS: dict[str, tuple[str, ...]] = {
    "trim": ("trim", "{model}", "--data", "{data}", "-q"),
    "compress": ("compress", "{model}", "--rounds", "1", "-q"),
    "finetune": ("finetune", "{model}", "--data", "{data}", "--teacher", "{model}", "--steps", "1", "-q"),
    "import": ("import", "{model}", "--base", "{model}", "-q"),
    "export": ("export", "{model}", "-q"),
    "export for transformers.js": ("export", "{model}", "--layout", "transformersjs", "-q"),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def work(tiny_saten: Path, data: Path, tmp_path: Path) -> Path:
    """A Saten checkpoint in a folder of results, data beside it, and a thesis."""
    shutil.copytree(tiny_saten, tmp_path / "work" / "model")
    shutil.copyfile(data, tmp_path / "work" / "data.jsonl")
    (tmp_path / "work" / "thesis.tex").write_text("years of work")
    return tmp_path / "work"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("model", "model: is what is read"),
        ("../work/model/", "work/model: is what is read"),
        (".", ".: is the current folder or one around it"),
        ("..", "..: is the current folder or one around it"),
    ],
)
def test_what_is_read_and_where_one_stands_are_kept(
    name: str, output: str, words: str, work: Path, saten_edge: Command
) -> None:
    before = contents(work)
    arguments = [part.format(model="model", data="data.jsonl") for part in COMMANDS[name]]
    done = saten_edge(*arguments, "-o", output, "--overwrite", cwd=work)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("saten-edge: error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(work) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_of_somebody_is_kept(name: str, work: Path, tmp_path: Path, saten_edge: Command) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    arguments = [part.format(model="work/model", data="work/data.jsonl") for part in COMMANDS[name]]
    for output, words in (("mine", "was not written by saten-edge"), ("work", "holds work/model, which is read")):
        done = saten_edge(*arguments, "-o", output, "--overwrite", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert contents(tmp_path) == before


def test_what_was_written_is_replaced(tiny_bert: Path, tmp_path: Path, saten_edge: Command) -> None:
    arguments = ("compress", tiny_bert, "-o", tmp_path / "out", "--rounds", 1, "-q", "--overwrite")
    for _ in range(2):
        assert saten_edge(*arguments).returncode == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    done = saten_edge(*arguments)
    assert done.returncode == 2
    assert "out: holds notes.txt, which saten-edge did not write" in done.stderr
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
