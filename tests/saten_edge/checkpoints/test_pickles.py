"""Pickles are read in another process, and nothing of it but tensors comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from saten_edge.checkpoints import pickles
from saten_edge.checkpoints.pickles import convert_pickle
from saten_runtime.errors import CheckpointError


def save(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_back_as_they_were(zipped: bool, tmp_path: Path) -> None:
    """Of every type, views and shared values among them."""
    shared = torch.arange(12.0).reshape(3, 4)
    state = {
        "shared.weight": shared,
        "tied.weight": shared,
        "view": shared.T[1:],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "index": torch.tensor([1, -2]),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(0.5),
        "nothing": torch.zeros(0, 3),
    }
    source = save(tmp_path / "state.pt", state, _use_new_zipfile_serialization=zipped)
    convert_pickle(source, tmp_path / "state.safetensors")
    found = load_file(tmp_path / "state.safetensors")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def refusal(source: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        convert_pickle(source, source.with_suffix(".safetensors"))
    assert not source.with_suffix(".safetensors").exists()
    return str(caught.value)


def test_it_is_read_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read in this process"))
    convert_pickle(save(tmp_path / "state.pt", {"a": torch.ones(1)}), tmp_path / "state.safetensors")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import time; time.sleep(60)", "gave no answer to 'convert' within 0.4 s"),
        ("", "ended with exit code 0"),
    ],
)
def test_a_reader_that_does_not_survive(code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_CONVERTER", code)
    monkeypatch.setattr(pickles, "_PATIENCE", 0.4 / 60)
    message = refusal(save(tmp_path / "state.pt", {"a": torch.ones(1)}))
    assert message.startswith(f"{tmp_path / 'state.pt'}: the process that read it died")
    assert words in message


TRIED = """
import json, resource, sys
from pathlib import Path
from saten_edge.checkpoints import pickles
pickles._limit(Path(json.loads(sys.stdin.readline())["source"]))
try:
    {code}
except (MemoryError, OSError) as cause:
    print(json.dumps({{"error": type(cause).__name__}}))
else:
    print(json.dumps({{"ok": {{}}}}))
"""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = bytearray(600 << 20)", "MemoryError"),
        ("x = bytearray(400 << 20)", None),
        ("open('big', 'wb').write(bytes(8 << 20))", "OSError"),
        ("open('big', 'wb').write(bytes(1 << 20))", None),
        ("assert 60 < resource.getrlimit(resource.RLIMIT_CPU)[1] < 90", None),
        ("assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)", None),
        (
            "pickles._lower(resource.RLIMIT_NOFILE, 64)\n    pickles._lower(resource.RLIMIT_NOFILE, 65)\n"
            "    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (64, 64)",
            None,
        ),
    ],
)
def test_the_limits(code: str, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is met a little above what is allowed, and not below."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pickles, "_CONVERTER", TRIED.format(code=code))
    source = save(tmp_path / "state.pt", {"a": torch.ones(1)})
    if words is None:
        convert_pickle(source, tmp_path / "state.safetensors")
    else:
        assert words in refusal(source)
