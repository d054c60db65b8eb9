"""Two processes share a calibration: the same moments and bytes as one, and whoever is lost ends all."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import saten_edge
from saten_edge.checkpoints.compress import compressible_layers
from saten_edge.checkpoints.models import load_model
from saten_edge.decomposition.recipe import Recipe
from saten_edge.methods.calibrate import calibrate
from saten_edge.options import CompressOptions
from saten_edge.ranks import ALONE, ranks_here
from saten_runtime.errors import DeviceError, UsageError

Done = subprocess.CompletedProcess[str]
# Both ways to calibrate; the leader writes what it finds.
MOMENTS = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from saten_edge.checkpoints.compress import compressible_layers
from saten_edge.checkpoints.models import load_model
from saten_edge.methods.calibrate import calibrate, calibrate_by_blocks
from saten_edge.ranks import ranks_here
model, texts, out = sys.argv[1:]
items, loaded = json.loads(Path(texts).read_text()), load_model(model)
layers = compressible_layers(loaded.model)
with ranks_here() as ranks:
    states = Path(out).with_name(f"states-{ranks.rank}")
    if ranks.leads:
        at_once = calibrate(loaded, layers, items, None, None, ranks=ranks).moments
        found = {f"whole.{k}": v.clone() for k, v in at_once.items()}
        ranks.end()
        blocks = calibrate_by_blocks(loaded, layers, items, states, ranks)
        save_file(found | {f"blocks.{k}": blocks[k].clone() for k in layers}, out)
    else:
        for _ in ranks.follow():
            calibrate(loaded, layers, items, None, None, ranks=ranks)
        calibrate_by_blocks(loaded, layers, items, states, ranks).follow()
"""
COMMAND = "import sys; from saten_edge.cli.commands import main; main(sys.argv[1:])"
# The follower is killed when the leader asks for the second block.
DIES = """
import os, signal
from saten_edge.checkpoints import blockwise
run = blockwise.BlockMoments._run
def dies(self, number):
    if number == 1 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    run(self, number)
blockwise.BlockMoments._run = dies
"""
OPTIONS = CompressOptions(budget=0.4, group=8, allocation="uniform", recipe=Recipe(rounds=1, share=0.6))
WORDS = ("--budget", "0.4", "--group", "8", "--allocation", "uniform", "--rounds", "1", "--share", "0.6", "-q")


@pytest.fixture(scope="module")
def together(warm_python: list[str], offline: dict[str, str]) -> Callable[..., list[Done]]:
    """Runs code in two processes, as torchrun would; nobody ends the one when the other is lost."""

    def run(code: str, *arguments: object) -> list[Done]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        line = [*warm_python, "-c", code, *map(str, arguments)]
        group = {**offline, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        with ThreadPoolExecutor(2) as threads:
            started = [
                threads.submit(
                    subprocess.run, line, env={**group, "RANK": str(k)}, capture_output=True, text=True, timeout=300
                )
                for k in range(2)
            ]
        return [each.result() for each in started]

    return run


def alone(model: Path, texts: Sequence[str]) -> dict[str, Tensor]:
    loaded = load_model(model)
    return dict(calibrate(loaded, compressible_layers(loaded.model), texts, None, None).moments)


def distance(found: Tensor, exact: Tensor) -> float:
    """The largest difference of an entry, as a share of what rounding may move it by in a sum of `TOKENS` terms.

    |Σ xᵢxⱼ| is at most sqrt(Σ xᵢ² Σ xⱼ²), and a float32 sum of n terms moves by n eps of their sizes.
    """
    if exact.ndim == 1:  # counts in float64
        return float((found - exact).abs().max()) / 1e-12
    size = exact.diagonal().sqrt()
    return float(((found - exact).abs() / (TOKENS * torch.finfo(torch.float32).eps * torch.outer(size, size))).max())


TOKENS = 1000


def test_two_processes_have_the_moments_of_one(together, tiny_bert: Path, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    done = together(MOMENTS, tiny_bert, tmp_path / "texts.json", tmp_path / "found.safetensors")
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr
    found, one, other = load_file(tmp_path / "found.safetensors"), alone(tiny_bert, texts), alone(tiny_bert, texts[::2])
    for way in ("whole", "blocks"):
        assert max(distance(found[f"{way}.{name}"], exact) for name, exact in one.items()) <= 1
    assert min(distance(found[f"whole.{name}"], less) for name, less in other.items()) > 1


def test_the_first_process_writes_what_one_would(together, tiny_bert: Path, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = ("compress", tiny_bert, "-o", tmp_path / "out", "--calibration", tmp_path / "texts.jsonl", *WORDS)
    done = together(COMMAND, *given)
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr
    assert (done[1].stdout, done[1].stderr) == ("", "")
    assert done[0].stdout.count("embeddings.word_embeddings") == 1
    table = saten_edge.compress(tiny_bert, tmp_path / "one", OPTIONS, calibration=texts)
    rows = json.loads((tmp_path / "out" / "saten_layers.json").read_text())["layers"]
    for row, expected in zip(rows, table["layers"], strict=True):
        assert (row["name"], row["bytes"], row["nnz"]) == (expected["name"], expected["bytes"], expected["nnz"])
        assert row["error"] == pytest.approx(expected["error"], rel=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out", "texts.jsonl"]


def test_a_process_that_is_killed_ends_the_other_with_one_line(
    together, tiny_bert: Path, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = ("compress", tiny_bert, "-o", tmp_path / "out", "--calibration", tmp_path / "texts.jsonl", *WORDS)
    leader, follower = together(DIES + COMMAND, *given)
    assert (leader.returncode, follower.returncode) == (2, -9)
    (line,) = leader.stderr.splitlines()
    assert line.startswith("saten-edge: error: process 0 of 2 lost another that torchrun started (")
    assert "; --resume goes on with what is kept in " in line
    assert not (tmp_path / "out").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.compression").glob("*.safetensors")}
    assert kept
    saten_edge.compress(tiny_bert, tmp_path / "out", OPTIONS, calibration=texts, resume=True)
    assert not (tmp_path / ".out.compression").exists()


@pytest.mark.parametrize(
    ("options", "count", "words"),
    [
        (CompressOptions(), 0, "torchrun started 2 processes, which share the texts of --calibration; there are none"),
        (CompressOptions(method="flat"), 4, "--method flat: is run by one process, and torchrun started 2"),
        (CompressOptions(method="flat", then="saten"), 4, "--method flat: is run by one process"),
        (OPTIONS, 1, "--calibration: 1 texts or images, 32 at once, for 2 processes; start 1 at most"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    options: CompressOptions, count: int, words: str, tiny_bert: Path, texts: list[str], tmp_path: Path, monkeypatch
) -> None:
    from contextlib import nullcontext

    from saten_edge import stages
    from saten_edge.ranks import Ranks

    two = Ranks(0, 2)
    monkeypatch.setattr(stages, "ranks_here", lambda: nullcontext(two))
    with pytest.raises(UsageError, match=words):
        saten_edge.compress(tiny_bert, tmp_path / "out", options, calibration=texts[:count])
    assert list(tmp_path.iterdir()) == []


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks_here() as ranks:
        assert ranks is ALONE
    assert (ALONE.leads, ALONE.share([1, 2]), ALONE.summed([], 3)) == (True, [1, 2], 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch, "distributed", SimpleNamespace(is_initialized=lambda: True))
    with ranks_here() as ranks:  # the group is another program's
        assert ranks is ALONE


def test_a_group_that_nobody_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(DeviceError, match=r"^process 0 of 2, as WORLD_SIZE has it, does not reach the others \("),
        ranks_here(),
    ):
        pass
