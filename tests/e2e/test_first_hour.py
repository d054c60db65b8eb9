"""A newcomer's first hour: three models of their own, from files to a report, by README's commands alone.

`make first-hour` plays it in a new environment, which it installs by README's command.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
# A busy machine makes a benchmark invalid, exit code 4; its results are written, and what follows is run all the same.
BUSY = """
saten-edge() {
    command saten-edge "$@" || { code=$?; [ "$1" = bench ] && [ "$code" = 4 ]; }
}
"""


@dataclass(frozen=True)
class Newcomer:
    """model_type, task, entries: of their model. changes: what README's text says is other for it."""

    model_type: str
    task: str
    entries: dict[str, Any]
    changes: dict[str, str]
    metric: str


NEWCOMERS = {
    "a BERT of 77 labels": Newcomer(
        "bert",
        "text-classification",
        {"num_labels": 77, "max_position_embeddings": 128},
        {" --reference dense-int8": ""},
        "accuracy",
    ),
    "a ViT of 1000 labels": Newcomer(
        "vit",
        "image-classification",
        {"num_labels": 1000},
        {" --reference dense-int8": "", "--minutes 30": "--minutes 0.05"},
        "accuracy",
    ),
    "embeddings as sentence-transformers saves them": Newcomer("", "", {}, {}, "recall"),
}


INSTALL = "pip install ./runtime ."


@pytest.fixture(scope="module")
def environment(
    request: pytest.FixtureRequest, offline: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Where the commands of saten-edge are: those of this environment or, with SATEN_FIRST_HOUR=new, of a new one."""
    if os.environ.get("SATEN_FIRST_HOUR") != "new":
        return {**offline, "PATH": request.getfixturevalue("warm_path")}
    assert f"`{INSTALL}`" in (ROOT / "README.md").read_text()
    folder, started = tmp_path_factory.mktemp("environment"), time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "python", "-m", *INSTALL.split(), "-q"], cwd=ROOT, check=True)
    print(f"installed in {(time.monotonic() - started) / 60:.1f} min", file=sys.stderr)
    plain = {name: value for name, value in offline.items() if name != "PYTHONPATH"}
    return {**plain, "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])}


def script_for(newcomer: Newcomer, model: Path) -> str:
    """README's commands, quicker, on a model folder."""
    section = (ROOT / "README.md").read_text().split("## Your own model\n", 1)[1].split("\n## ", 1)[0]
    script = next(found for found in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) if "-edge compress" in found)
    for written, said in {**newcomer.changes, HUB_NAME: shlex.quote(str(model))}.items():
        assert written in script
        script = script.replace(written, said)
    return script.replace("--minutes 30", "--minutes 0.05").replace("--budget 0.285", "--budget 0.6")


def write_data(newcomer: Newcomer, folder: Path, texts: list[str], images: list[Any]) -> None:
    """texts.jsonl to learn from and held_out.jsonl to be judged by, in the forms that README names."""
    rows: list[dict[str, Any]] = [{"text": text, "label": k % 77} for k, text in enumerate(texts)]
    asked = rows
    if newcomer.model_type == "vit":
        for k, image in enumerate(images):
            image.save(folder / f"{k}.png")
        rows = asked = [{"image": f"{k % len(images)}.png", "label": 15 * k} for k in range(64)]
    elif not newcomer.model_type:
        asked = [{"query": text, "answer": f"{text} {k}"} for k, text in enumerate(texts[:8])]
    for name, lines in (("texts", rows), ("held_out", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))


@pytest.mark.slow
@pytest.mark.parametrize("name", NEWCOMERS)
def test_from_files_to_a_report(
    name: str,
    long_bert: Path,
    make_tiny: Callable[..., Path],
    texts: list[str],
    images: list[Any],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    newcomer = NEWCOMERS[name]
    model = tmp_path / "my model"
    made = make_tiny(newcomer.model_type, newcomer.task, **newcomer.entries) if newcomer.model_type else long_bert
    shutil.copytree(made, model)
    if newcomer.model_type == "bert":  # `bench` measures 128 tokens, where nothing else is said
        settings = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 128}))
    write_data(newcomer, tmp_path, texts, images)
    command = ["bash", "-euxc", BUSY + script_for(newcomer, model)]
    started = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    print(f"{name}: {(time.monotonic() - started) / 60:.1f} min", file=sys.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "report.html").read_text()
    assert all(bundle in page for bundle in ("dense-int8", "saten-int8"))
    metrics = json.loads((tmp_path / "eval.json").read_text())["rows"]
    assert all(any(newcomer.metric in key or "top" in key for key in row["metrics"]) for row in metrics)
    assert "Traceback" not in done.stderr
