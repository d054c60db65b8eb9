"""The commands in docs/ work: every `sh` and `python` block is run as it stands, on a small model."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

DOCS = Path(__file__).parents[2] / "docs"
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
# Options that make a command quick; they are appended, the rest is run as written.
QUICK = {"saten-edge finetune": " --steps 2 --batch-size 8", "torchrun": " --steps 2 --batch-size 8"}


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(sh|python)\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


def script(text: str, model: Path) -> str:
    """A block with the model in place of the hub's name, and quick."""
    lines = text.replace(HUB_NAME, shlex.quote(str(model))).splitlines()
    for command, options in QUICK.items():
        lines = [line + options if line.startswith(command) else line for line in lines]
    return "\n".join(lines)


def run(language: str, text: str, model: Path, folder: Path) -> None:
    command = ["bash", "-euxc", script(text, model)] if language == "sh" else [sys.executable, "-c", text]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{text}\n{done.stderr[-2000:]}"


def theirs(model: Path) -> dict[str, torch.Tensor]:
    """A state dict as the authors' code writes it: one layer compressed, the rest as it is."""
    from transformers import AutoModel

    state = {name: tensor.clone() for name, tensor in AutoModel.from_pretrained(model).state_dict().items()}
    name = "encoder.layer.0.intermediate.dense"
    outputs, inputs = state[f"{name}.weight"].shape
    ranks = (1, 4, 6, 4, 1)
    dims = (8, inputs // 8, outputs // 8, 8)
    for k, n in enumerate(dims):
        state[f"{name}.factors.{k}"] = 0.1 * torch.randn(ranks[k], n, ranks[k + 1])
    state[f"{name}.mask"] = (torch.rand(outputs, inputs) < 0.1).float()
    return {name: tensor.contiguous() for name, tensor in state.items()}


@pytest.fixture
def folder(tmp_path, texts, tiny_bert):
    """What the commands of a page read."""
    rows = [{"text": text, "label": k % 2} for k, text in enumerate(texts)]
    for name in ("texts", "train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_file(theirs(tiny_bert), tmp_path / "theirs.safetensors")
    return tmp_path


@pytest.mark.parametrize("page", ["compression.md", "exporting.md", "finetuning.md"])
def test_the_blocks_of_a_page_run_as_written(page, folder, tiny_bert):
    found = blocks(page)
    assert found
    for language, text in found:
        run(language, text, tiny_bert, folder)


def test_a_command_that_fails_is_noticed(folder, tiny_bert):
    with pytest.raises(AssertionError, match="no residual pattern"):
        run("sh", f"saten-edge compress {HUB_NAME} -o out --pattern round", tiny_bert, folder)
