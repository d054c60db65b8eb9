"""Files from elsewhere are opened with care, and what dead writers left is swept."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from saten_runtime.errors import BundleError, DataError
from saten_runtime.records import files, folders
from saten_runtime.records.files import open_regular, parse_json, read_regular_json, replace_file
from saten_runtime.records.folders import new_folder


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that is over."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write(folder: Path, content: str) -> None:
    folder.mkdir()
    (folder / "file").write_text(content)


def test_what_a_dead_process_left_is_swept_and_a_living_ones_is_not(tmp_path: Path, dead: int) -> None:
    write(tmp_path / f".out.partial-{dead}", "half")
    write(tmp_path / f".out.partial-{os.getppid()}", "another's")
    write(tmp_path / f".other.partial-{dead}", "of another output")
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("new")
    names = {"out", f".out.partial-{os.getppid()}", f".other.partial-{dead}"}
    assert {path.name for path in tmp_path.iterdir()} == names
    (tmp_path / f".file.partial-{dead}").write_text("half")
    replace_file(tmp_path / "file", b"new")
    assert {path.name for path in tmp_path.iterdir()} == {*names, "file"}


def test_who_died_between_two_renames_left_the_old_one_and_it_is_put_back(tmp_path: Path, dead: int) -> None:
    write(tmp_path / f".out.old-{dead}", "old")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out", overwrite=True):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "old"


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_takes_anothers_place(tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file system cannot exchange two names."""
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("old")
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "new"


def test_the_number_in_the_words_of_a_library_becomes_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, new_folder(tmp_path / "out"):
        raise RuntimeError("I/O error: it is full (os error 28)")
    assert caught.value.filename == str(tmp_path / "out")
    with pytest.raises(RuntimeError, match="another"), new_folder(tmp_path / "out"):
        raise RuntimeError("another")
    assert list(tmp_path.iterdir()) == []


def test_an_error_without_a_number_says_how_much_is_free(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="requested") as caught, new_folder(tmp_path / "out"):
        raise OSError("30720 requested and 0 written")
    assert caught.value.filename == str(tmp_path / "out")
    assert re.fullmatch(r"30720 requested and 0 written; [0-9]+ MiB were free", caught.value.strerror)


def test_an_error_without_a_name_gets_that_of_what_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "out")


def test_the_name_an_error_has_stays(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, new_folder(tmp_path / "out"):
        (tmp_path / "nowhere").read_text()
    assert caught.value.filename == str(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["a link", "a folder", "a pipe", "missing"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    (tmp_path / "sound").write_bytes(b"{}")
    make = {
        "a link": lambda: path.symlink_to("sound"),
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "missing": lambda: None,
    }
    make[kind]()
    with pytest.raises(BundleError, match=f"{path}: is no regular file"):
        open_regular(path, BundleError)
    with open_regular(tmp_path / "sound", BundleError) as file:
        assert file.read() == b"{}"


def test_a_file_of_json_has_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_JSON_BYTES", 10)
    (tmp_path / "a").write_bytes(b'{"a":  12}')
    assert read_regular_json(tmp_path / "a", DataError) == {"a": 12}
    (tmp_path / "a").write_bytes(b'{"a":  123}')
    with pytest.raises(DataError, match="has more than 10 bytes"):
        read_regular_json(tmp_path / "a", DataError)


@pytest.mark.parametrize("text", ["1e999", "-1e999", "NaN", "Infinity", '{"a": 1, "a": 1}', "9" * 5000])
def test_json_that_is_not_strict(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own, and ours
        parse_json(text.encode())
    assert parse_json(b'{"a": 1e99}') == {"a": 1e99}
