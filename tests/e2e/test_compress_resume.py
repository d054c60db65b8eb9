"""An interrupted `compress` goes on where it stopped, and ends with the same bytes."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

WAIT_S = 120


@pytest.fixture
def arguments(tiny_bert: Path, texts: list[str], tmp_path: Path) -> list[object]:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:32]))
    return ["compress", tiny_bert, "--calibration", data, "--budget", 0.4, "--rounds", 4]


@contextlib.contextmanager
def running(arguments: list[object], out: Path, offline: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A run that has two layers."""
    command = [sys.executable, "-m", "saten_edge", *map(str, arguments), "-o", str(out)]
    process = subprocess.Popen(command, env=offline, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    end = time.monotonic() + WAIT_S
    try:
        while len(list(out.parent.glob(f".{out.name}.compression/*.safetensors"))) < 3:  # what was measured, two layers
            assert process.poll() is None, "it was over before its second layer"
            assert time.monotonic() < end
            time.sleep(0.002)
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupted(arguments: list[object], out: Path, number: int, offline: dict[str, str]) -> tuple[int, str]:
    """The exit code and the last words of a run that gets a signal after its second layer."""
    with running(arguments, out, offline) as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=WAIT_S)
        return process.returncode, stderr


def test_it_goes_on_after_ctrl_c_and_after_a_kill(
    arguments: list[Any], saten_edge: Command, offline: dict[str, str], tmp_path: Path
) -> None:
    whole = saten_edge(*arguments, "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "new" / "out"
    code, words = interrupted(arguments, out, signal.SIGINT, offline)
    assert code == 130
    assert words.splitlines()[-1].startswith("saten-edge: interrupted; --resume goes on after ")
    assert [path.name for path in out.parent.iterdir()] == [".out.compression"]
    other = saten_edge(*arguments, "--order", 3, "-o", out, "--resume")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "had another options; repeat its options, or leave out --resume" in other.stderr
    done = saten_edge(*arguments, "-o", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout == whole.stdout
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_without_resume_it_starts_anew(
    arguments: list[Any], saten_edge: Command, offline: dict[str, str], tmp_path: Path
) -> None:
    """The same command is not refused for what an interrupted one left."""
    out = tmp_path / "out"
    code, _ = interrupted(arguments, out, signal.SIGKILL, offline)
    assert code == -signal.SIGKILL
    done = saten_edge(*arguments, "-o", out, "--budget", 0.5)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob(".out.*"))


@pytest.mark.slow
def test_a_layer_that_was_kept_is_not_made_again(
    arguments: list[Any], saten_edge: Command, offline: dict[str, str], tmp_path: Path
) -> None:
    """The twin: one that was damaged is looked at, and refused."""
    out = tmp_path / "out"
    interrupted(arguments, out, signal.SIGKILL, offline)
    layers = [p for p in tmp_path.glob(".out.compression/*.safetensors") if p.name != "measured.safetensors"]
    layers[0].write_bytes(layers[0].read_bytes()[:-8])
    done = saten_edge(*arguments, "-o", out, "--resume")
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be read" in done.stderr
    assert "leave out --resume to start anew" in done.stderr


def test_a_second_run_into_one_output_is_refused(
    arguments: list[Any], saten_edge: Command, offline: dict[str, str], tmp_path: Path
) -> None:
    """Stopped, so that it is not over before the other one has started; it then ends well."""
    out = tmp_path / "out"
    with running(arguments, out, offline) as first:
        first.send_signal(signal.SIGSTOP)
        second = saten_edge(*arguments, "-o", tmp_path / "." / "out")
        first.send_signal(signal.SIGCONT)
        assert (second.returncode, second.stdout, second.stderr.count("\n")) == (2, "", 1)
        assert f"is being written by another run (process {first.pid})" in second.stderr
        _, stderr = first.communicate(timeout=WAIT_S)
        assert first.returncode == 0, stderr
    assert (out / "model.safetensors").is_file()
