"""Checkpoints in the layout of Saten's authors, written here by an independent writer, read with their numbers kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from saten_edge.checkpoints.authors import best_pattern, import_checkpoint, read_state
from saten_edge.checkpoints.models import load_model, save_model
from saten_edge.checkpoints.modules import saten_layers
from saten_exporters import export
from saten_runtime.errors import CheckpointError
from saten_runtime.run.parity import compare_outputs
from saten_runtime.run.runner import Runner

EPS = float(np.finfo(np.float32).eps)
QUERY, INNER, OUTER = (
    "bert.encoder.layer.0.attention.self.query",
    "bert.encoder.layer.0.intermediate.dense",
    "bert.encoder.layer.1.output.dense",
)
DIMS = {64: (8, 8), 128: (8, 16), 640: (20, 32)}


def masks(shape: tuple[int, int], kind: str, generator: torch.Generator) -> torch.Tensor:
    """A mask (out, in) of 0 and 1 with a tenth of its entries or so."""
    outputs, inputs = shape
    if kind == "grouped:16":
        blocks = torch.rand(outputs // 16, inputs, generator=generator).argsort(1) < inputs // 10
        return blocks.repeat_interleave(16, 0).float()
    if kind == "2:4":
        return (torch.rand(outputs, inputs // 4, 4, generator=generator).argsort(2) < 2).reshape(shape).float()
    return (torch.rand(shape, generator=generator) < (0.002 if kind == "rare" else 0.1)).float()


@dataclass
class Foreign:
    """A state dict in that layout, and the dense one that computes the same, in float64."""

    state: dict[str, torch.Tensor]
    dense: dict[str, torch.Tensor]
    bounds: dict[str, torch.Tensor] = field(default_factory=dict)

    def compress(self, name: str, kind: str | None = "unstructured", *, bias: bool = True, order: int = 4) -> None:
        """Replace a dense layer of the state dict; kind: of the mask, None for a train alone."""
        weight = self.state.pop(f"{name}.weight")
        outputs, inputs = weight.shape
        generator = torch.Generator().manual_seed(len(name) + outputs)
        sizes = (*DIMS[inputs], *DIMS[outputs]) if order == 4 else (inputs, outputs)
        ranks = (1, 4, 6, 4, 1) if order == 4 else (1, 5, 1)
        factors = [
            torch.randn(left, n, right, generator=generator) * 0.3
            for left, n, right in zip(ranks[:-1], sizes, ranks[1:], strict=True)
        ]
        self.state |= {f"{name}.factors.{k}": factor for k, factor in enumerate(factors)}
        residual = np.zeros((outputs, inputs))
        if kind is not None:
            mask = masks((outputs, inputs), kind, generator)
            self.state |= {f"{name}.weight": weight.clone(), f"{name}.mask": mask}
            residual = (weight * mask).double().numpy()
        exact, scale = (
            self._train([np.asarray(f, np.float64) for f in some]).reshape(inputs, outputs).T
            for some in (factors, [factor.abs() for factor in factors])
        )
        self.dense[f"{name}.weight"] = torch.from_numpy(exact + residual)
        # Every entry is a sum of ∏ ranks products of `order` factors, and one residual value.
        self.bounds[name] = torch.from_numpy(2 * (np.prod(ranks) + order) * EPS * (scale + np.abs(residual)))
        if not bias and f"{name}.bias" in self.state:
            self.dense[f"{name}.bias"] = torch.zeros_like(self.state.pop(f"{name}.bias"))

    @staticmethod
    def _train(cores: list[np.ndarray]) -> np.ndarray:
        return np.einsum("aib,bjc,ckd,dle->aijkle", *cores) if len(cores) == 4 else np.einsum("aib,bjc->aijc", *cores)


@pytest.fixture(autouse=True)
def _warm_reader(warm_python: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that reads a pickle has torch already; test_pickles.py has it start as it does for people."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as where `warm_python` was started
    monkeypatch.setattr("saten_runtime.machine.child.python_command", lambda code: [*warm_python, "-c", code])


@pytest.fixture
def foreign(make_tiny: Callable[..., Path]) -> Callable[..., Foreign]:
    def make(model_type: str = "bert", task: str = "text-classification", **options: Any) -> Foreign:
        state = {
            key: t.clone() for key, t in load_model(make_tiny(model_type, task, **options)).model.state_dict().items()
        }
        return Foreign(state, dict(state))

    return make


@pytest.fixture
def base(make_tiny: Callable[..., Path]) -> Path:
    """Another model of the same shape: no number of it but its biases' shapes may come through."""
    return make_tiny("bert", "feature-extraction", seed=1)


def _adapter_of_a_query() -> dict[str, torch.Tensor]:
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    return {f"{layer}.lora_A.weight": torch.ones(2, 64), f"{layer}.lora_B.weight": torch.ones(64, 2)}


def write(foreign: Foreign, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(foreign.state, path)
    else:
        torch.save(foreign.state, path)
    return path


class TestNumbers:
    @pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
    def test_every_layer_computes_the_same(self, foreign, base, tmp_path, suffix, texts):
        source = foreign()
        source.compress(QUERY, "grouped:16")
        source.compress(INNER, "2:4", bias=False)
        source.compress("bert.encoder.layer.0.output.dense", None)
        source.compress(OUTER, "unstructured", order=2)
        loaded, rows = import_checkpoint(write(source, tmp_path / f"model{suffix}"), base)
        layers = saten_layers(loaded.model)
        assert {row.name for row in rows} == set(layers) == set(source.bounds)
        assert {name: layers[name].spec.pattern for name in layers} == {
            QUERY: "grouped",
            INNER: "2:4",
            "bert.encoder.layer.0.output.dense": "none",
            OUTER: "unstructured",
        }
        assert layers[QUERY].spec.group == 16
        for name, layer in layers.items():
            error = (layer.matrix().T.double() - source.dense[f"{name}.weight"]).abs()
            assert (error <= source.bounds[name]).all(), name
        for key, parameter in loaded.model.named_parameters():
            if ".cores." not in key and ".residual." not in key:
                assert torch.equal(parameter, source.dense[key]), key

    def test_an_imported_checkpoint_is_exported(self, foreign, base, tmp_path):
        """Every kind of mask, in the graph and against torch; the twin is a bundle of another import."""
        source = foreign()
        source.compress(QUERY, "grouped:16")
        source.compress(INNER, "2:4", bias=False)
        source.compress(OUTER, None)
        loaded, rows = import_checkpoint(write(source, tmp_path / "model.safetensors"), base)
        bundle = export(loaded, tmp_path / "bundle")
        assert bundle.manifest.task == "text-classification"
        assert {layer.name for layer in bundle.manifest.layers} == {row.name for row in rows}
        assert {layer.form for layer in bundle.manifest.layers} == {
            "LowRankGroupedLinearBias",
            "LowRankNOfMLinearBiasGelu",
            "LowRankLinear",
        }
        inputs = loaded.encode(["the file", "a number of path"])
        with torch.no_grad():
            wanted = loaded.model(**inputs).logits.numpy()
        got = Runner.load(bundle).run({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]
        bound = bundle.manifest.tolerance["relative"]
        assert compare_outputs(got, wanted, None)[0] <= bound < compare_outputs(got[::-1], wanted, None)[0]

    def test_a_dropped_factor_value_or_a_swapped_axis_is_seen(self, foreign, base, tmp_path):
        """The twin: the same comparison fails on slightly other numbers."""
        source = foreign()
        source.compress(QUERY, "unstructured")
        source.state[f"{QUERY}.factors.1"][0, 0, 0] += 1e-3
        loaded, _ = import_checkpoint(write(source, tmp_path / "model.safetensors"), base)
        error = (saten_layers(loaded.model)[QUERY].matrix().T.double() - source.dense[f"{QUERY}.weight"]).abs()
        assert not (error <= source.bounds[QUERY]).all()

    @pytest.mark.parametrize(
        ("model_type", "task", "name"),
        [
            ("bert", "text-classification", QUERY),
            ("roberta", "feature-extraction", "encoder.layer.1.attention.self.key"),
            ("llama", "text-generation", "model.layers.0.mlp.down_proj"),
            ("qwen2", "text-generation", "model.layers.1.self_attn.q_proj"),
            ("gpt2", "text-generation", "transformer.h.0.attn.c_proj"),
        ],
    )
    def test_the_saved_checkpoint_gives_the_dense_models_outputs(
        self, model_type, task, name, foreign, make_tiny, texts, tmp_path
    ):
        source = foreign(model_type, task)
        source.compress(name)
        if model_type == "gpt2":  # Conv1D keeps its dense weight the other way round
            source.dense[f"{name}.weight"] = source.dense[f"{name}.weight"].T
        loaded, _ = import_checkpoint(
            write(source, tmp_path / "model.safetensors"), make_tiny(model_type, task, seed=1)
        )
        assert loaded.task == task
        save_model(loaded, tmp_path / "ours")
        ours = load_model(tmp_path / "ours")
        dense = load_model(make_tiny(model_type, task)).model
        dense.load_state_dict({key: value.float().contiguous() for key, value in source.dense.items()})
        batch = ours.encode(texts[:4])
        with torch.no_grad():
            wanted, got = (model(**batch)[0] for model in (dense, ours.model))
            dense.load_state_dict(load_model(make_tiny(model_type, task)).model.state_dict())
            other = dense(**batch)[0]
        # The weights differ by rounding alone; a few layers later so do the outputs.
        assert (got - wanted).norm() <= 1e-4 * wanted.norm()
        assert (other - wanted).norm() > 1e-2 * wanted.norm()

    def test_entries_far_apart(self, foreign, make_tiny, tmp_path):
        """Our codes for single entries store one more where 256 inputs are passed over; the mask hides its weight."""
        source = foreign(intermediate_size=640)
        name = "bert.encoder.layer.0.output.dense"
        source.compress(name, "rare")
        base = make_tiny("bert", "feature-extraction", seed=1, intermediate_size=640)
        loaded, rows = import_checkpoint(write(source, tmp_path / "model.safetensors"), base)
        assert rows[0].nnz > int(source.state[f"{name}.mask"].sum())
        error = (saten_layers(loaded.model)[name].matrix().T.double() - source.dense[f"{name}.weight"]).abs()
        assert (error <= source.bounds[name]).all()

    def test_a_folder_in_two_files(self, foreign, base, tmp_path):
        source = foreign()
        source.compress(QUERY)
        keys = list(source.state)
        for part, some in enumerate((keys[::2], keys[1::2])):
            save_file({key: source.state[key] for key in some}, tmp_path / f"part{part}.safetensors")
        assert len(import_checkpoint(tmp_path, base)[1]) == 1

    def test_half_precision_is_widened(self, foreign, base, tmp_path):
        source = foreign()
        source.compress(QUERY)
        source.state = {key: tensor.to(torch.bfloat16) for key, tensor in source.state.items()}
        loaded, _ = import_checkpoint(write(source, tmp_path / "model.safetensors"), base)
        layer = saten_layers(loaded.model)[QUERY]
        assert torch.equal(layer.cores[0], source.state[f"{QUERY}.factors.0"].float())


class TestPatterns:
    @pytest.mark.parametrize(
        ("kind", "expected"), [("grouped:16", ("grouped", 16)), ("2:4", ("2:4", 1)), ("any", ("unstructured", 1))]
    )
    def test_the_tightest_pattern_that_fits_exactly(self, kind, expected):
        mask = masks((128, 64), kind, torch.Generator().manual_seed(5)).T.bool()
        assert best_pattern(mask)[:2] == expected

    def test_one_entry_more_fits_no_structure(self):
        mask = masks((128, 64), "grouped:16", torch.Generator().manual_seed(5)).T.bool()
        row, column = (~mask).nonzero()[0].tolist()
        mask[row, column] = True
        assert best_pattern(mask)[0] == "unstructured"

    def test_nothing_kept_and_everything_kept(self):
        assert best_pattern(torch.zeros(64, 128, dtype=torch.bool))[0] == "none"
        assert best_pattern(torch.ones(64, 128, dtype=torch.bool))[:2] == ("grouped", 128)


def drop(key: str) -> Callable[[Foreign], Any]:
    return lambda foreign: foreign.state.pop(key)


def put(key: str, value: torch.Tensor) -> Callable[[Foreign], Any]:
    return lambda foreign: foreign.state.update({key: value})


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (drop(f"{QUERY}.factors.1"), r"query: has factors \[0, 2, 3\]; expected 0 to 2"),
            (drop(f"{QUERY}.mask"), "query: has factors and bias, weight; expected weight and mask, or neither"),
            (drop(f"{QUERY}.weight"), "query: has factors and bias, mask; expected weight and mask, or neither"),
            (drop(f"{INNER}.weight"), r"lacks bert\.encoder\.layer\.0\.intermediate\.dense\.weight"),
            (drop("classifier.bias"), r"lacks classifier\.bias"),
            (put(f"{QUERY}.scale", torch.ones(1)), "query: has factors and bias, mask, scale, weight; expected"),
            (put(f"{QUERY}.factors.1", torch.ones(5, 8, 6)), "query: core 1: left rank 5"),
            (put(f"{QUERY}.factors.1", torch.ones(4, 9, 6)), r"query: has factors over \[8, 9, 8, 8\], expected dims"),
            (put(f"{QUERY}.factors.1", torch.ones(4, 8)), r"query: has factors over \[8, 0, 8, 8\]"),
            (put(f"{QUERY}.mask", torch.full((64, 64), 0.5)), "query: mask holds other numbers than 0 and 1"),
            (put(f"{QUERY}.mask", torch.ones(64, 32)), r"query: mask of shape \(64, 32\), expected \(64, 64\)"),
            (put(f"{QUERY}.bias", torch.ones(63)), r"query: bias of shape \(63,\)"),
            (put(f"{INNER}.weight", torch.ones(2, 2)), r"dense: weight of shape \(2, 2\), expected \(128, 64\)"),
            (put(f"{QUERY}.weight", torch.full((64, 64), torch.nan)), r"query\.weight holds values that are NaN"),
            (put("bert.encoder.layer.7.dense.weight", torch.ones(2, 2)), r"layer\.7\.dense' is not a layer of BertFor"),
            (put("bert.embeddings.word_embeddings.factors.0", torch.ones(1, 1, 1)), "has factors, but is Embedding"),
            (put("bert.embeddings.LayerNorm.beta", torch.ones(64)), "beta is not part of LayerNorm"),
        ],
    )
    def test_another_layout(self, foreign, base, tmp_path, change, message):
        source = foreign()
        source.compress(QUERY)
        change(source)
        with pytest.raises(CheckpointError, match=message) as caught:
            import_checkpoint(write(source, tmp_path / "model.safetensors"), base)
        assert "\n" not in str(caught.value)

    def test_a_dense_checkpoint(self, foreign, base, tmp_path):
        with pytest.raises(CheckpointError, match="no layer has factors"):
            import_checkpoint(write(foreign(), tmp_path / "model.safetensors"), base)

    def test_a_head_that_only_the_base_ties(self, foreign, make_tiny, tmp_path):
        source = foreign("qwen2", "text-generation")
        source.compress("model.layers.0.mlp.up_proj")
        source.state["lm_head.weight"] = source.state["lm_head.weight"] + 1
        with pytest.raises(CheckpointError, match=r"lm_head and model\.embed_tokens differ"):
            import_checkpoint(write(source, tmp_path / "model.safetensors"), make_tiny("qwen2", "text-generation"))

    def test_an_adapter_or_a_copy_of_a_head_alone_that_the_base_ties(self, make_tiny, tmp_path):
        """Written into the weight that both share, it would change the table too."""
        tied = make_tiny("qwen2", "text-generation")
        weight = load_model(tied).model.lm_head.weight.detach()
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4}))
        halves = {"lora_A.weight": torch.ones(2, weight.shape[1]), "lora_B.weight": torch.ones(weight.shape[0], 2)}
        for tensors in (halves, {"weight": weight + 1}):
            state = {f"base_model.model.lm_head.{part}": tensor for part, tensor in tensors.items()}
            save_file(state | _adapter_of_a_query(), tmp_path / "adapter_model.safetensors")
            with pytest.raises(CheckpointError, match=r"lm_head and model\.embed_tokens differ"):
                import_checkpoint(tmp_path, tied)
        save_file(_adapter_of_a_query(), tmp_path / "adapter_model.safetensors")
        merged, _ = import_checkpoint(tmp_path, tied)
        assert torch.equal(merged.model.lm_head.weight, weight)

    def test_pickles_run_no_code(self, tmp_path):
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path(tmp_path / "touched").touch, ())

        torch.save({"a.weight": Evil()}, tmp_path / "evil.pt")
        with pytest.raises(CheckpointError, match="holds more than tensors"):
            read_state(tmp_path / "evil.pt")
        assert not (tmp_path / "touched").exists()

    @pytest.mark.parametrize(
        "content",
        [{"a": 1}, [torch.ones(2)], {"a\x1b[31m": torch.ones(2)}, {"a": torch.ones(3, 3).to_sparse()}],
        ids=["a number", "a list", "an odd name", "a sparse tensor"],
    )
    def test_what_is_no_state_dict(self, content, tmp_path):
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=r"not a state dict|cannot be read"):
            read_state(tmp_path / "model.pt")

    @pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
    def test_truncated_files(self, foreign, tmp_path, suffix):
        path = write(foreign(), tmp_path / f"model{suffix}")
        for size in (0, 7, 100, path.stat().st_size // 2, path.stat().st_size - 1):
            cut = tmp_path / f"cut{suffix}"
            cut.write_bytes(path.read_bytes()[:size])
            with pytest.raises(CheckpointError, match=r"cut\.(safetensors|bin): "):
                read_state(cut)

    def test_no_weights_there(self, tmp_path):
        for path in (tmp_path, tmp_path / "nowhere.bin"):
            with pytest.raises(CheckpointError, match="no weights there"):
                read_state(path)


def test_the_command(foreign, base, tmp_path, saten_edge_command):
    source = foreign()
    source.compress(QUERY, "2:4")
    write(source, tmp_path / "model.bin")
    done = saten_edge_command("import", tmp_path / "model.bin", "--base", base, "-o", tmp_path / "ours", "--json", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    table = json.loads(done.stdout)
    assert [row["name"] for row in table["layers"]] == [QUERY]
    assert table == json.loads((tmp_path / "ours" / "saten_layers.json").read_text())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert set(saten_layers(model)) == {QUERY}
    refused = saten_edge_command("import", tmp_path / "nowhere.pt", "--base", base, "-o", tmp_path / "other")
    assert refused.returncode == 2
    assert "no weights there" in refused.stderr
    assert "Traceback" not in refused.stderr
