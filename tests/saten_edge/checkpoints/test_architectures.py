"""Every family of the table, in every task: compressed, saved, read by plain transformers, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from saten_edge.checkpoints.architectures import ARCHITECTURES, architecture, task_of
from saten_edge.checkpoints.bundle_bytes import dense_layers
from saten_edge.checkpoints.compress import compress, compressible_layers
from saten_edge.checkpoints.models import LoadedModel, load_model, save_model
from saten_edge.checkpoints.modules import SatenHead, saten_layers
from saten_edge.checkpoints.selection import Selection
from saten_edge.decomposition.recipe import Recipe
from saten_edge.training.rounding import rounded
from saten_runtime.errors import ExportError, UsageError
from saten_runtime.vocabulary.tasks import HUB_TASKS

QUICK = Recipe(rounds=1, share=0.6)
CASES = [(row.model_type, task) for row in ARCHITECTURES.values() for task in row.tasks]
TIED = ("qwen2", "qwen3", "gemma", "gpt2")


def outputs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Everything a task's model says, flat."""
    with torch.no_grad():
        found = model(**batch)
    names = ("logits", "start_logits", "end_logits") if "last_hidden_state" not in found else ("last_hidden_state",)
    return torch.cat([found[name].reshape(-1) for name in names if name in found])


def batch_of(loaded: LoadedModel, texts: list[str], images: list[Any]) -> dict[str, torch.Tensor]:
    return loaded.encode(images[:3] if loaded.processor else texts[:3])


@pytest.fixture(scope="module")
def compressed_of(make_tiny: Callable[..., Path]) -> Callable[..., LoadedModel]:
    def make(model_type: str, task: str, **options: Any) -> LoadedModel:
        loaded = load_model(make_tiny(model_type, task, **options))
        compress(loaded, 0.5, group=8, recipe=QUICK)
        return loaded

    return make


def test_every_family_has_a_configuration(tiny_sizes: dict[str, dict[str, Any]]) -> None:
    assert set(tiny_sizes) == set(ARCHITECTURES)


@pytest.mark.parametrize(("model_type", "task"), CASES)
def test_plain_transformers_reads_what_was_saved(model_type, task, compressed_of, texts, images, tmp_path):
    loaded = compressed_of(model_type, task)
    assert loaded.task == task
    batch = batch_of(loaded, texts, images)
    wanted = outputs(loaded.model, batch)
    save_model(loaded, tmp_path / "saved")
    model = getattr(transformers, HUB_TASKS[task].auto).from_pretrained(tmp_path / "saved").eval()
    assert set(saten_layers(model)) == set(saten_layers(loaded.model))
    assert torch.equal(outputs(model, batch), wanted)
    assert torch.equal(outputs(load_model(tmp_path / "saved").model, batch), wanted)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_one_changed_value_changes_the_outputs(model_type, compressed_of, texts, images):
    """The twin, for every layer: each is really used."""
    loaded = compressed_of(model_type, ARCHITECTURES[model_type].tasks[-1])
    batch = batch_of(loaded, texts, images)
    wanted = outputs(loaded.model, batch)
    for name, layer in saten_layers(loaded.model).items():
        kept = [core.detach().clone() for core in layer.cores]
        with torch.no_grad():
            layer.cores[0].mul_(2)
            assert not torch.equal(outputs(loaded.model, batch), wanted), name
            for core, before in zip(layer.cores, kept, strict=True):
                core.copy_(before)
    assert torch.equal(outputs(loaded.model, batch), wanted)


class TestTable:
    @pytest.mark.parametrize("model_type", ARCHITECTURES)
    def test_its_paths_are_those_of_the_models(self, model_type, make_tiny, tiny_sizes):
        row = ARCHITECTURES[model_type]
        for task in row.tasks:
            model = load_model(make_tiny(model_type, task)).model
            assert len(model.base_model.get_submodule(row.blocks)) == model.config.num_hidden_layers
            tables = [model.base_model.get_submodule(table) for table in row.tables]
            assert all(isinstance(table, torch.nn.Embedding) for table in tables)
            if tables:
                assert tables[0] is model.get_input_embeddings()
            own = {name.split(".")[0] for name, _ in model.named_parameters()} - {model.base_model_prefix}
            if task not in ("feature-extraction", "text-generation"):
                assert own <= set(row.heads), own
            if task == "text-generation":
                assert model.get_output_embeddings() is model.get_submodule(str(row.tied_head))

    def test_an_unknown_family(self):
        with pytest.raises(
            ExportError, match=r"model_type 't5' is not known; there are: bert, camembert, .*, xlm-roberta$"
        ):
            architecture("t5")
        with pytest.raises(ExportError, match="None is not known"):
            architecture(None)

    @pytest.mark.parametrize(
        ("model_type", "reason"),
        [
            ("gemma2", "tanh caps its attention scores"),
            ("gemma3", "reads texts and pictures together; its text model alone has model_type gemma3_text"),
            ("siglip", "its vision tower alone has model_type siglip_vision_model"),
            ("whisper", "it reads sound"),
        ],
    )
    def test_a_family_that_no_bundle_expresses_is_refused_with_the_reason(self, model_type, reason, tmp_path):
        assert model_type not in ARCHITECTURES
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
        with pytest.raises(ExportError, match=f"model_type '{model_type}' cannot be expressed: .*{reason}"):
            load_model(tmp_path, "feature-extraction")

    @pytest.mark.parametrize(
        ("model_type", "task", "option", "message"),
        [
            ("mistral", "text-generation", {"sliding_window": 64}, "mistral with sliding_window = 64 cannot"),
            (
                "qwen2",
                "text-generation",
                {"use_sliding_window": True, "sliding_window": 64},
                "use_sliding_window = True",
            ),
            (
                "llama",
                "text-generation",
                {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
                "rope_parameters.rope_type = 'dynamic' cannot be expressed; expected one of: 'default', 'linear'",
            ),
            ("bert", "feature-extraction", {"is_decoder": True}, "bert with is_decoder = True cannot"),
            *(
                (
                    "modernbert",
                    "feature-extraction",
                    {
                        "rope_parameters": {
                            "full_attention": {"rope_theta": 1e4, "rope_type": "default"},
                            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                            f"{kind}_attention": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
                        }
                    },
                    f"modernbert with rope_parameters.{kind}_attention.rope_type = 'dynamic' cannot",
                )
                for kind in ("full", "sliding")
            ),
            *(
                (
                    family,
                    "text-generation",
                    {"layer_types": ["full_attention", "sliding_attention"]},
                    rf"{family} with layer_types = \['full_attention', 'sliding_attention'\] cannot",
                )
                for family in ("llama", "qwen2", "qwen3", "mistral", "gpt2")
            ),
            ("llama", "text-generation", {"sliding_window": 8}, "llama with sliding_window = 8 cannot"),
            ("gpt2", "text-generation", {"attention_chunk_size": 8}, "gpt2 with attention_chunk_size = 8 cannot"),
            ("qwen2", "feature-extraction", {"is_causal": False}, "qwen2 with is_causal = False cannot"),
            ("gpt2", "text-generation", {"add_cross_attention": True}, "gpt2 with add_cross_attention = True cannot"),
            ("roberta", "feature-extraction", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
            ("gemma", "text-generation", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
            (
                "gemma3_text",
                "text-generation",
                {"attn_logit_softcapping": 50.0},
                "attn_logit_softcapping = 50.0 cannot",
            ),
            ("dinov2", "image-classification", {"use_swiglu_ffn": True}, "dinov2 with use_swiglu_ffn = True cannot"),
            (
                "siglip_vision_model",
                "feature-extraction",
                {"vision_use_head": True},
                "siglip_vision_model with vision_use_head = True cannot be expressed; expected one of: False",
            ),
        ],
    )
    def test_an_option_we_cannot_express(self, model_type, task, option, message, make_tiny):
        with pytest.raises(ExportError, match=message):
            load_model(make_tiny(model_type, task, **option))

    @pytest.mark.parametrize(
        ("architectures", "task"),
        [
            (["BertModel"], "feature-extraction"),
            (["MPNetForMaskedLM"], "feature-extraction"),
            (["GPT2LMHeadModel"], "text-generation"),
            (["Qwen3ForCausalLM"], "text-generation"),
            (["RobertaForSequenceClassification"], "text-classification"),
            (["DeiTForImageClassificationWithTeacher"], "image-classification"),
        ],
    )
    def test_the_task_of_a_class(self, architectures, task):
        assert task_of(architectures) == task

    @pytest.mark.parametrize("architectures", [[], ["BertForNextSentencePrediction"]])
    def test_a_class_without_a_task(self, architectures):
        with pytest.raises(UsageError, match="no task is known for a model of class"):
            task_of(architectures)


class TestScaledTables:
    """Gemma's table multiplies its rows by the root of their width; its head, which shares them, does not."""

    def test_parts_are_scaled_as_the_dense_table_is(self, compressed_of, make_tiny, tmp_path):
        dense = load_model(make_tiny("gemma", "text-generation")).model.get_input_embeddings()
        loaded, ids = compressed_of("gemma", "text-generation"), torch.tensor([[5, 900, 5], [7, 0, 1]])
        assert torch.equal(dense(ids), dense.weight[ids] * 8)  # the root of 64
        save_model(loaded, tmp_path / "saved")
        read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        for model in (loaded.model, read):
            table = model.get_input_embeddings()
            bound = 64 * torch.finfo(torch.float32).eps * table.matrix().norm()
            for asked in (ids, torch.arange(1200)):  # a few rows, and the whole table
                found, wanted = table(asked), table.matrix()[asked]
                assert ((found - 8 * wanted).abs() <= bound).all()
                assert not ((found - wanted).abs() <= bound).all()  # the twin

    def test_layers_rounded_in_training_are_scaled(self, compressed_of, make_tiny):
        ids = torch.tensor([[5, 900], [7, 1]])
        for model in (
            load_model(make_tiny("gemma", "text-generation")).model,
            compressed_of("gemma", "text-generation").model,
        ):
            table = model.get_input_embeddings()
            exact, matrix = table(ids), table.matrix() if hasattr(table, "matrix") else table.weight
            with rounded(model, "int8"):
                found = table(ids)
            assert 0 < (found - exact).norm() < 0.05 * exact.norm()
            assert (found - matrix[ids]).norm() > 0.5 * exact.norm()  # the twin


class TestTiedHeads:
    """A table and a head of one weight share one set of parts, whatever transformers does to them."""

    @pytest.mark.parametrize("model_type", TIED)
    def test_shared_in_memory_and_saved_once(self, model_type, compressed_of, tmp_path):
        loaded = compressed_of(model_type, "text-generation")
        table, head = loaded.model.get_input_embeddings(), loaded.model.get_output_embeddings()
        assert isinstance(head, SatenHead)
        assert head.table is table
        assert "lm_head" not in saten_layers(loaded.model)
        assert not any(name.startswith("lm_head") for name in dense_layers(loaded.model))
        save_model(loaded, tmp_path / "saved")
        assert not any(key.startswith("lm_head") for key in load_file(tmp_path / "saved" / "model.safetensors"))
        again = load_model(tmp_path / "saved").model
        assert again.get_output_embeddings().table is again.get_input_embeddings()

    @pytest.mark.parametrize("model_type", TIED)
    def test_the_head_is_the_transposed_table(self, model_type, compressed_of):
        model = compressed_of(model_type, "text-generation").model
        x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
        matrix = model.get_input_embeddings().matrix()
        with torch.no_grad():
            found, wanted = model.get_output_embeddings()(x), x @ matrix.T
            # Each way sums some 64 products of terms that are no larger than these.
            bound = 4 * 64 * torch.finfo(torch.float32).eps * (x.abs() @ matrix.abs().T + x.norm() * matrix.norm())
        assert ((found - wanted).abs() <= bound).all()
        assert not ((found - wanted.roll(1, -1)).abs() <= bound).all()

    @pytest.mark.parametrize("model_type", TIED)
    def test_tying_again_changes_nothing(self, model_type, compressed_of, texts, tmp_path):
        loaded = compressed_of(model_type, "text-generation")
        save_model(loaded, tmp_path / "saved")
        for model in (loaded.model, load_model(tmp_path / "saved").model):
            wanted = outputs(model, loaded.encode(texts[:2]))
            model.tie_weights()
            model.set_input_embeddings(model.get_input_embeddings())
            model.set_output_embeddings(model.get_output_embeddings())
            model.tie_weights()
            assert torch.equal(outputs(model, loaded.encode(texts[:2])), wanted)

    @pytest.mark.parametrize("model_type", TIED)
    def test_a_table_left_dense_keeps_its_head(self, model_type, make_tiny, texts, tmp_path):
        loaded = load_model(make_tiny(model_type, "text-generation"))
        table = next(name for name in compressible_layers(loaded.model))
        compress(loaded, 0.5, group=8, recipe=QUICK, selection=Selection(exclude=(table,)))
        assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
        save_model(loaded, tmp_path / "saved")
        again = load_model(tmp_path / "saved")
        assert again.model.get_output_embeddings().weight is again.model.get_input_embeddings().weight
        batch = loaded.encode(texts[:2])
        assert torch.equal(outputs(again.model, batch), outputs(loaded.model, batch))

    def test_an_untied_head_is_a_layer_of_its_own(self, compressed_of):
        assert "lm_head" in saten_layers(compressed_of("llama", "text-generation").model)

    def test_the_same_text_is_generated(self, compressed_of, texts, tmp_path):
        loaded = compressed_of("qwen2", "text-generation")
        save_model(loaded, tmp_path / "saved")
        pair = [
            model.generate(**loaded.encode(texts[:1]), max_new_tokens=8, do_sample=False)
            for model in (loaded.model, load_model(tmp_path / "saved").model)
        ]
        assert torch.equal(*pair)
