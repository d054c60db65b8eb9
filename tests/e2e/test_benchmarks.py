"""The benchmark programs run, and time only what computes the right thing."""

import importlib
import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from saten_edge.checkpoints.models import load_model
from saten_exporters import PRECISIONS, export

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    """The programs import what they share from their own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))


def load(name):
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def run(warm_python, offline):
    """run(program, *arguments, **environment) -> the finished program, which shares our warm Python."""
    shared = {**offline, "SATEN_WARM_PYTHON": shlex.join(warm_python)}

    def run(name, *arguments, **environment):
        command = [*warm_python, str(FOLDER / f"{name}.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, env={**shared, **environment})

    return run


def test_a_command_that_is_refused_says_why(tmp_path):
    commands = load("peers.commands")
    commands.saten_edge("export", "--help")
    with pytest.raises(RuntimeError, match=r"saten-edge: error: .*has no config\.json"):
        commands.saten_edge("export", tmp_path, "-o", tmp_path / "out", threads=1)


def test_layers_are_timed_in_every_form_and_the_baseline_is_one(run, tmp_path):
    out = tmp_path / "layers.json"
    done = run("layers", "--shapes", "64x128", "--rows", "1,3", "--rounds", "2", "-o", out)
    assert done.returncode == 0, done.stderr
    rows = [row for row in json.loads(out.read_text())["rows"] if not row["kernels"]]
    assert len(rows) == 2 * 9 * len(PRECISIONS)
    assert all(row["ms"] > 0 and row["floor_ms"] > 0 and row["predicted_ms"] > 0 for row in rows)
    assert all(row["of_dense_fp32"] == [1, 1, 1] for row in rows if row["form"] == "dense fp32")
    assert done.stdout == out.with_suffix(".md").read_text()
    assert out.with_suffix(".svg").read_text().rstrip().endswith("</svg>")


def test_compressed_layers_have_the_bytes_they_are_said_to_have():
    layers = load("layers")
    dense = 4 * 768 * 3072
    for name, form, parts, _ in layers.forms((768, 3072)):
        if form.precision == "fp32" and name.startswith("low rank"):
            packed = form.pack(parts)
            share = sum(packed[each].nbytes for each in form.inputs) / dense
            assert share == pytest.approx(layers.BUDGET, rel=0.04), name


def test_a_form_that_computes_something_else_is_not_timed():
    layers, synthetic = load("layers"), load("peers.synthetic")
    for name, form, parts, native in layers.forms((64, 128)):
        if not native:
            session, matrix = synthetic.session(form, parts, 8), synthetic.matrix_of(parts)
            synthetic.check(name, session, matrix, form.precision)
            with pytest.raises(SystemExit, match="relative error"):
                synthetic.check(name, session, np.roll(matrix, 1, axis=1), form.precision)


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


def test_accuracy_trains_each_row_once_with_its_bits_and_counts_the_bundles_bytes(run, tiny_bert, texts, tmp_path):
    data, results, work = labelled(tmp_path / "data", 2 * texts), tmp_path / "results", tmp_path / "work"
    options = ("--data", data, "--model", tiny_bert, "--work", work, "--results", results, "--most-steps", 2)
    options += ("--only", "sst2-(dense-(fp32|int8)-1.00|svd-int8-0.40|layers-int8-1.00)-0")
    done = run("accuracy", *options)
    assert done.returncode == 0, done.stderr
    found = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    names = ("dense-fp32-1.00", "dense-int8-1.00", "layers-int8-1.00", "svd-int8-0.40")
    cells = {name: f"sst2-{name}-0{'' if name == names[0] else '-2'}" for name in names}
    assert set(found) == set(cells.values())  # a shorter training stands for no longer one
    sizes = {name: found[cell]["bytes"] for name, cell in cells.items()}
    assert sizes["svd-int8-0.40"] < sizes["layers-int8-1.00"] < sizes["dense-int8-1.00"] < sizes["dense-fp32-1.00"] / 3
    assert "| sst2 | svd | int8 | 0.40 |" in done.stdout
    bundle = export(load_model(work / cells["dense-int8-1.00"] / "finetuned"), tmp_path / "bundle", precision="int8")
    written = (bundle.path / "model.onnx.data").stat().st_size
    assert sizes["dense-int8-1.00"] == pytest.approx(written, rel=0.05)  # tensors on disk are aligned
    size = found[cells["svd-int8-0.40"]]["compressed"]
    assert 0 < size["stored_bytes"] == size["bytes"] <= 0.40 * size["dense_bytes"]
    before = {path: path.stat().st_mtime_ns for path in results.glob("*.json")}
    assert run("accuracy", *options).stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in results.glob("*.json")} == before


def test_accuracy_has_a_cell_for_every_row_its_table_promises():
    accuracy = load("accuracy")
    dense, others = accuracy.cells()
    assert len(dense) == 3 * 2
    rows = len(accuracy.RIVALS) + len(accuracy.BUDGETS) * len(accuracy.METHODS)
    assert len(others) == 3 * 2 * len(accuracy.PRECISIONS) * rows
    assert len({cell.name for cell in [*dense, *others]}) == len(dense) + len(others)


def test_no_two_methods_look_alike_in_the_picture(monkeypatch):
    accuracy, drawn = load("accuracy"), []
    monkeypatch.setattr(accuracy, "panels", lambda title, drawings: drawn.extend(drawings["sst2"][2]) or "")
    methods = (*accuracy.RIVALS, *accuracy.METHODS)
    about = {"task": "sst2", "metric": "accuracy", "steps": 9, "bytes": 1e6, "after": [0.9]}
    accuracy.picture([{**about, "method": method} for method in methods])
    assert [line.label for line in drawn] == list(methods)
    assert len({(line.color, line.marker) for line in drawn}) == len(methods)


def test_the_front_takes_the_best_of_each_side_within_a_size():
    accuracy = load("accuracy")

    def row(method, size, score, steps=9):
        return {"task": "sst2", "method": method, "of_dense_int8": size, "after": [score], "steps": steps}

    rows = [row("saten-u", 0.3, 0.9), row("saten-u", 0.19, 0.8), row("svd", 0.3, 0.85), row("dense", 1.0, 0.95)]
    longer = row("svd", 0.3, 0.99, steps=20)
    found = {
        (one["steps"], round(1 / one["share"])): (one["saten"], one["rival"])
        for one in accuracy.front_of([*rows, longer])
    }
    assert found == {
        (20, 2): (None, longer),
        (20, 3): (None, longer),
        (9, 2): (rows[0], rows[2]),
        (9, 3): (rows[0], rows[2]),
        (9, 5): (rows[1], None),
    }


def test_ticks_of_a_picture_do_not_run_into_each_other():
    apart = load("peers.plots")._apart
    assert apart([1, 32, 128, 384]) == [1, 32, 128, 384]
    assert apart([3.716, 5.166, 5.971, 7.226, 90.86]) == [3.716, 5.971, 90.86]
    assert apart([]) == []


def test_the_encoder_shows_cells_that_accuracy_makes():
    accuracy, encoder = load("accuracy"), load("encoder")
    names = {cell.name for part in accuracy.cells() for cell in part}
    models = ["dense", *(row.model for model in encoder.MODELS for row in encoder.trained_rows(*model))]
    assert {encoder.cell_of(model) for model in models} <= names
    assert encoder.cell_of("saten-3:4 0.25 int8") not in names


def test_glue_is_written_in_the_layout_that_accuracy_reads(run, tmp_path):
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
    done = run("glue", tmp_path / "out", "--source", tmp_path / "glue", HF_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    first = {task: (tmp_path / "out" / task / "train.jsonl").read_text("utf-8").splitlines()[0] for task in columns}
    assert json.loads(first["sst2"]) == {"text": "train sentence é", "label": 0}
    assert json.loads(first["rte"]) == {"text_a": "train sentence1 é", "text_b": "train sentence2 é", "label": 0}


def test_a_versus_a_stores_every_ratio_and_what_it_planted(run, int8_bundles, tmp_path):
    options = ("--runs", 2, "--rounds", 3, "--min-time", 0.02, "--tokens", 8, "-o", tmp_path / "a_versus_a.json")
    done = run("a_versus_a", int8_bundles[0], *options)
    assert done.returncode in (0, 1), done.stderr  # 1: so few rounds may find nothing
    assert done.stdout.endswith((tmp_path / "a_versus_a.md").read_text())
    stored = json.loads((tmp_path / "a_versus_a.json").read_text())
    assert len(stored["rows"]) == 2
    assert stored["plan"]["rounds"] == 3
    assert stored["bundle"] == "dense-int8"
    for one in stored["rows"]:
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
    assert lines[0] == "Contain 1: 1 of 2. Slowdown of 5% found: 1 of 2. Valid: 1 of 2."
    assert lines[-2] == "| 1 | 1.0000 | 0.9900–1.0100 | 1.0500 | 1.0400–1.0600 | yes |"
    assert lines[-1].endswith("| no |")


def test_classifiers_on_every_engine_agree_and_are_timed(run, make_tiny, texts, tmp_path):
    checkpoint = make_tiny("bert", "text-classification")
    (tmp_path / "models" / "sst2-dense-fp32-1.00-0").mkdir(parents=True)
    (tmp_path / "models" / "sst2-dense-fp32-1.00-0" / "finetuned").symlink_to(checkpoint)
    rows = ("ORT dense fp32", "PyTorch eager", "svd 0.25 fp32")
    options = ("--tokens", "8", "--threads", 1, "--rounds", 2, "--min-time", 0.02, "--only", ",".join(rows))
    out = tmp_path / "encoder.json"
    options += ("--models", tmp_path / "models", "--data", labelled(tmp_path / "data", texts[:8]))
    done = run("encoder", *options, "--work", tmp_path / "work", "-o", out)
    assert done.returncode == 0, done.stderr
    stored = json.loads(out.read_text())
    table = stored["rows"]
    assert [row["row"] for row in table] == list(rows[:2])
    assert table[0]["accuracy"] == table[1]["accuracy"]
    assert all(row["p50_ms"]["8 tokens, 1 thread"] > 0 and row["peak_anon_bytes"]["8 tokens"] > 0 for row in table)
    assert all(row["floor_ms"]["8 tokens"] > 0 for row in table)
    assert table[0]["ratio"]["8 tokens"]["ORT dense fp32"] == [1, 1, 1]
    assert not any(row["failed"] for row in table)
    without = [f"svd 0.25 fp32{more}" for more in ("", " + kernels")]  # their checkpoint is missing; the rest went on
    assert list(stored["left_out"]) == without
    assert "svd 0.25 fp32: left out" in done.stdout


def test_an_engine_that_computes_something_else_is_not_timed():
    comparison, errors = load("peers.comparison"), load("saten_runtime.errors")
    logits = np.random.default_rng(0).standard_normal((200, 2))
    comparison.check("fp32", logits * (1 + 1e-6), logits)
    comparison.check("int8", logits * 1.01, logits)
    for precision, wrong in (("fp32", logits * 1.01), ("int8", logits[::-1]), ("int4", 0 * logits)):
        with pytest.raises(errors.SatenError, match="differs from torch"):
            comparison.check(precision, wrong, logits)


def test_a_wrong_row_is_named_and_the_others_are_judged(monkeypatch, tmp_path):
    artifacts, comparison = load("peers.artifacts"), load("peers.comparison")
    right, wrong = artifacts.DENSE[:2]
    inputs = [np.full((1, length), number) for number, length in enumerate((3, 5, 3, 5))]
    labels = [0, 1, 1, 1]

    def answer(contender, path):
        with np.load(path) as arrays:
            first = np.concatenate([x[:, 0] for x in arrays.values()])
        logits = np.stack([1.0 - first, first], axis=1)
        return -logits if contender.name == wrong.name else logits

    monkeypatch.setattr(comparison, "logits", answer)
    built = {row: load("peers.measure").Contender(row.name, row.engine, tmp_path, 0) for row in (right, wrong)}
    maker = artifacts.Maker(lambda model: tmp_path, tmp_path, list)
    scores, refused = comparison.judged(built, maker, comparison.Examples(inputs, labels))
    assert scores == {right: 1.0}  # torch was asked by length, and its answers are in the order of the inputs again
    assert list(refused) == [wrong]


def test_ratios_are_of_the_rounds_that_both_rows_had():
    measured = load("peers.measure").Measured
    often, seldom = measured(), measured()
    often.samples["x", 1].update({0: [10, 20, 30], 1: [40], 2: [50], 3: [60]})
    seldom.samples["x", 1].update({0: [40], 3: [60]})
    assert seldom.ratio(often, "x", 1)[0] == pytest.approx((2 + 1) / 2)
    assert often.median_ms("x", 1) == 45 / 1e6
    assert often.ratio(measured(), "x", 1) is None


def test_targets_are_judged_on_rows_that_keep_the_accuracy():
    encoder = load("encoder")

    def row(name, model, precision, accuracy, size, ratio, kernels=None):
        ratios = {"fastest dense": [ratio] * 3, "ORT dense fp32": [ratio / 2] * 3}
        return {"row": name, "model": model, "precision": precision, "kernels": kernels, "accuracy": accuracy,
                "bytes": size, "ratio": dict.fromkeys(("128 tokens", "1 token"), ratios),
                "peak_anon_bytes": {"128 tokens": size}}  # fmt: skip

    table = [
        row("ORT dense fp32", "dense", "fp32", 0.90, 400, 2.0),
        row("ORT dense int8", "dense", "int8", 0.90, 100, 1.0),
        row("good", "saten-u", "int8", 0.895, 60, 0.9, False),
        row("worse", "saten-u", "int8", 0.80, 10, 0.1, False),
    ]
    lines = encoder.targets(table, encoder.Timed("128 tokens", "1 token")).splitlines()
    assert "- MISS int8: bytes, of dense int8: 0.60 by good (wanted ≤ 0.5)" in lines
    assert "- met  int8, 128 tokens: time, of the fastest dense row: 0.90 by good (wanted ≤ 1.0)" in lines
    assert not any("worse" in line for line in lines)


def test_a_lowering_wins_where_it_is_fastest_and_the_prediction_is_counted():
    scaling = load("scaling")

    def row(lowering, at, ms, predicted):
        return {"of": "layer", "axis": "rank", "precision": "int8", "kernels": False, "lowering": lowering, "at": at,
                "ms": ms, "predicted_ms": predicted}  # fmt: skip

    rows = [
        row("dense", 1, 2.0, 2.0),
        row("low-rank", 1, 1.0, 1.0),
        row("dense", 2, 2.0, 4.0),
        row("low-rank", 2, 3.0, 3.0),
    ]
    _, _, line, _, verdict = scaling.winners(rows).splitlines()
    assert line == "| rank | int8 | no | 2 | 1 | – | 1 of 2 | 50% |"
    assert verdict == "- MISS the choice loses at most 5%: at 1 of 2 points (wanted 95%)"
    assert "\n- met  " in scaling.winners(rows[:2])  # the twin


def test_digits_that_judge_are_not_trained_on():
    vision = load("vision")
    (train, labels), (judged, _) = vision.digits(held_out=False), vision.digits(held_out=True)
    assert len(train) + len(judged) == 1797
    assert train.shape[1:] == (8, 8, 3)
    assert train.max() == 255
    assert sorted(set(labels)) == list(range(10))


def test_solvers_are_compared_at_equal_bytes():
    solvers = load("solvers")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    matrix, moments = torch.randn(64, 32, generator=generator), x.T @ x / 256
    rows = [solvers.solved("encoder.a", matrix, moments, pattern, 0.4) for pattern in solvers.PATTERNS]
    for row in rows:
        before, after = (row[solver] for solver in ("alternate", "admm"))
        assert after["error"] <= before["error"] < 1
        assert max(before["bytes"], after["bytes"]) <= 0.4 * matrix.numel() * 4
    assert rows[0]["admm"]["error"] < 0.95 * rows[0]["alternate"]["error"]
    line = solvers.table_text(rows).splitlines()[2]
    assert line.startswith(f"| a | 0.40 | {rows[0]['alternate']['error']:.3f} → {rows[0]['admm']['error']:.3f} |")


def test_the_shapes_of_a_search_take_the_values_that_their_trains_have():
    shapes = load("shapes")
    matrix = torch.randn(35, 24, generator=torch.Generator().manual_seed(0))
    rows = {row["search"]: row for row in shapes.searched("m", matrix, 0.5)}
    assert rows["search"]["values"] <= rows["balanced"]["values"]
    for row in rows.values():
        train = shapes.TtSvd(matrix).train(tuple(map(tuple, row["dims"])), 0.5)
        assert row["values"] == train.numel()
        assert row["ratio"] == pytest.approx(matrix.numel() / row["values"])
    assert shapes.table_text([*rows.values()]).splitlines()[2].startswith("| 35 × 24 | 0.5 | 1.")


@pytest.mark.parametrize("stages", ["EXPORT_STAGES", "COMPRESS_STAGES"])
def test_the_stages_of_a_step_are_functions_that_there_are(stages):
    for module, name in getattr(load("toolchain"), stages):
        assert callable(getattr(importlib.import_module(module), name)), name


class TestBench:
    def test_every_table_has_a_program_and_a_section(self):
        bench = load("bench")
        text = bench.README.read_text("utf-8")
        for table in bench.TABLES:
            assert (FOLDER / table.program).is_file(), table.program
        for name in (*(table.name for table in bench.TABLES), *bench.OTHERS):
            assert text.count(f"<!-- begin {name} -->\n") == text.count(f"<!-- end {name} -->") == 1, name

    def test_the_readme_shows_the_results_that_are_stored(self):
        bench = load("bench")
        text = bench.README.read_text("utf-8")
        (shown,) = {found for found in (FOLDER / "results").iterdir() if f"results/{found.name}/" in text}
        assert bench.refreshed(text, shown) == text

    def test_what_stands_between_the_markers_is_replaced_and_nothing_else(self, tmp_path):
        bench, results = load("bench"), load("peers.results")
        results.publish(tmp_path / "layers.json", [{"a": 1}], "| a |\n\n### All\n\n| b |\n", "<svg/>")
        after = "<!-- end layers -->\nby hand\n<!-- begin vision -->\n<!-- end vision -->\n"
        text = f"Before\n<!-- begin layers -->\nold\n{after}"
        new = bench.refreshed(text, tmp_path)
        assert "old" not in new
        assert "| a |" in new
        assert "| b |" not in new
        assert f"![layers](results/{tmp_path.name}/layers.svg)" in new
        assert new.startswith("Before\n<!-- begin layers -->\n")
        assert new.endswith(after)
        assert bench.refreshed(new, tmp_path) == new

    @pytest.fixture
    def bench(self, monkeypatch, tmp_path):
        bench = load("bench")
        (tmp_path / "good.py").write_text("import sys\nprint(sys.argv)\n")
        (tmp_path / "bad.py").write_text("raise SystemExit(3)\n")
        tables = (
            bench.Table("bad", "bad.py"),
            bench.Table("needy", "good.py", needs=("data",)),
            bench.Table("good", "good.py"),
        )
        monkeypatch.setattr(bench, "TABLES", tables)
        monkeypatch.setattr(bench, "FOLDER", tmp_path)
        return bench

    def test_a_table_that_fails_is_said_and_the_rest_goes_on(self, bench, monkeypatch, tmp_path, capfd):
        monkeypatch.setattr(sys, "argv", ["bench.py", "--work", str(tmp_path / "work"), "-o", str(tmp_path / "out")])
        assert bench.main() == 1
        out, err = capfd.readouterr()
        assert "bad: failed with exit code 3" in err
        assert "needy: left out, it needs DATA=FOLDER" in err
        assert "good: done" in err
        assert str(tmp_path / "out" / "good.json") in out

    def test_a_quick_run_writes_no_result(self, bench, monkeypatch, tmp_path, capfd):
        arguments = ["bench.py", "--work", str(tmp_path / "work"), "--quick", "--only", "good"]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.setattr(bench, "README", tmp_path / "missing")  # reading it would fail
        assert bench.main() == 0
        out, _ = capfd.readouterr()
        assert "--quick" in out
        assert "results" not in out


def test_a_machine_has_one_name():
    name = load("peers.results").machine_name
    assert name({"cpu": "AMD EPYC", "machine": "x86_64", "cores": 2}) == "amd-epyc-2-cores"
    assert name({"cpu": "Cortex-A76 + Cortex-A55", "machine": "aarch64", "cores": 8}) == "cortex-a76-cortex-a55-8-cores"
    assert name({"cpu": None, "machine": "armv7l", "cores": None}) == "armv7l-1-cores"


def test_a_server_is_measured_beside_the_benchmark(run, tiny_bundle, tmp_path):
    out = tmp_path / "serving.json"
    options = ("--clients", "2", "--tokens", "16", "--rounds", "1", "--seconds", "0.3", "-o", out)
    done = run("serving", tiny_bundle("dense-fp32"), *options)
    assert done.returncode in (0, 1), done.stderr  # how fast, a busy machine decides
    found = json.loads(out.read_text())
    assert found["requests"] > 1
    assert found["p50, ms"] <= found["p99, ms"]
    assert found["share"] == pytest.approx(found["server, texts/s"] / found["bench, texts/s"])
