"""A newcomer's first hour: three models of their own, from files to a report, by README's commands alone."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
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


def script_for(newcomer: Newcomer, model: Path) -> str:
    """README's commands, quicker, on a model folder."""
    readme = (ROOT / "README.md").read_text().split("## Your own model\n", 1)[1]
    (script,) = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)[:1]
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
    warm_path: str,
    offline: dict[str, str],
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
    done = subprocess.run(
        command, cwd=tmp_path, env={**offline, "PATH": warm_path}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "report.html").read_text()
    assert all(bundle in page for bundle in ("dense-int8", "saten-int8"))
    metrics = json.loads((tmp_path / "eval.json").read_text())["rows"]
    assert all(any(newcomer.metric in key or "top" in key for key in row["metrics"]) for row in metrics)
    assert "Traceback" not in done.stderr
