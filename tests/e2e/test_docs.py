"""The commands in docs/ work: every `sh` and `python` block is run as it stands, on a small model.

What cannot run here has a reason in `NOT_RUN`; its commands must be ones that the programs understand.
"""

import itertools
import json
import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import typer.main
from safetensors.torch import save_file

from saten_edge.cli import commands as cli
from saten_runtime.arguments import make_parser

DOCS = Path(__file__).parents[2] / "docs"
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
QUICK_SEARCH = (
    " --max-drop 100 --trials 2 --steps 2 --short-steps 1 --batch-size 8 --tokens 8 --rounds 1 --finalists 1"
    " --calibration-texts 8 --workers 1"
)
# Options that make a command quick; they are appended, the rest is run as written.
QUICK = {
    "saten-edge optimize /": QUICK_SEARCH,  # with a model; a recipe says all of it
    "saten-edge finetune": " --steps 2 --batch-size 8",
    "torchrun --nproc-per-node 2 -m saten_edge.cli.commands finetune": " --steps 2 --batch-size 8",
    "saten-edge bench": " --rounds 2 --min-time 0.02",
    "saten-run bench": " --rounds 2 --min-time 0.02 -s 8",
    "saten-run floor": " -s 8",
    "saten-run profile": " -s 8 -n 2",
}
# A busy machine makes a benchmark invalid, exit code 4; its results are written, and what follows is run all the same.
BUSY = """
measured() {
    command "$@" || { code=$?; [ "$2" = bench ] && [ "$code" = 4 ]; }
}
saten-run() { measured saten-run "$@"; }
saten-edge() { measured saten-edge "$@"; }
"""
RUN = (
    "compression.md",
    "exporting.md",
    "finetuning.md",
    "from-optimum.md",
    "lowering.md",
    "measuring.md",
    "optimize.md",
    "python.md",
    "start.md",
    "targets.md",
)
# all stages, as test_notebook.py runs them too; five exports; searches
SLOW = ("optimize.md", "python.md", "start.md", "targets.md")
NOT_RUN = {
    "browser.md": "needs a browser that taps Start; tests/saten_edge/phone/test_browser.py drives one",
    "bundle.md": "holds no command",
    "commands.md": "holds no block of commands",
    "faq.md": "holds no command",
    "glossary.md": "holds no command",
    "how-it-works.md": "holds no command",
    "devices.md": "needs boards; tests/devices runs them against a board in an emulator",
    "security.md": "holds no command",
    "integrations.md": "needs the libraries that are extras; tests/saten_edge/integrations runs the same",
    "serving.md": "starts a server that runs until Ctrl-C; tests/runtime/serve starts one",
    "notebooks.md": "holds no block of commands; test_notebook.py runs the notebooks",
    "settings.md": "holds no command",
    "kernels.md": "holds make targets; `make test-kernels` builds and runs them",
}


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(sh|python)\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


def script(text: str, model: Path) -> str:
    """A block of commands with the model in place of the hub's name, and quick."""
    lines = text.replace(HUB_NAME, shlex.quote(str(model))).splitlines()
    for command, options in QUICK.items():
        lines = [line + options if line.startswith(command) else line for line in lines]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def run(warm_python, warm_path, offline):
    """run(language, text, model, folder): run a block and see that it succeeds."""

    def run(language: str, text: str, model: Path, folder: Path) -> None:
        python = [*warm_python, "-c", text.replace(HUB_NAME, str(model))]
        command = ["bash", "-euxc", BUSY + script(text, model)] if language == "sh" else python
        environment = {**offline, "PATH": warm_path}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{text}\n{done.stderr[-2000:]}"

    return run


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


def write_adapter(folder: Path) -> None:
    """As peft saves a LoRA adapter of one layer."""
    folder.mkdir()
    name = "base_model.model.encoder.layer.0.intermediate.dense"
    parts = {f"{name}.lora_A.weight": torch.ones(2, 64), f"{name}.lora_B.weight": torch.zeros(128, 2)}
    save_file(parts, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))


@pytest.fixture
def folder(tmp_path, texts, tiny_bert):
    """What the commands of a page read."""
    rows = [{"text": text, "label": k % 2} for k, text in enumerate(texts)]
    for name in ("texts", "train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows = rows[::-1]  # a judge that is the training data, byte for byte, is refused
    pairs = [{"query": first, "answer": second} for first, second in itertools.pairwise(texts[:20])]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    save_file(theirs(tiny_bert), tmp_path / "theirs.safetensors")
    write_adapter(tmp_path / "lora")
    return tmp_path


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in RUN])
def test_the_blocks_of_a_page_run_as_written(page, run, folder, tiny_bert, tiny_saten, int8_bundles):
    found = blocks(page)
    assert found
    if page == "lowering.md":  # elsewhere a block makes it
        shutil.copytree(tiny_saten, folder / "finetuned")
        (folder / "lowering.json").write_text('{"*intermediate*": "dense"}')
    made = " ".join(text for _, text in found)
    for bundle in int8_bundles:
        if f"-o {bundle.name} " not in made:
            shutil.copytree(bundle, folder / bundle.name)
    for language, text in found:
        run(language, text, tiny_bert, folder)


def test_a_command_that_fails_is_noticed(run, folder, tiny_bert):
    with pytest.raises(AssertionError, match="no residual pattern"):
        run("sh", f"saten-edge compress {HUB_NAME} -o out --pattern round", tiny_bert, folder)


def test_every_page_is_run_or_says_why_not():
    assert sorted([*RUN, *NOT_RUN]) == sorted(path.name for path in DOCS.glob("*.md"))


def understand(line: str) -> None:
    """Parse a command of ours without running it; others are passed over.

    Raises:
        Exception: of click, argparse or a table of commands, naming what there is not.
    """
    program, *arguments = shlex.split(line, comments=True) or [""]
    if program == "saten-run":
        make_parser(defaultdict(lambda: lambda _: 0)).parse_args(arguments)
    elif program == "saten-edge":
        command = typer.main.get_command(cli.app)
        while hasattr(command, "commands"):
            name, *arguments = arguments
            command = command.commands[name]
        command.make_context(program, arguments)


@pytest.mark.parametrize("page", sorted([*RUN, *NOT_RUN]))
def test_the_programs_understand_every_command(page):
    for language, text in blocks(page):
        if language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                understand(line)


@pytest.mark.parametrize("line", ["saten-edge bench a --speed 3", "saten-edge fly", "saten-run bench a --speed 3"])
def test_a_command_that_is_not_understood_is_noticed(line):
    with pytest.raises(Exception, match=r"speed|fly"):
        understand(line)
