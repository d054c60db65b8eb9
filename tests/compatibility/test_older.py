"""What older commits wrote still opens, runs and is reported: a folder for each, named after its commit.

Made with that commit's own commands from a random BERT of one layer, 32 wide: `compress`, `export --precision int8`,
`bench` and `eval` beside a dense bundle that is not kept, `profile`. Nothing in the folders is ever written again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_edge.checkpoints.models import load_model
from saten_edge.checkpoints.modules import SatenEmbedding, SatenLinear
from saten_edge.reports import build_report, html_page, summary_json
from saten_edge.reports.compare import compare_runs, read_run
from saten_runtime.accuracy.evaluate import evaluate
from saten_runtime.bench.journal import SamplesLine, StartLine, read_journal
from saten_runtime.bench.results import read_bench
from saten_runtime.bundle.explain import explain, explain_table
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import BundleError
from saten_runtime.run.parity import check_parity
from saten_runtime.run.runner import Runner

HERE = Path(__file__).parent
FOLDERS = sorted(path.parent for path in HERE.glob("*/bundle"))


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def old(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def test_there_is_something_old() -> None:
    assert "7eaec27" in [folder.name for folder in FOLDERS]


def test_the_bundle_opens_is_explained_and_runs(old: Path) -> None:
    bundle = Bundle.open(old / "bundle")
    found = explain(bundle)
    assert [layer["name"] for layer in found["layers"]] == [layer.name for layer in bundle.manifest.layers]
    assert all(layer.name in explain_table(found) for layer in bundle.manifest.layers)
    assert not bundle.manifest.is_dense
    vectors = np.asarray(Runner.load(bundle).predict(["the tree falls", "no end"]))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=float(4 * np.finfo(np.float32).eps))


def test_the_bundle_validates_and_a_changed_case_does_not(old: Path, tmp_path: Path) -> None:
    compared = check_parity(Bundle.open(old / "bundle"))
    assert compared
    assert all(comparison.holds for comparison in compared)
    changed = shutil.copytree(old / "bundle", tmp_path / "changed")
    (changed / "model.onnx.data").write_bytes((changed / "model.onnx.data").read_bytes()[::-1])
    with pytest.raises(BundleError, match="sha256"):
        Bundle.open(changed)


def test_the_evaluation_comes_out_as_it_did(old: Path) -> None:
    before = {row["bundle"]: row["metrics"] for row in read(old / "eval.json")["rows"]}
    (row,) = evaluate([old / "bundle"], old / "pairs.jsonl").rows
    assert row.metrics == pytest.approx(
        {name: before[row.bundle][name] for name in row.metrics}, abs=2 / 9
    )  # one of nine texts more or less
    assert row.metrics.keys() < before[row.bundle].keys()  # the cosine to a bundle that is not kept


def test_the_run_is_reported_with_its_profile(old: Path) -> None:
    bench, evaluation = read(old / "bench" / "bench.json"), read(old / "eval.json")
    bundle = Bundle.open(old / "bundle")
    report = build_report([bundle], bench, evaluation, profiles=[read(old / "profile.json")])
    assert [row.name for row in report.rows] == [bundle.name, "dense-int8"]
    assert report.baseline.name == "dense-int8"
    cells = {(cell.bundle, cell.tokens): cell.p50_ms for cell in read_bench(bench).cells}
    assert summary_json(report)[0]["p50_ms"] == {str(size): cells[bundle.name, size] for size in report.tokens}
    page = html_page(report)
    assert bundle.name in page
    assert "Time per layer" in page


def test_the_journal_holds_what_the_result_counts(old: Path) -> None:
    lines = read_journal(old / "bench" / "samples.jsonl")
    samples = [line for line in lines if isinstance(line, SamplesLine)]
    counts = {(cell.bundle, cell.tokens): cell.count for cell in read_bench(read(old / "bench" / "bench.json")).cells}
    assert counts == {
        key: sum(len(line.samples_ns) for line in samples if (line.bundle, line.tokens) == key) for key in counts
    }
    assert sum(isinstance(line, StartLine) for line in lines) == 4
    run = read_run(old / "bench")
    assert {row.verdict for row in compare_runs(run, run)} == {"same"}


def test_the_checkpoint_loads(old: Path) -> None:
    modules = dict(load_model(old / "checkpoint").model.named_modules())
    layers = [name for name, module in modules.items() if isinstance(module, (SatenLinear, SatenEmbedding))]
    assert sorted(layers) == sorted(layer.name for layer in Bundle.open(old / "bundle").manifest.layers)
