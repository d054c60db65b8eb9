"""Loading models for a task: heads old and new, texts, pairs and images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saten_edge.checkpoints.models import load_model, save_model
from saten_runtime.errors import CheckpointError, UsageError


class TestNewHeads:
    @pytest.mark.parametrize(
        ("model_type", "task"),
        [
            ("bert", "text-classification"),
            ("roberta", "text-classification"),
            ("distilbert", "text-classification"),
            ("modernbert", "token-classification"),
            ("qwen3", "text-classification"),
            ("vit", "image-classification"),
        ],
    )
    def test_drawn_from_the_seed_and_nothing_else_is(self, model_type, task, make_tiny):
        folder = make_tiny(model_type, "feature-extraction")
        first, again, other = (load_model(folder, task, num_labels=3, seed=seed).model for seed in (1, 1, 2))
        body = load_model(folder).model.state_dict()
        assert first.config.num_labels == 3
        changed = set()
        for name, parameter in first.named_parameters():
            assert torch.equal(parameter, again.get_parameter(name)), name
            if not torch.equal(parameter, other.get_parameter(name)):
                changed.add(name)
            inner = name.removeprefix(f"{first.base_model_prefix}.")
            if inner in body and inner != name:
                assert torch.equal(parameter, body[inner]), name
        assert changed
        assert not {name.removeprefix(f"{first.base_model_prefix}.") for name in changed} & set(body)

    def test_the_callers_random_numbers_go_on_undisturbed(self, make_tiny):
        folder = make_tiny("bert", "feature-extraction")
        torch.manual_seed(5)
        wanted = torch.rand(3)
        torch.manual_seed(5)
        load_model(folder, "text-classification", num_labels=2)
        assert torch.equal(torch.rand(3), wanted)

    def test_a_head_of_that_size_is_kept_one_of_another_size_replaced(self, make_tiny):
        folder = make_tiny("bert", "text-classification", num_labels=3)
        stored = load_model(folder).model.classifier.weight
        assert torch.equal(load_model(folder, num_labels=3).model.classifier.weight, stored)
        assert load_model(folder, num_labels=5, seed=1).model.classifier.weight.shape == (5, 64)

    def test_one_label_is_a_regression(self, make_tiny):
        loaded = load_model(make_tiny("bert", "feature-extraction"), "text-classification", num_labels=1)
        assert loaded.model.config.problem_type == "regression"

    def test_without_a_number_of_labels_none_is_drawn(self, make_tiny):
        with pytest.raises(
            CheckpointError, match=r"classifier\.bias and 1 more weights are missing .* fine-tune it on labels"
        ):
            load_model(make_tiny("roberta", "feature-extraction", vocab_size=1201), "token-classification")

    def test_the_body_is_never_drawn(self, make_tiny, tmp_path):
        from safetensors.torch import load_file, save_file

        folder = shutil.copytree(make_tiny("bert", "feature-extraction"), tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        del tensors["encoder.layer.1.output.dense.bias"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"bert\.encoder\.layer\.1\.output\.dense\.bias is missing"):
            load_model(folder, "text-classification", num_labels=2)

    @pytest.mark.parametrize(
        ("task", "labels", "message"),
        [
            ("text-classification", 0, "0 labels for text-classification; expected at least one"),
            ("feature-extraction", 2, "2 labels for feature-extraction; expected at least one, for a classification"),
            ("text-generation", None, "bert has no task 'text-generation'; there are: feature-extraction, "),
            ("poetry", None, "no task 'poetry'; there are: feature-extraction, text-classification"),
        ],
    )
    def test_what_does_not_fit(self, task, labels, message, make_tiny):
        with pytest.raises(UsageError, match=message):
            load_model(make_tiny("bert", "feature-extraction"), task, num_labels=labels)


class TestInputs:
    def test_pairs_are_told_apart(self, make_tiny, texts):
        loaded = load_model(make_tiny("bert", "text-classification"))
        batch = loaded.encode([(texts[0], texts[1]), (texts[2], texts[3])])
        single = loaded.encode([texts[0], texts[2]])
        assert batch["input_ids"].shape[1] > single["input_ids"].shape[1]
        assert batch["token_type_ids"].any()
        assert not single["token_type_ids"].any()

    def test_long_pairs_are_cut(self, make_tiny):
        long = " ".join(["gar"] * 200)
        loaded = load_model(make_tiny("bert", "text-classification"))
        assert loaded.encode([(long, long)])["input_ids"].shape == (1, 96)
        assert loaded.encode([(long, long)], 20)["input_ids"].shape == (1, 20)

    @pytest.mark.parametrize("model_type", ["roberta", "mpnet"])
    def test_positions_that_no_text_reaches_are_not_counted(self, model_type, make_tiny):
        loaded = load_model(make_tiny(model_type, "feature-extraction"))
        batch = loaded.encode([" ".join(["gar"] * 200)])
        assert batch["input_ids"].shape == (1, 94)
        assert torch.isfinite(loaded.model(**batch).last_hidden_state).all()

    def test_images_go_through_the_processor(self, make_tiny, images, tmp_path):
        loaded = load_model(make_tiny("vit", "image-classification"))
        assert (loaded.tokenizer, loaded.task) == (None, "image-classification")
        pixels = loaded.encode(images[:3])["pixel_values"]
        assert pixels.shape == (3, 3, 32, 32)
        assert not torch.equal(pixels[0], pixels[1])
        save_model(loaded, tmp_path / "again")
        assert torch.equal(load_model(tmp_path / "again").encode(images[:3])["pixel_values"], pixels)

    def test_a_tokenizer_without_padding_pads_with_its_end(self, make_tiny, texts, tmp_path):
        folder = shutil.copytree(make_tiny("gpt2", "text-classification"), tmp_path / "model")
        for name in ("config.json", "tokenizer_config.json"):
            data = json.loads((folder / name).read_text())
            data.update({"pad_token": None, "eos_token": "[SEP]"} if "tokenizer" in name else {"pad_token_id": None})
            (folder / name).write_text(json.dumps(data))
        loaded = load_model(folder)
        batch = loaded.encode(texts[:4])
        assert not batch["attention_mask"].bool().all()
        assert loaded.tokenizer.pad_token_id == 3
        assert loaded.model.config.pad_token_id == loaded.pad_id == 0  # every text ends with 3
        alone = torch.cat([loaded.model(**loaded.encode([text])).logits for text in texts[:4]])
        assert torch.allclose(loaded.model(**batch).logits, alone, atol=1e-4)


def test_the_task_is_read_from_the_files(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(make_tiny("bert", "text-classification"), tmp_path / "model")
    assert load_model(folder).task == "text-classification"
    (folder / "modules.json").write_text("[]")  # sentence-transformers keeps its model so
    assert load_model(folder).task == "feature-extraction"


def test_a_model_without_a_known_task_needs_one_named(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    folder = shutil.copytree(make_tiny("bert", "text-classification"), tmp_path / "model")
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "architectures": ["BertForNextSentencePrediction"]}))
    with pytest.raises(UsageError, match="no task is known for a model of class BertForNextSentencePrediction"):
        load_model(folder)
    assert load_model(folder, "text-classification").task == "text-classification"
