"""The command lines as a person runs them: processes of their own, on tiny models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

Done = subprocess.CompletedProcess[str]


def run(python: Sequence[str], module: str, arguments: Sequence[object], **options: Any) -> Done:
    command = [*python, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


@pytest.fixture(scope="session", autouse=True)
def _trace_once(trace_once: object) -> None:
    """For every export here."""


@pytest.fixture(scope="session")
def saten_edge(warm_python: list[str], offline: dict[str, str]) -> Callable[..., Done]:
    """saten_edge(*arguments, cwd=…) -> the finished command, which cannot reach the hub."""
    return lambda *arguments, **options: run(warm_python, "saten_edge", arguments, env=offline, **options)


@pytest.fixture(scope="session")
def saten_run() -> Callable[..., Done]:
    """saten_run(*arguments, env=…, cwd=…) -> the finished command."""
    return lambda *arguments, **options: run([sys.executable], "saten_runtime", arguments, **options)


@pytest.fixture(scope="session")
def device_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which no Python process can import what a device does not have."""
    folder = tmp_path_factory.mktemp("blocker")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in"
        " {'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxscript', 'saten_edge', 'saten_exporters'}:\n"
        "            raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A search task in JSON Lines: the query is a text's first words, the answer the rest."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    halves = [(text.split()[: len(text.split()) // 2], text.split()[len(text.split()) // 2 :]) for text in texts]
    rows = [{"query": " ".join(first), "answer": " ".join(second)} for first, second in halves]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def long_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_bert` for texts of up to 128 tokens, which is what the demo measures."""
    import torch
    from transformers import AutoConfig, BertModel

    folder = tmp_path_factory.mktemp("long") / "bert"
    shutil.copytree(tiny_bert, folder)
    torch.manual_seed(3)
    BertModel(AutoConfig.from_pretrained(tiny_bert, max_position_embeddings=128)).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128}))
    return folder


@pytest.fixture(scope="session")
def int8_bundles(tiny_bundle: Callable[[str], Path]) -> list[Path]:
    """The bundles dense-int8 and saten-int8 that the pages in docs/ name. Read-only."""
    return [tiny_bundle(name) for name in ("dense-int8", "saten-int8")]
