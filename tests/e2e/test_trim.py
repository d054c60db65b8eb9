"""A trimmed model is any dense model to the other commands: from its labels to answers on a device."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from saten_edge.checkpoints.models import load_model
from saten_runtime import Runner
from saten_runtime.bundle.folder import Bundle


def test_from_a_trimmed_model_to_a_bundle(
    saten_edge: Callable[..., subprocess.CompletedProcess[str]], tiny_bert: Path, texts: list[str], tmp_path: Path
) -> None:
    rows = [{"text": text, "label": k % 2} for k, text in enumerate(texts[:40])]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ("trimmed", "tuned", "small", "bundle")
    trimmed, tuned, small, bundle = (tmp_path / name for name in names)
    for command in (
        ("trim", tiny_bert, "-o", trimmed, "--data", data),
        ("finetune", trimmed, "-o", tuned, "--data", data, "--steps", 2, "--batch-size", 4),
        ("compress", tuned, "-o", small, "--budget", 0.5, "--group", 8, "--rounds", 1),
        ("export", small, "-o", bundle),
    ):
        done = saten_edge(*command, "-q")
        assert done.returncode == 0, done.stderr
    vocabularies = [json.loads((path / "tokenizer.json").read_text())["model"]["vocab"] for path in (tiny_bert, bundle)]
    assert set(vocabularies[1]) < set(vocabularies[0])
    opened = Bundle.open(bundle)
    assert opened.manifest.task == "text-classification"
    loaded, asked = load_model(small), [*texts[:3], "never seen: xyzzy 猫"]
    with torch.no_grad():
        logits = torch.cat([loaded.model(**loaded.encode([text])).logits for text in asked])
    wanted, found = logits.softmax(-1).numpy(), Runner.load(bundle).predict(asked).probabilities
    bound = opened.manifest.tolerance["relative"] * float(logits.norm(dim=-1).max())  # softmax moves less than logits
    assert np.abs(found - wanted).max() <= bound
    assert np.abs(found - wanted[::-1]).max() > bound
