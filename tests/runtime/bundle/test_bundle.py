"""Bundles that must be refused: by the library with one error, by the command line with one line and exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saten_runtime import Bundle
from saten_runtime.bundle.folder import open_bundles
from saten_runtime.errors import BundleError

Damage = Callable[[Path], Any]


def edit(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "saten_edge.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def swap_byte(folder: Path) -> None:
    path = folder / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)


def link(folder: Path) -> None:
    path = folder / "model.onnx"
    (folder / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to("elsewhere")


DAMAGES = {
    "a byte": (swap_byte, "sha256 differs"),
    "truncated graph": (lambda f: (f / "model.onnx").write_bytes(b"abc"), "3 bytes, the manifest says"),
    "truncated manifest": (lambda f: (f / "saten_edge.json").write_text('{"schema_ver'), "not JSON"),
    "no manifest": (lambda f: (f / "saten_edge.json").unlink(), "has no saten_edge.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no regular file"),
    "a link": (link, "no regular file"),
    "newer schema": (edit(schema_version=5), "schema version 5, this saten-runtime reads 1, 2, 3, 4"),
    "unknown field": (edit(colour="red"), "'colour'"),
    "wrong type": (edit(opset="20"), "found '20', expected a whole number"),
    "path outside": (edit(files={"../x": {"bytes": 1, "sha256": ""}}), "not a path inside the bundle"),
    "absolute path": (edit(files={"/etc/passwd": {"bytes": 1, "sha256": ""}}), "not a path inside the bundle"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_bundle_is_refused(name: str, tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    damage, words = DAMAGES[name]
    folder = copy_of(tiny)
    Bundle.open(folder)
    damage(folder)
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a byte", "truncated graph", "newer schema"])
@pytest.mark.parametrize(
    "command", [["predict", "BUNDLE", "w1"], ["bench", "BUNDLE", "-s", "8"], ["profile", "BUNDLE"]]
)
def test_command_line_refuses_in_one_line(
    name: str, command: list[str], tiny: Path, copy_of: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from saten_runtime.cli import main

    damage, words = DAMAGES[name]
    folder = copy_of(tiny)
    damage(folder)
    assert main([str(folder) if part == "BUNDLE" else part for part in command]) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("saten-run: error: ")
    assert stderr.count("\n") == 1
    assert words in stderr


def test_sizes_alone_can_be_checked(tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(tiny)
    swap_byte(folder)
    assert Bundle.open(folder, check_content=False).name == "tiny"
    (folder / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="0 bytes"):
        Bundle.open(folder, check_content=False)


def test_names_met_again_are_numbered(tiny: Path, slow: Path) -> None:
    assert list(open_bundles([tiny, Bundle.open(slow), tiny, str(tiny)])) == ["tiny", "slow", "tiny#2", "tiny#3"]
