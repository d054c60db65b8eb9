"""A bundle that is not what torch computes, or that is interrupted, is not there at all."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_exporters import DEFAULT_TARGET, PRECISIONS, TARGETS, export, rounding_bound
from saten_exporters.bundles.export import _save_graph
from saten_exporters.bundles.verify import approximation, measured_bound
from saten_exporters.passes.initializers import new_initializer
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import Manifest
from saten_runtime.errors import CheckpointError, ExportError, ParityError, UsageError
from saten_runtime.records.files import digest_of
from saten_runtime.run.parity import (
    Comparison,
    check_parity,
    compare,
    compare_outputs,
    read_cases,
    usual_sizes,
    write_case,
)

BUNDLES = [(model, precision) for model in ("dense", "saten", "unstructured") for precision in PRECISIONS]
CASES = {"single": (1, 1), "short": (1, 7), "padded": (2, 16), "ragged": (3, 33)}
INPUTS = {"input_ids", "attention_mask", "token_type_ids"}

BundleOf = Callable[[str, str], Bundle]


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_an_output_that_exists(
    kind: str, loaded_tiny: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saten_exporters.bundles.export.trace", lambda *_: pytest.fail("traced all the same"))
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("precious")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="already exists"):
        export(loaded_tiny["dense"], out)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int3"}, "--precision int3: there are fp32, fp16, int8, int8-block, int4, int4-128, int2"),
        ({"target": "moon"}, "--target moon: there are x86-64, "),
    ],
)
def test_no_such_option(
    options: dict[str, Any], words: str, loaded_tiny: dict[str, LoadedModel], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        export(loaded_tiny["dense"], tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def slow_tokenizer(loaded: LoadedModel) -> None:
    loaded.tokenizer = type("Slow", (), {"pad_token_id": 0, "model_input_names": ("input_ids", "attention_mask")})()


def unnamed_class(loaded: LoadedModel) -> None:
    del loaded.model.config.id2label[0]


def odd_step(loaded: LoadedModel) -> None:
    loaded.processor.do_center_crop, loaded.processor.crop_size = True, {"height": 9, "width": 9}


def odd_choice(loaded: LoadedModel) -> None:
    loaded.model.generation_config.top_k = -1


BERT, PICTURES, DECODER = ("bert", "text-classification"), ("vit", "image-classification"), ("llama", "text-generation")
EARLY: dict[str, tuple[tuple[str, str], Callable[[LoadedModel], object], dict[str, Any], str]] = {
    "a slow tokenizer": (BERT, slow_tokenizer, {}, "Slow has no `tokenizers` form"),
    "a class without a name": (BERT, unnamed_class, {}, "id2label names the classes"),
    "a step of pictures": (PICTURES, odd_step, {}, "makes .9, 9., its model takes .32, 32."),
    "a rule of generation": (DECODER, odd_choice, {}, "top_k: found -1"),
    "a lowering": (BERT, lambda _: None, {"lowering": "nosuch"}, "--lowering nosuch: there are "),
}


@pytest.mark.parametrize("what", EARLY)
def test_what_is_refused_is_refused_before_tracing(
    what: str, make_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saten_exporters.bundles.export.trace", lambda *_: pytest.fail("traced all the same"))
    (family, task), change, options, message = EARLY[what]
    loaded = load_model(make_tiny(family, task), task)
    change(loaded)
    with pytest.raises((ExportError, UsageError), match=message):
        export(loaded, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


# --- all or nothing ----------------------------------------------------------------------------------------------


def perturb(relative: float) -> Callable[..., None]:
    """write_case, with torch's outputs off by up to `relative` of their largest value."""

    def write(folder: Path, case: str, arrays: dict[str, np.ndarray]) -> None:
        random = np.random.default_rng(4)
        moved = {
            name: array
            if name in INPUTS
            else array + (relative * np.abs(array).max() * random.uniform(-1, 1, array.shape)).astype(array.dtype)
            for name, array in arrays.items()
        }
        write_case(folder, case, moved)

    return write


@pytest.mark.parametrize("model", ["dense", "saten"])
def test_another_answer_than_torchs_leaves_no_bundle(
    model: str, loaded_tiny: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saten_exporters.bundles.verify.write_case", perturb(1e-2))
    with pytest.raises(ParityError, match="8 of 8 comparisons fail"):
        export(loaded_tiny[model], tmp_path / "parent" / "out")
    assert list(tmp_path.iterdir()) == []


def test_rounding_is_no_other_answer(
    loaded_tiny: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saten_exporters.bundles.verify.write_case", perturb(1e-6))
    assert export(loaded_tiny["saten"], tmp_path / "out").path == tmp_path / "out"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_wrong_layer_leaves_no_bundle(
    loaded_tiny: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The values of one residual change places on their way to the graph."""
    source = loaded_tiny["saten"]
    parts = source.layer_parts()
    name = next(name for name in parts if name.endswith("layer.1.output.dense"))
    parts[name] = dataclasses.replace(parts[name], values=np.roll(parts[name].values, 1))
    monkeypatch.setattr(source, "layer_parts", lambda: parts)
    with pytest.raises(ParityError):
        export(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", ["run_passes", "_save_graph", "write_cases", "compare", "model_card"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_no_bundle(
    at: str,
    error: type[BaseException],
    loaded_tiny: dict[str, LoadedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: Any) -> None:
        assert [path.name.startswith(".out.partial-") for path in tmp_path.iterdir()] == [True]
        raise error

    monkeypatch.setattr(f"saten_exporters.bundles.export.{at}", stop)
    with pytest.raises(error):
        export(loaded_tiny["dense"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_overwriting(loaded_tiny: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    first = export(loaded_tiny["dense"], out, name="first")
    with monkeypatch.context() as patch:
        patch.setattr("saten_exporters.bundles.verify.write_case", perturb(1e-2))
        with pytest.raises(ParityError):
            export(loaded_tiny["dense"], out, name="second", overwrite=True)
    assert Bundle.open(out) == first
    export(loaded_tiny["dense"], out, name="third", precision="int8", overwrite=True)
    assert Bundle.open(out).name == "third"
    assert list(tmp_path.iterdir()) == [out]


def test_the_same_model_gives_the_same_bytes(loaded_tiny: dict[str, LoadedModel], tmp_path: Path) -> None:
    """In one process: what the judgement measured depends on the number of threads in its last digits."""
    first, second = (
        export(loaded_tiny["saten"], tmp_path / place / "saten-int8", precision="int8", lowering="low-rank")
        for place in ("first", "second")
    )
    assert first.manifest == second.manifest


def test_the_command_ends_with_3(
    tiny_bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    loaded_tiny: dict[str, LoadedModel],
) -> None:
    from saten_edge.cli.commands import main

    monkeypatch.setattr("saten_edge.stages.load_model", lambda *_: loaded_tiny["dense"])
    monkeypatch.setattr("saten_exporters.bundles.verify.write_case", perturb(1e-2))
    out = tmp_path / "parent" / "out"
    monkeypatch.setattr(sys, "argv", ["saten-edge", "export", str(tiny_bert), "-o", str(out), "--quiet"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 3
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("saten-edge: error: ")
    assert "from torch's, allowed are" in stderr
    assert stderr.count("\n") == 1
    assert not out.parent.exists()


def test_the_manifest_is_what_was_written(bundle_of: BundleOf) -> None:
    bundle = bundle_of("saten", "fp32")
    written = json.loads((bundle.path / "saten_edge.json").read_text())
    assert isinstance(bundle.manifest, Manifest)
    assert written.pop("seal") == digest_of(bundle.manifest.to_json())
    assert written == bundle.manifest.to_json()


# --- a folder instead of a model ---------------------------------------------------------------------------------


def test_a_model_is_given_when_it_is_needed(loaded_tiny: dict[str, LoadedModel], tmp_path: Path) -> None:
    asked: list[str] = []

    def give(task: str = "") -> LoadedModel:
        asked.append(task)
        return loaded_tiny["dense"]

    bundle = export(give, str(tmp_path / "out"), dense=give)
    assert asked == ["", "feature-extraction"]
    assert bundle.path == tmp_path / "out"
    assert bundle.manifest.source == loaded_tiny["dense"].source


def test_a_given_model_is_let_go_before_the_graph_is_loaded(
    loaded_tiny: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[LoadedModel]] = []
    left: list[bool] = []

    def give() -> LoadedModel:
        model = dataclasses.replace(loaded_tiny["dense"])
        models.append(weakref.ref(model))
        return model

    def counted(bundle: Bundle) -> list[Comparison]:
        left.append(models[-1]() is not None)
        return compare(bundle)

    monkeypatch.setattr("saten_exporters.bundles.export.compare", counted)
    export(give, tmp_path / "given")
    kept = give()
    export(kept, tmp_path / "kept")
    assert left == [False, True]


def test_a_model_that_cannot_be_given_leaves_no_bundle(tmp_path: Path) -> None:
    def give() -> LoadedModel:
        raise CheckpointError("gone")

    with pytest.raises(CheckpointError, match="gone"):
        export(give, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- the measured bound ------------------------------------------------------------------------------------------


def test_an_8_bit_answer_that_is_another_leaves_no_bundle(
    loaded_tiny: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saten_exporters.bundles.verify.write_case", perturb(2.0))
    with pytest.raises(ParityError, match=r"rounding to int8 explains a median of 0\.5 at most"):
        export(loaded_tiny["dense"], tmp_path / "out", precision="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["dense", "saten", "unstructured"])
def test_an_8_bit_bundle_is_held_to_what_was_measured(model: str, bundle_of: BundleOf) -> None:
    bundle = bundle_of(model, "int8")
    worst = max(row.relative_error for row in check_parity(bundle))
    assert bundle.manifest.tolerance["relative"] == pytest.approx(2 * worst)
    assert f"allowed {2 * worst:.2e}" in (bundle.path / "README.md").read_text()


@pytest.mark.parametrize("errors", [(0.1, 0.1, math.nan), (0.1, 0.1, math.inf), (0.1, 0.51, 0.52)])
def test_no_bound_is_measured_from_nonsense(errors: tuple[float, ...]) -> None:
    rows = [Comparison("case", "y", True, [1], error, 1.0, None) for error in errors]
    with pytest.raises(ParityError, match="rounding to int8 explains a median"):
        measured_bound("name", "int8", rows)
    assert measured_bound("name", "int8", rows[:1]) == pytest.approx(0.2)


def test_one_answer_near_0_may_be_far_off() -> None:
    rows = [Comparison("case", "y", True, [1], error, 1.0, None) for error in (0.1, 0.2, 0.9)]
    assert measured_bound("name", "int8", rows) == pytest.approx(1.8)


def test_stored_halves_widen_the_bound_by_their_rounding(parse_model: Callable[..., ir.Model]) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[2, 9] x, float[9, 25] w) => (float[2, 25] y) { y = MatMul (x, w) }"""
    graph = parse_model(text, w=np.ones((9, 25), np.float32)).graph
    assert rounding_bound(graph, "fp16") == pytest.approx(5 * 2.0**-24 + 2.0**-11)


# --- names -------------------------------------------------------------------------------------------------------

SAME = """<ir_version: 10, opset_import: ["" : 18]>
    g (float[2, 3] x) => (float[2, 3] y) {
        once = Neg (x)
        again = Abs (once)
        y = Neg (again)
    }"""


@pytest.mark.parametrize("name", ["again", "x", "y"])
def test_two_values_of_one_name(name: str, parse_model: Callable[..., ir.Model], tmp_path: Path) -> None:
    model = parse_model(SAME)
    _save_graph(model, tmp_path, TARGETS[DEFAULT_TARGET])
    model.graph[0].outputs[0].name = name
    with pytest.raises(ExportError, match="the graph is not valid ONNX"):
        _save_graph(model, tmp_path, TARGETS[DEFAULT_TARGET])


def test_two_weights_of_one_name(parse_model: Callable[..., ir.Model]) -> None:
    model = parse_model(SAME)
    new_initializer(model, "layer.a", np.zeros(3, np.float32))
    with pytest.raises(ExportError, match=r"two tensors of the graph would be called 'layer\.a'"):
        new_initializer(model, "layer.a", np.ones(3, np.float32))


# --- apart from it: the distance to the dense model ----------------------------------------------------------------


def test_the_distance_to_the_dense_model_is_reported_apart(
    loaded_tiny: dict[str, LoadedModel], bundle_of: BundleOf, tmp_path: Path
) -> None:
    saten, dense = loaded_tiny["saten"], loaded_tiny["dense"]
    bundle, plain = export(saten, tmp_path / "out", dense=dense), bundle_of("dense", "fp32")
    usual = usual_sizes(plain.task, read_cases(plain), plain.manifest.outputs)["last_hidden_state"]
    report = json.loads((bundle.path / "validation" / "report.json").read_text())
    assert len(report["comparisons"]) == 2 * len(CASES)
    assert {row["case"] for row in report["approximation"]} == set(CASES)
    for row in report["approximation"]:
        arrays = [
            np.load(each.path / "validation" / f"{row['case']}.last_hidden_state.npy") for each in (bundle, plain)
        ]
        mask = np.load(bundle.path / "validation" / f"{row['case']}.attention_mask.npy")
        assert row["relative_error"] == pytest.approx(compare_outputs(*arrays, mask, usual)[0])
        assert row["relative_error"] > 100 * bundle.manifest.tolerance["relative"]
        assert row["bound"] is None
    assert "differ from the dense model's" in (bundle.path / "README.md").read_text()
    assert "differ from the dense model's" not in (bundle_of("saten", "fp32").path / "README.md").read_text()


def test_a_dense_model_of_another_task(loaded_tiny: dict[str, LoadedModel], bundle_of: BundleOf) -> None:
    other = dataclasses.replace(loaded_tiny["dense"], task="text-classification")
    with pytest.raises(
        UsageError, match="does text-classification by BertModel, the model to export feature-extraction"
    ):
        approximation(bundle_of("saten", "fp32"), other)
