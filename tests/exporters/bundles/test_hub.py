"""Uploads, to a hub made of two functions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

from saten_exporters.bundles.hub import check_repository, push
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import BundleError, SatenError, UsageError
from saten_runtime.records.files import sha256_file

TOKEN = "hf_notarealtokenjustletters"
ADDRESS = "https://hub/owner/name/commit/1"


class Hub:
    """What was asked of it, and the files it got; `fails` is raised by an upload."""

    def __init__(self, store: Path) -> None:
        self.store, self.asked, self.fails = store, list[tuple[str, dict[str, Any]]](), None

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.asked.append((repo_id, options))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        if self.fails:
            raise self.fails
        shutil.copytree(folder_path, self.store / repo_id)
        self.asked.append((repo_id, {"commit_message": commit_message}))
        return SimpleNamespace(commit_url=ADDRESS)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(HfApi, "create_repo", made.create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", made.upload_folder)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return made


@pytest.fixture
def bundle(bundle_of: Callable[[str, str], Bundle], tmp_path: Path) -> Path:
    shutil.copytree(bundle_of("saten", "int8").path, tmp_path / "out")
    return tmp_path / "out"


def content(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): sha256_file(file) for file in folder.rglob("*") if file.is_file()}


def test_a_bundle_arrives_whole(hub: Hub, bundle: Path) -> None:
    assert push(bundle, "owner/name", private=True) == ADDRESS
    assert hub.asked == [
        ("owner/name", {"private": True, "exist_ok": True}),
        ("owner/name", {"commit_message": "Upload out with saten-edge"}),
    ]
    assert content(hub.store / "owner" / "name") == content(bundle)
    assert Bundle.open(hub.store / "owner" / "name").name == "saten-int8"


@pytest.mark.parametrize(
    "name",
    ["", "name", "owner/", "/name", "owner/name/more", "owner name/x", "owner/na--me", "../name", "owner/.name", "ö/x"],
)
def test_a_name_that_is_none(name: str, hub: Hub, bundle: Path) -> None:
    with pytest.raises(UsageError, match="expected owner/name"):
        push(bundle, name)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["owner/name", "o/n", "Big-Org_1/model.v2"])
def test_a_name_that_is_one(name: str) -> None:
    check_repository(name)


@pytest.mark.parametrize("failure", [OSError("connection lost"), RuntimeError(f"401 for\n{TOKEN}"), ValueError()])
def test_a_failing_upload_leaves_the_bundle_and_says_how_to_repeat(failure: Exception, hub: Hub, bundle: Path) -> None:
    before, hub.fails = content(bundle), failure
    with pytest.raises(SatenError) as caught:
        push(bundle, "owner/name")
    said = str(caught.value)
    assert said.endswith(f"repeat with: saten-edge push {bundle} owner/name")
    assert "\n" not in said
    assert TOKEN not in said
    assert content(bundle) == before
    hub.fails = None
    assert push(bundle, "owner/name") == ADDRESS


def test_a_damaged_bundle_stays_here(hub: Hub, bundle: Path) -> None:
    (bundle / "model.onnx.data").write_bytes(b"cut")
    with pytest.raises(BundleError, match="3 bytes, the manifest says"):
        push(bundle, "owner/name")
    assert hub.asked == []


def test_any_other_folder_stays_here(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("diary")
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UsageError, match="neither a bundle nor"):
            push(folder, "owner/name")
    assert hub.asked == []


def test_the_command(hub: Hub, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from saten_edge.cli.commands import main

    with pytest.raises(SystemExit) as caught:
        main(["push", str(bundle), "owner/name"])
    assert not caught.value.code
    assert capsys.readouterr().out == f"{ADDRESS}\n"
    hub.fails = OSError("connection lost")
    with pytest.raises(SystemExit) as caught:
        main(["push", str(bundle), "owner/name"])
    assert caught.value.code == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith(f"saten-edge: error: {bundle}: not uploaded to owner/name (connection lost)")


def test_export_refuses_a_name_before_it_works(
    hub: Hub, tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from saten_edge.cli.commands import main

    monkeypatch.setattr("saten_edge.stages.load_model", lambda _: pytest.fail("loaded all the same"))
    with pytest.raises(SystemExit) as caught:
        main(["export", str(tiny_bert), "-o", str(tmp_path / "out"), "--push-to-hub", "nobody"])
    assert caught.value.code == 2
    assert "expected owner/name" in capsys.readouterr().err
    assert hub.asked == []
    assert not (tmp_path / "out").exists()
