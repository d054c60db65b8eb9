"""The numbers of one bundle, found once more by other tools: a timing loop, GNU time, scikit-learn, torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from saten_runtime import Runner
from saten_runtime.accuracy.evaluate import evaluate
from saten_runtime.bench.measure import Plan, bench
from saten_runtime.machine.child import python_command

WriteLines = Callable[..., Path]
EPS = float(np.finfo(np.float32).eps)
TOKENS = 32
TEXTS = [f"w{k} w{(7 * k) % 60} w{(3 * k + 1) % 60}" for k in range(60)]


class TestLatency:
    """As `onnxruntime_perf_test -r 60 -x 1`: one session, the same inputs again and again, each run timed."""

    LOOP = """
import statistics, sys, time
import numpy as np, onnxruntime
path, tokens, slowdown = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
ids = np.random.default_rng(1).integers(0, 60, (1, tokens))
feeds = {i.name: ids if i.name == "input_ids" else np.ones_like(ids) for i in session.get_inputs()}
times = []
for _ in range(65):
    start = time.perf_counter()
    session.run(None, feeds)
    took = time.perf_counter() - start
    while time.perf_counter() - start < slowdown * took:
        pass
    times.append(time.perf_counter() - start)
print(1000 * statistics.median(times[5:]))
"""
    # Two processes of one model differ by some percent, and so do the least of six on a busy machine.
    WIDEST = 1.25

    def loop_ms(self, bundle: Path, slowdown: float) -> float:
        command = [sys.executable, "-c", self.LOOP, str(bundle / "model.onnx"), str(TOKENS), str(slowdown)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)

    def test_a_loop_written_apart_takes_as_long(self, make_bundle: Callable[..., Path]) -> None:
        bundle = make_bundle("busy", work=1 << 15)  # 34 MFLOP: most runs end within a turn of the scheduler
        plan = Plan(tokens=(TOKENS,), min_time_s=0.15, rounds=1, floor=False)
        turns = []
        for _ in range(6):
            ours = bench([bundle], plan).cells[0].p50_ms
            assert ours is not None
            turns.append((ours, self.loop_ms(bundle, 1.0), self.loop_ms(bundle, 1.5)))
        ours, same, slower = map(min, zip(*turns, strict=True))  # what else runs here only adds
        assert 1 / self.WIDEST < same / ours < self.WIDEST
        assert slower / ours > self.WIDEST


@pytest.mark.skipif(shutil.which("time") is None, reason="GNU time is not installed (Debian: apt install time)")
class TestMemory:
    """`/usr/bin/time -v` over a process that loads and runs the same bundle."""

    def resident_bytes(self, bundle: Path, tokens: int) -> int:
        requests: list[dict[str, Any]] = [
            {"do": "load", "bundle": str(bundle), "threads": 1, "memory": "fast"},
            {"do": "prepare", "size": {"batch": 1, "tokens": tokens}, "vocabulary": 60},
            {"do": "run", "warmup": 0, "iterations": 3, "min_ns": 0},
            {"do": "quit"},
        ]
        command = ["time", "-v", *python_command("from saten_runtime.bench.worker import main; main()")]
        given = "".join(json.dumps(request) + "\n" for request in requests)
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, timeout=60)
        assert "error" not in done.stdout
        (kibibytes,) = re.findall(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
        return 1024 * int(kibibytes)

    def test_the_peak_is_that_of_gnu_time(self, tiny: Path, make_bundle: Callable[..., Path]) -> None:
        heavy = make_bundle("heavy-too", work=300_000)  # 18 MiB of weights
        plan = Plan(tokens=(TOKENS,), min_time_s=0, rounds=1, floor=False)
        found = [load.memory.peak_rss_bytes for load in bench([tiny, heavy], plan).loads]
        expected = [self.resident_bytes(bundle, TOKENS) for bundle in (tiny, heavy)]
        assert found == pytest.approx(expected, rel=0.03)
        assert found != pytest.approx(expected[::-1], rel=0.03)


def outputs(bundle: Path, texts: Sequence[str]) -> list[np.ndarray]:
    """The first output for each text, by `tokenizers` and ONNX Runtime alone, a text at a time."""
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_padding()
    found = []
    for text in texts:
        row = tokenizer.encode(text)
        known = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
        feeds = {one.name: np.array([known[one.name]]) for one in session.get_inputs()}
        found.append(session.run(None, feeds)[0][0])
    return found


class TestAccuracy:
    def test_classes_by_scikit_learn(self, classifier: Path, write_lines: WriteLines) -> None:
        sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
        predicted = np.argmax(outputs(classifier, TEXTS), axis=1)
        wanted = np.where(np.arange(len(TEXTS)) % 4 > 0, predicted, (predicted + 1) % 3)
        path = write_lines([{"text": text, "label": int(label)} for text, label in zip(TEXTS, wanted, strict=True)])
        found = evaluate([classifier], path).rows[0].metrics

        def scores(labels: np.ndarray) -> dict[str, float]:
            return {
                "accuracy": sklearn.accuracy_score(labels, predicted),
                "macro_f1": sklearn.f1_score(labels, predicted, average="macro"),
                "matthews": sklearn.matthews_corrcoef(labels, predicted),
            }

        assert found.pop("binary_f1") is None
        assert found == pytest.approx(scores(wanted), abs=1e-9)
        for name, other in scores(predicted).items():
            assert found[name] != pytest.approx(other, abs=1e-3)

    def test_search_by_scikit_learn(self, tiny: Path, write_lines: WriteLines) -> None:
        sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
        answers = [f"{text} w{(k * k) % 60} w{(k + 30) % 60}" for k, text in enumerate(TEXTS)]
        pairs = zip(TEXTS, answers, strict=True)
        found = evaluate([tiny], write_lines([{"query": q, "answer": a} for q, a in pairs])).rows[0].metrics
        scores = Runner.load(tiny).predict(TEXTS) @ Runner.load(tiny).predict(answers).T
        own = np.arange(len(TEXTS))
        for k in (1, 10):
            assert found[f"recall_at_{k}"] == pytest.approx(sklearn.top_k_accuracy_score(own, scores, k=k), abs=1e-9)
        assert 0 < found["recall_at_1"] < found["recall_at_10"] < 1
        assert found["recall_at_1"] != pytest.approx(sklearn.top_k_accuracy_score(own, scores.T[::-1], k=1), abs=1e-3)


def test_perplexity_by_torch(
    task_bundle: Callable[..., Path], write_lines: WriteLines, saten_run: Callable[..., Any]
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    folder = task_bundle("text-generation")
    data = write_lines([{"text": text} for text in TEXTS])
    done = saten_run("eval", folder, "--data", data, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    # The bundle's weights, as tests/runtime/conftest.py draws them: a token's logits are Σ embeddings so far · matrix.
    drawn = (np.random.default_rng(7).standard_normal(shape) for shape in ((64, 8), (8, 64)))
    table, matrix = (torch.from_numpy(weights).float().double() for weights in drawn)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    losses, wrong, lost = [], [], 0.0
    for text in TEXTS:
        ids = torch.tensor(tokenizer.encode(text).ids)
        logits = table[ids].cumsum(0) @ matrix
        # γ_k of the sum over the tokens and of the product; a loss moves by the error of two logits at most.
        sizes = table[ids].abs().cumsum(0) @ matrix.abs()
        lost = max(lost, 2 * (len(ids) + 8) * EPS * float(sizes.max()))
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none"))
        wrong.append(torch.nn.functional.cross_entropy(logits[1:], ids[1:], reduction="none"))
    expected, shifted = (float(torch.cat(parts).mean().exp()) for parts in (losses, wrong))
    assert row["metrics"]["perplexity"] == pytest.approx(expected, rel=float(np.expm1(lost)))
    assert row["metrics"]["perplexity"] != pytest.approx(shifted, rel=float(np.expm1(lost)))
    assert lost < 1e-3
