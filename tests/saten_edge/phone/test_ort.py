"""The engine is the one that was tested, or none."""

from __future__ import annotations

import shutil

import pytest

from saten_edge.phone import ort
from saten_edge.phone.app import PAGE
from saten_runtime.errors import RuntimeMismatch


def test_every_file_is_read_and_checked():
    assert set(ort.read_files()) == set(ort.FILES) == {ort.MODULE, ort.WASM}


@pytest.mark.parametrize("name", ort.FILES)
@pytest.mark.parametrize("fault", ["missing", "another version"])
def test_a_missing_or_foreign_file(name, fault, tmp_path):
    shutil.copytree(ort.FOLDER, tmp_path / "ort")
    path = tmp_path / "ort" / name
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RuntimeMismatch, match="run `make web`"):
        ort.read_files(tmp_path / "ort")


def test_the_table_of_the_page_names_every_file_there_is(static):
    there = {path.name for path in static.iterdir() if path.is_file()}
    assert {name for name, _ in PAGE.values()} == there


def test_the_page_that_works_offline_keeps_every_file(static):
    source = (static / "offline.js").read_text()
    for route in PAGE:
        stem = route.strip("/").removesuffix(".js")
        assert f'"{route}"' in source or f'"{stem}"' in source or stem == "offline", route
