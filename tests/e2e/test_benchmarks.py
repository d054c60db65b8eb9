"""The benchmark programs run, and time only what computes the right thing."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(name, *arguments, **options):
    command = [sys.executable, FOLDER / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


@pytest.fixture(scope="module")
def layers():
    return load("layers")


def test_the_table_has_every_form_and_its_own_baseline_is_one(tmp_path):
    out = tmp_path / "layers.json"
    done = run("layers", "--shape", "64x128", "--rows", "1,3", "--rounds", "2", "-o", out)
    assert done.returncode == 0, done.stderr
    table = json.loads(out.read_text())["table"]
    assert len(table) == 2 * 6 * 5
    assert all(row["bytes"] > 0 and len(row["round_medians_ns"]) == 2 for row in table)
    assert all(row["ratio"] == [1, 1, 1] for row in table if row["form"] == "dense fp32")
    assert len(done.stdout.splitlines()) == 2 + 6 * 5


def test_a_form_that_computes_something_else_is_not_timed(layers):
    for name, model, matrix, _ in layers.models(64, 128):
        run = layers.session(model)
        layers.check(name, run, matrix)
        with pytest.raises(SystemExit, match="relative error"):
            layers.check(name, run, np.roll(matrix, 1, axis=1))


def labelled(folder, texts):
    """The folder `benchmarks/accuracy.py` reads: a text is good or bad, and says which."""
    for task in ("sst2", "stsb", "rte"):
        (folder / task).mkdir(parents=True)
        for split in ("train", "validation"):
            pairs = list(itertools.pairwise(texts))
            single = [{"text": f"{text} {'ab'[k % 2] * 3}", "label": k % 2} for k, text in enumerate(texts)]
            double = [{"text_a": a, "text_b": b, "label": k % 2} for k, (a, b) in enumerate(pairs)]
            rows = single if task == "sst2" else double
            (folder / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_accuracy_makes_each_cell_once_and_counts_bytes_as_the_files_do(tiny_bert, texts, tmp_path):
    data, results = labelled(tmp_path / "data", texts), tmp_path / "results"
    options = ("--data", data, "--model", tiny_bert, "--work", tmp_path / "work", "--results", results)
    options += ("--only", "sst2-svd-0.40", "--most-steps", 2)
    done = run("accuracy", *options)
    assert done.returncode == 0, done.stderr
    names = {"sst2-dense-1.00-0", "sst2-dense-1.00-1", "sst2-svd-0.40-0", "sst2-svd-0.40-1"}
    assert {path.stem for path in results.glob("*.json")} == names
    for path in results.glob("sst2-svd-*.json"):
        size = json.loads(path.read_text())["compressed"]
        assert 0 < size["bytes"] <= 0.40 * size["dense_bytes"]
        assert size["stored_bytes"] == size["bytes"]
    assert "| sst2 | accuracy | 0.40 | svd |" in done.stdout
    before = {path: path.stat().st_mtime_ns for path in results.glob("*.json")}
    again = run("accuracy", *options)
    assert again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in results.glob("*.json")} == before


def test_accuracy_has_a_cell_for_every_row_the_table_promises():
    accuracy = load("accuracy")
    dense, compressed = accuracy.cells()
    assert len(dense) == 2 + 1 + 1
    assert len(compressed) == len(accuracy.METHODS) * (3 * 2 + 1 + 1)
    assert len({cell.name for cell in [*dense, *compressed]}) == len(dense) + len(compressed)


def test_glue_is_written_in_the_layout_that_accuracy_reads(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas comes with datasets")
    columns = {"sst2": ("sentence",), "stsb": ("sentence1", "sentence2"), "rte": ("sentence1", "sentence2")}
    configs = ""
    for task, names in columns.items():
        (tmp_path / "glue" / task).mkdir(parents=True)
        configs += f"- config_name: {task}\n  data_files:\n"
        for split in ("train", "validation"):
            table = {**{name: [f"{split} {name} é ", "b"] for name in names}, "label": [0, 1], "idx": [0, 1]}
            pandas.DataFrame(table).to_parquet(tmp_path / "glue" / task / f"{split}.parquet")
            configs += f"  - split: {split}\n    path: {task}/{split}.parquet\n"
    (tmp_path / "glue" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = run("glue", tmp_path / "out", "--source", tmp_path / "glue", env=environment)
    assert done.returncode == 0, done.stderr
    first = {task: (tmp_path / "out" / task / "train.jsonl").read_text("utf-8").splitlines()[0] for task in columns}
    assert json.loads(first["sst2"]) == {"text": "train sentence é", "label": 0}
    assert json.loads(first["rte"]) == {"text_a": "train sentence1 é", "text_b": "train sentence2 é", "label": 0}


def test_a_versus_a_stores_every_ratio_and_what_it_planted(int8_bundles, tmp_path):
    options = ("--runs", 2, "--rounds", 3, "--min-time", 0.02, "--tokens", 8, "--results", tmp_path)
    own_lock = {**os.environ, "TMPDIR": str(tmp_path)}
    done = run("a_versus_a", int8_bundles[0], *options, env=own_lock)
    assert done.returncode in (0, 1), done.stderr  # 1: so few rounds may find nothing
    assert done.stdout == (tmp_path / "a_versus_a.md").read_text()
    stored = json.loads((tmp_path / "a_versus_a.json").read_text())
    assert len(stored["runs"]) == 2
    assert stored["plan"]["rounds"] == 3
    assert stored["environment"]["bundle"] == "dense-int8"
    for one in stored["runs"]:
        for name in ("value", "low", "high"):
            assert one["slower"][name] == pytest.approx(1.05 * one["same"][name], rel=1e-9)


def test_a_versus_a_counts_the_runs_that_tell_the_truth():
    program = load("a_versus_a")
    ratio = program.Ratio
    sure = program.Run(ratio(1.0, 0.99, 1.01), ratio(1.05, 1.04, 1.06), [])
    wrong = program.Run(ratio(1.03, 1.02, 1.04), ratio(1.05, 0.99, 1.06), ["throttled"])
    assert (sure.contains_1, sure.finds_slowdown) == (True, True)
    assert (wrong.contains_1, wrong.finds_slowdown) == (False, False)
    lines = program.table([sure, wrong]).splitlines()
    assert lines[2] == "| 1 | 1.0000 | 0.9900–1.0100 | 1.0500 | 1.0400–1.0600 | yes |"
    assert lines[3].endswith("| no |")
    assert lines[-1] == "Contain 1: 1 of 2. Slowdown of 5% found: 1 of 2."


def test_classifiers_on_every_engine_agree_and_are_timed(make_tiny, texts, tmp_path):
    checkpoint = make_tiny("bert", "text-classification")
    (tmp_path / "models" / "sst2-dense-1.00-0").mkdir(parents=True)
    (tmp_path / "models" / "sst2-dense-1.00-0" / "finetuned").symlink_to(checkpoint)
    data = labelled(tmp_path / "data", texts[:8]) / "sst2" / "validation.jsonl"
    rows = ("ORT dense fp32", "PyTorch eager")
    options = ("--tokens", "8", "--threads", 1, "--rounds", 2, "--min-time", 0.02, "--only", ",".join(rows))
    out = tmp_path / "encoder.json"
    options += ("--models", tmp_path / "models", "--data", data, "--work", tmp_path / "work", "-o", out)
    done = run("encoder", *options)
    assert done.returncode == 0, done.stderr
    table = json.loads(out.read_text())["rows"]
    assert [row["row"] for row in table] == list(rows)
    assert table[0]["accuracy"] == table[1]["accuracy"]
    assert all(row["p50_ms"]["8 tokens, 1 threads"] > 0 and row["peak_anon_bytes"] > 0 for row in table)
    assert not any(row["failed"] for row in table)


def test_an_engine_that_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    encoder = load("encoder")
    logits = np.random.default_rng(0).standard_normal((200, 2))
    exact, coarse = encoder.DENSE[0], encoder.DENSE[1]
    encoder.check(exact, logits * (1 + 1e-6), logits)
    encoder.check(coarse, logits * 1.01, logits)
    with pytest.raises(SystemExit, match="differs from torch"):
        encoder.check(exact, logits * 1.01, logits)
    with pytest.raises(SystemExit, match="differs from torch"):
        encoder.check(coarse, logits[::-1], logits)


def test_the_stages_of_an_export_are_functions_that_there_are():
    from saten_exporters import bundle

    stages = load("toolchain").EXPORT_STAGES
    assert all(callable(getattr(bundle, name)) for name in stages)
