"""What a precision costs on real text: measured, kept, and refused where it ruins the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.options import ExportOptions
from saten_edge.stages import export as export_stage
from saten_exporters import export
from saten_exporters.bundles.judge import BUILT_IN, SAMPLES, judge_of, refuse_loss
from saten_exporters.choice.settings import LARGEST_LOSS
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import MANIFEST_FILE, Judgement, sealed
from saten_runtime.errors import DataError, ParityError, UsageError

HUGE = 3000.0
RUINED = r"int8 costs KL divergence \d\.\d{4}, agreement 0\.\d{3} \(built-in text: 8 items, \d+ tokens\), more than "
RUINED += r"--max-loss 0\.1; choose another --precision"


def plant(model: torch.nn.Module) -> None:
    """One channel of a huge size behind every norm, and weights as much smaller: in float32 the same function."""
    with torch.no_grad():
        for layer in model.model.layers:
            for norm, readers in (
                (layer.input_layernorm, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)),
                (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
            ):
                norm.weight[5] *= HUGE
                for reader in readers:
                    reader.weight[:, 5] /= HUGE


@pytest.fixture(scope="module")
def decoder(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny("llama", "text-generation")


@pytest.fixture(scope="module")
def planted(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded = load_model(decoder)
    plant(loaded.model)
    folder = tmp_path_factory.mktemp("planted") / "planted"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def test_the_plant_changes_nothing_in_float32(decoder: Path, planted: Path) -> None:
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        one, other = (load_model(folder).model(ids).logits for folder in (decoder, planted))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_model_that_int8_ruins_is_refused(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=RUINED) as caught:
        export(load_model(planted), tmp_path / "out", precision="int8")
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_the_same_at_fp32_is_only_verified(planted: Path, tmp_path: Path) -> None:
    assert export(load_model(planted), tmp_path / "out").manifest.judgement is None


@pytest.fixture(scope="module")
def sound(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(load_model(decoder), tmp_path_factory.mktemp("sound") / "out", precision="int8")


def test_a_sound_model_passes_and_says_what_it_costs(sound: Bundle) -> None:
    found = sound.manifest.judgement
    assert found is not None
    assert (found.by, found.items, found.measure) == (BUILT_IN, 8, "kl")
    assert 0 < found.loss <= LARGEST_LOSS
    assert 0.5 < found.agreement <= 1
    assert found.text() in (sound.path / "README.md").read_text("utf-8")


def test_a_smaller_loss_can_be_asked_for(decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"more than --max-loss 1e-09"):
        export_stage(decoder, tmp_path / "out", ExportOptions(precision="int8", max_loss=1e-9))
    with pytest.raises(UsageError, match="--max-loss -1: expected a number of at least 0"):
        ExportOptions(max_loss=-1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_never_allowed(value: float) -> None:
    with pytest.raises(ParityError, match="more than --max-loss inf"):
        refuse_loss("a", "int8", Judgement("text", "", 1, 1, "kl", value, 0.0), float("inf"))
    refuse_loss("a", "int8", Judgement("text", "", 1, 1, "kl", 50.0, 0.0), float("inf"))


MEASURES = [
    ("bert", "feature-extraction", "cosine"),
    ("bert", "question-answering", "kl"),
    ("bert", "token-classification", "kl"),
    ("bert", "text-classification", "kl"),
    ("llama", "text-classification", "kl"),
    ("vit", "image-classification", "kl"),
]


@pytest.mark.parametrize(("family", "task", "measure"), MEASURES)
def test_every_task_has_a_measure(
    family: str, task: str, measure: str, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = export(load_model(make_tiny(family, task), task), tmp_path / "out", precision="fp16")
    found = bundle.manifest.judgement
    assert found is not None
    assert (found.measure, found.by) == (measure, SAMPLES if family == "vit" else BUILT_IN)
    assert -1e-6 < found.loss < 1e-4  # fp16 rounds weights by 2⁻¹¹, whose square a loss is about
    assert found.agreement > 0.9


def test_a_regression_is_judged_by_its_numbers(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_tiny("bert", "text-classification", num_labels=1)
    found = export(load_model(folder), tmp_path / "out", precision="fp16").manifest.judgement
    assert found is not None
    assert found.measure == "error"
    assert found.agreement == pytest.approx(1 - found.loss)


FILES = [
    ({"text": "one", "label": 1}, [("one",)]),
    ({"text": "one"}, [("one",)]),
    ({"text_a": "one", "text_b": "two", "label": 1}, [("one", "two")]),
    ({"query": "one", "answer": "two"}, [("one",), ("two",)]),
    ({"question": "one", "context": "two", "answers": ["two"]}, [("one", "two")]),
    ({"words": ["one", "two"], "labels": ["a", "b"]}, [("one two",)]),
]


@pytest.fixture(scope="module")
def bert(tiny_bert: Path) -> LoadedModel:
    return load_model(tiny_bert)


@pytest.mark.parametrize(("line", "items"), FILES)
def test_a_file_is_read_as_eval_reads_it(
    line: dict[str, object], items: list[tuple[str, ...]], bert: LoadedModel, tmp_path: Path
) -> None:
    file = tmp_path / "judge.jsonl"
    file.write_text(json.dumps(line) + "\n")
    judge = judge_of(bert, file)
    assert (judge.name, list(judge.items)) == ("judge.jsonl", items)


def test_a_file_that_does_not_fit_is_refused(bert: LoadedModel, make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "judge.jsonl"
    file.write_text('{"image": "a.ppm", "label": 1}\n')
    with pytest.raises(DataError, match=r"--judge .*judge\.jsonl: holds images data, expected texts"):
        judge_of(bert, file)
    with pytest.raises(UsageError, match="takes pictures and is judged by samples"):
        judge_of(load_model(make_tiny("vit", "image-classification")), file)
    file.write_text('{"text": "alone"}\n')
    with pytest.raises(DataError, match="holds plain data, expected pairs of texts"):
        judge_of(load_model(make_tiny("bert", "question-answering")), file)


def test_the_file_decides(decoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "bal del fin"}\n')
    found = export(load_model(decoder), tmp_path / "out", precision="int8", judge=file).manifest.judgement
    assert found is not None
    assert (found.by, found.items) == ("mine.jsonl", 1)


def test_a_bundle_without_a_judgement_is_read(sound: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(sound.path, tmp_path / "old")
    values = sealed(sound.manifest)
    del values["judgement"], values["seal"]
    (folder / MANIFEST_FILE).write_text(json.dumps(values))
    assert Bundle.open(folder).manifest.judgement is None
