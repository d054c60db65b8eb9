"""What may be replaced: a folder that was written here, all of it, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from saten_runtime.errors import UsageError
from saten_runtime.machine.lock import output_lock
from saten_runtime.records.folders import MARK, check_output, new_folder


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    with new_folder(out) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("old")
    return out


def test_what_was_written_here_is_replaced(ours: Path) -> None:
    with new_folder(ours, overwrite=True) as folder:
        (folder / "other").write_text("new")
    assert {path.name for path in ours.iterdir()} == {"other", MARK}


def test_an_empty_folder_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "out" / "file").read_text() == "new"


SPOILERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file of somebody": (lambda out: (out / "thesis.tex").write_text("years"), "holds thesis.tex, which"),
    "one further down": (lambda out: (out / "inner" / "thesis.tex").write_text("years"), "holds inner/thesis.tex"),
    "a link": (lambda out: (out / "more").symlink_to("/tmp"), "holds more, which"),
    "no mark": (lambda out: (out / MARK).unlink(), "was not written by saten-edge"),
    "a damaged mark": (lambda out: (out / MARK).write_text("{"), "was not written by saten-edge"),
    "another's mark": (lambda out: (out / MARK).write_text("[1]"), "was not written by saten-edge"),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_anything_else_in_it_keeps_it(spoiler: str, ours: Path) -> None:
    spoil, words = SPOILERS[spoiler]
    spoil(ours)
    before = sorted(path.name for path in ours.rglob("*"))
    with pytest.raises(UsageError, match=words), new_folder(ours, overwrite=True):
        raise AssertionError("it was refused before")
    assert sorted(path.name for path in ours.rglob("*")) == before


def test_what_comes_there_while_the_new_one_is_written_is_kept(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds thesis\.tex"), new_folder(ours, overwrite=True):
        (ours / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="already exists"), new_folder(tmp_path / "new"):
        (tmp_path / "new").mkdir()
    assert (ours / "thesis.tex").read_text() == "years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "out"]


def test_links_and_files_are_kept(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(ours)
    (tmp_path / "file").write_text("mine")
    for name in ("link", "file"):
        with pytest.raises(UsageError, match=f"{name}: is not a folder"), new_folder(tmp_path / name, overwrite=True):
            raise AssertionError("it was refused before")


def test_the_current_folder_and_those_around_it_are_kept(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ours / "inner")
    for path in (".", "..", "../inner", "/", str(ours)):
        with pytest.raises(UsageError, match="is the current folder or one around it"):
            check_output(Path(path), overwrite=True)


def test_inputs_are_kept(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(ours)
    with pytest.raises(UsageError, match=r"out: is what is read"):
        check_output(ours, overwrite=True, inputs=["owner/name", tmp_path / "link"])
    with pytest.raises(UsageError, match=r"out: holds .*file, which is read"):
        check_output(ours, overwrite=True, inputs=[None, ours / "inner" / "file"])
    check_output(ours, overwrite=True, inputs=[tmp_path])


def test_parents_that_were_made_for_it_go_with_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a" / "b" / "out"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_output_has_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with output_lock(tmp_path / "out"):
        with (
            pytest.raises(UsageError, match=r"is being written by another run \(process [0-9]+\)"),
            output_lock(Path("out")),
        ):
            raise AssertionError("it was refused before")
        with output_lock(tmp_path / "other"):
            pass
    with output_lock(Path("out")):
        assert list(tmp_path.iterdir()) == []
