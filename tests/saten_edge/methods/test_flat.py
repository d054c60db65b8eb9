"""FLAT on whole models: what the smaller model computes, its checkpoint, its cache, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import saten_edge
from saten_edge.checkpoints.architectures import ARCHITECTURES
from saten_edge.checkpoints.compress import matrices
from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.checkpoints.selection import Selection
from saten_edge.checkpoints.sizes import BlockSizes, apply_sizes, blocks, head_of
from saten_edge.decomposition.recipe import Recipe
from saten_edge.methods import METHODS, flat
from saten_edge.methods.calibrate import calibrate
from saten_edge.methods.method import Job
from saten_edge.options import METHODS as NAMES
from saten_edge.options import CompressOptions
from saten_runtime.errors import DataError, UsageError
from saten_runtime.vocabulary.tasks import HUB_TASKS

FLAT = CompressOptions(method="flat")
# Of the outputs of two float32 models that compute the same in another order.
SAME = 1e-5
# Families whose heads can be narrower: with and without biases, and with heads that share values.
NARROW = ("bert", "distilbert", "vit", "dinov2", "siglip_vision_model", "llama", "qwen2", "qwen3", "gemma")


def task_of(family: str) -> str:
    return ARCHITECTURES[family].tasks[-1] if family in ("llama", "qwen2", "qwen3") else ARCHITECTURES[family].tasks[0]


def inputs(loaded: LoadedModel, texts: list[str], images: list[Any]) -> dict[str, torch.Tensor]:
    return loaded.encode(texts[64:72] if loaded.processor is None else images[4:])


def output(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found = model(**batch)
    made = found["logits"] if "logits" in found else found["last_hidden_state"]
    mask = batch.get("attention_mask")
    return made if mask is None or made.shape[:2] != mask.shape else made[mask.bool()]


@pytest.fixture
def job(make_tiny: Callable[..., Path], texts: list[str], images: list[Any], tmp_path: Path) -> Callable[..., Job]:
    """job(family, **options) -> FLAT of its tiny model, not yet run."""

    def make(family: str, **options: Any) -> Job:
        loaded = load_model(make_tiny(family, task_of(family)))
        items: list[Any] = texts[:48]
        if loaded.processor is not None:
            items = [tmp_path / f"{place}.png" for place in range(4)]
            for path, image in zip(items, images, strict=False):
                image.save(path)
        return Job(loaded, CompressOptions(method="flat", **options), items)

    return make


def absorbed(job: Job, sizes: BlockSizes) -> None:
    """The model with layers of these sizes in all blocks."""
    parts = flat._Parts(job.loaded, job.options, job.loaded.architecture)
    parts.fold_biases()
    measured = calibrate(job.loaded, parts.readers, job.items, None, None)
    changed: dict[str, Any] = {}
    for name in parts.blocks:
        changed |= {**dict(parts.narrowed(name, sizes, measured)), **dict(parts.thinned(name, sizes, measured))}
    flat._replace(job.loaded.model, dict.fromkeys(parts.blocks, sizes), changed)


@pytest.mark.parametrize("family", NARROW)
def test_at_full_rank_the_outputs_are_the_same(family, job, texts, images):
    work = job(family, head_keep=0.5)
    batch, head = inputs(work.loaded, texts, images), head_of(work.loaded.model.config)
    wanted = output(work.loaded.model, batch)
    absorbed(work, BlockSizes(head.width, 128))
    assert torch.allclose(output(work.loaded.model, batch), wanted, atol=SAME)
    absorbed(work, BlockSizes(head.width // 2))
    assert not torch.allclose(output(work.loaded.model, batch), wanted, atol=100 * SAME)  # the twin


def stand_in(dense: Any, small: Any) -> Any:
    """The dense model, each of its output and down matrices replaced by what the smaller model's layers amount to."""
    row, head = ARCHITECTURES[dense.config.model_type], head_of(dense.config)
    layers = {name: dense.base_model.get_submodule(name) for name in blocks(dense)}
    for name, block in layers.items():
        new = small.base_model.get_submodule(name)
        paths = (row.attention.value, row.attention.output)
        value, reading = (matrices({"": block.get_submodule(path)})[""] for path in paths)
        less, less_reading = (matrices({"": new.get_submodule(path)})[""] for path in paths)
        width, group = less.shape[1] // head.values, head.queries // head.values
        for query in range(head.queries):
            shared, own = query // group, slice(query * head.width, (query + 1) * head.width)
            before, after = value[:, shared * head.width :][:, : head.width], less[:, shared * width :][:, :width]
            mixing = torch.linalg.lstsq(before.double(), after.double()).solution  # A, as Wv A is what is stored
            reading[own] = (mixing @ less_reading[query * width : (query + 1) * width].double()).float()
        for path in paths:
            old, now = block.get_submodule(path), new.get_submodule(path)
            if old.bias is not None and path == paths[1]:
                old.bias.data.copy_(now.bias.data)
            elif old.bias is not None and not now.bias.any():
                old.bias.data.zero_()  # it was folded into the output's
    return dense


@pytest.mark.parametrize("family", NARROW)
def test_narrow_heads_compute_what_the_dense_model_does_with_their_product(family, job, make_tiny, texts, images):
    work = job(family, head_keep=0.5)
    absorbed(work, BlockSizes(head_of(work.loaded.model.config).width // 2))
    dense = stand_in(load_model(make_tiny(family, task_of(family))).model, work.loaded.model)
    batch = inputs(work.loaded, texts, images)
    got = output(work.loaded.model, batch)
    assert torch.allclose(got, output(dense, batch), atol=10 * SAME)
    row = ARCHITECTURES[family]
    reading = matrices({"": dense.base_model.get_submodule(f"{next(iter(blocks(dense)))}.{row.attention.output}")})[""]
    reading.copy_(reading.roll(head_of(dense.config).width, 0))  # the twin: each head reads its neighbour's
    assert not torch.allclose(got, output(dense, batch), atol=100 * SAME)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_every_family_becomes_smaller_and_its_checkpoint_is_read_again(family, job, tmp_path, texts, images):
    keep = {"siglip_vision_model": 0.75}.get(family, 0.5)  # its random weights make more of what is lost
    work = job(family, keep=keep)
    table = saten_edge.compress(work.loaded.folder, tmp_path / "out", work.options, calibration=work.items)
    dense, small = load_model(work.loaded.folder, work.loaded.task), load_model(tmp_path / "out", work.loaded.task)
    batch = inputs(dense, texts, images)
    got, wanted = output(small.model, batch), output(dense.model, batch)
    assert got.shape == wanted.shape
    assert 0 < float((got - wanted).norm()) < 0.9 * float(wanted.norm())
    for row in table["layers"]:
        layer = small.model.get_submodule(row["name"])
        assert layer.weight.numel() * 4 == row["bytes"] < row["dense_bytes"]
        assert tuple(matrices({"": layer})[""].shape) == tuple(row["shape"])
        assert 0 <= row["error"] < 1
    changed = {f"{row['name']}.weight" for row in table["layers"]}
    assert set(table["dense"]) == {name for name, _ in small.model.named_parameters()} - changed  # counted once
    (stage,) = small.recipe.stages
    assert stage.stage == "flat"
    assert stage.options["keep"] == keep
    assert len(stage.inputs["calibration"]["sha256"]) == 64
    auto = AutoModelForCausalLM if HUB_TASKS[work.loaded.task].auto == "AutoModelForCausalLM" else AutoModel
    again = auto.from_pretrained(tmp_path / "out").eval()
    names = dict(again.named_parameters())
    assert all(torch.equal(value, names[key]) for key, value in small.model.named_parameters() if key in names)


def test_a_cache_of_narrow_values_gives_what_reading_all_at_once_does(job, texts):
    work = job("llama", head_keep=0.5)
    flat.run(work)
    model, head = work.loaded.model, head_of(work.loaded.model.config)
    ids = work.loaded.encode(texts[:1])["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        first = model(input_ids=ids[:, :3], use_cache=True)
        rest = model(input_ids=ids[:, 3:], past_key_values=first.past_key_values, use_cache=True)
    assert torch.allclose(torch.cat([first.logits, rest.logits], 1), whole, atol=SAME)
    layer = rest.past_key_values.layers[0]
    assert layer.values.numel() == layer.keys.numel() // 2
    assert layer.keys.shape[1] == head.values
    layer.values[:, :, :1] += 1
    with torch.no_grad():
        spoiled = model(input_ids=ids[:, -1:], past_key_values=rest.past_key_values).logits
        clean = model(input_ids=torch.cat([ids, ids[:, -1:]], 1), use_cache=False).logits[:, -1:]
    assert not torch.allclose(spoiled, clean, atol=100 * SAME)  # the cache is read


def test_then_saten_decomposes_what_is_left_within_the_first_bytes(tiny_bert, texts, tmp_path):
    options = CompressOptions(0.4, group=8, method="flat", then="saten", recipe=Recipe(rounds=1))
    table = saten_edge.compress(tiny_bert, tmp_path / "out", options, calibration=texts[:32])
    loaded = load_model(tmp_path / "out")
    assert [stage.stage for stage in loaded.recipe.stages] == ["flat", "compress"]
    rows = {row["name"]: row for row in table["layers"]}
    dense = {
        name: layer.weight.numel() * 4 for name, layer in load_model(tiny_bert).model.named_modules() if name in rows
    }
    assert {name: row["dense_bytes"] for name, row in rows.items()} == dense
    assert sum(row["bytes"] for row in rows.values()) <= 0.4 * sum(dense.values())
    assert tuple(rows["encoder.layer.0.intermediate.dense"]["shape"]) == (64, 96)
    assert loaded.layer_parts()["encoder.layer.0.output.dense"].shape == (96, 64)
    batch = loaded.encode(texts[64:72])
    assert torch.isfinite(output(loaded.model, batch)).all()


@pytest.mark.parametrize(("family", "count"), [("bert", 3), ("llama", 1)])  # BERT's tokenizer adds two
def test_one_token_is_enough(family, count, make_tiny, tmp_path, texts):
    folder = make_tiny(family, task_of(family))
    folder = without_added_tokens(folder, tmp_path) if count == 1 else folder
    dense = load_model(folder)
    assert dense.encode(["a"])["input_ids"].shape == (1, count)
    saten_edge.compress(folder, tmp_path / "out", FLAT, calibration=["a"])
    small, batch = load_model(tmp_path / "out"), dense.encode(texts[64:72])
    got, wanted = (output(each.model, batch) for each in (small, dense))
    assert torch.isfinite(got).all()
    assert 0 < float((got - wanted).norm()) < float(wanted.norm())


def without_added_tokens(model: Path, folder: Path) -> Path:
    """The model with a tokenizer that adds no token to a text, as those of decoders are."""
    found = folder / "without"
    shutil.copytree(model, found)
    tokenizer = json.loads((found / "tokenizer.json").read_text())
    (found / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    return found


@pytest.mark.parametrize("method", ["flat", "saten", "ptnn"])
def test_texts_without_a_token_are_passed_over_and_not_enough(method, make_tiny, tmp_path):
    folder = without_added_tokens(make_tiny("llama", "text-generation"), tmp_path)
    quick = {"recipe": Recipe(rounds=1, solver="alternate"), "group": 8, "selection": Selection(include=("*.0.mlp.*",))}
    options = CompressOptions(method=method, **({} if method == "flat" else quick))
    saten_edge.compress(folder, tmp_path / "out", options, calibration=["", "a", "of", "", "the", "a", "", "the"])
    assert load_model(tmp_path / "out")
    with pytest.raises(DataError, match="token"):
        saten_edge.compress(folder, tmp_path / "none", options, calibration=[""] * 8)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("family", "head_keep", "layer"),
    [
        ("bert", 1.0, "encoder.layer.0.output.dense"),
        ("bert", 0.5, "encoder.layer.0.attention.output.dense"),
        ("llama", 1.0, "layers.0.mlp.down_proj"),  # with a gate
        ("llama", 0.5, "layers.0.self_attn.o_proj"),  # heads that share values
        ("modernbert", None, "layers.0.mlp.Wo"),  # gate and channels in one matrix
        ("gpt2", None, "h.0.mlp.c_proj"),
    ],
)
def test_the_error_of_a_row_is_that_of_the_layers_output(family, head_keep, layer, job):
    """Of the first block, whose inputs are the dense model's, on the calibration texts; heads lie before the MLP."""
    work = job(family, keep=0.5, head_keep=head_keep, ranks="uniform")
    base = work.loaded.model.base_model

    def outputs_of() -> torch.Tensor:
        made: list[torch.Tensor] = []
        with base.get_submodule(layer).register_forward_hook(lambda *told: made.append(told[2])):
            for text in work.items:
                output(work.loaded.model, work.loaded.encode([text]))
        return torch.cat([each.reshape(-1, each.shape[-1]) for each in made]).double()

    dense = outputs_of()
    rows = {row.name: row for row in flat.run(work)}
    bias = base.get_submodule(layer).bias
    product = dense if bias is None else dense - bias.detach()
    error = float((outputs_of() - dense).norm() / product.norm())
    of_blocks = (layer, layer.replace("0", "1"))
    own, other = (next(row.error for name, row in rows.items() if name.endswith(path)) for path in of_blocks)
    assert own == pytest.approx(error, rel=1e-3)
    assert other != pytest.approx(error, rel=1e-2)  # the twin: another block's


@pytest.mark.parametrize("family", ["bert", "vit", "llama", "qwen3"])
def test_queries_and_keys_keep_what_they_are(family, job):
    """Rotary halves, and norms of queries and keys, stand on them."""
    work = job(family, head_keep=0.5)
    value = ARCHITECTURES[family].attention.value.rpartition(".")[2]
    before = {name: tensor.clone() for name, tensor in work.loaded.model.state_dict().items()}
    flat.run(work)
    after = work.loaded.model.state_dict()
    kept = [name for name in after if any(part in name for part in (".query.", ".key.", "q_proj", "k_proj", "_norm"))]
    assert len(kept) >= 2 * len(blocks(work.loaded.model))
    assert all(torch.equal(after[name], before[name]) for name in kept)
    narrower = [name for name in after if f".{value}.weight" in name]
    assert all(after[name].shape[0] * 2 == before[name].shape[0] for name in narrower)  # the twin
    assert len(narrower) == len(blocks(work.loaded.model))


def test_one_image_is_enough(job):
    work = job("vit", keep=0.5)
    rows = flat.run(dataclasses.replace(work, items=work.items[:1]))
    assert all(0 <= row.error < 1 for row in rows)
    assert all(torch.isfinite(parameter).all() for parameter in work.loaded.model.parameters())


def test_layers_that_are_not_selected_stay(tiny_bert, texts, tmp_path):
    selection = Selection(include=("*.0.output.dense",))
    options = CompressOptions(method="flat", selection=selection)
    table = saten_edge.compress(tiny_bert, tmp_path / "out", options, calibration=texts[:8])
    names = {row["name"] for row in table["layers"]}
    assert names == {"encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"}


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt2", "queries, keys and values come from one matrix"),
        ("modernbert", "queries, keys and values come from one matrix"),
        ("mpnet", "its attention views queries, keys and values as heads of one width"),
    ],
)
def test_heads_that_cannot_be_narrower_are_named_with_the_reason(family, reason, job):
    with pytest.raises(UsageError, match=rf"--head-keep 0.5: heads of .* cannot be narrower: {reason}; leave it out"):
        flat.run(job(family, head_keep=0.5))


def test_heads_whose_values_make_no_whole_heads_are_refused(make_tiny, texts):
    folder = make_tiny("llama", "text-generation", num_attention_heads=3, num_key_value_heads=3, hidden_size=96)
    loaded = load_model(folder)
    assert not flat.run(Job(loaded, CompressOptions(method="flat", keep=0.5), texts[:8]))[0].name.endswith("v_proj")
    with pytest.raises(UsageError, match="3 value heads of 32 have no narrower width"):
        flat.run(Job(load_model(folder), CompressOptions(method="flat", head_keep=0.5), texts[:8]))


def test_the_table_has_a_row_for_every_name():
    assert list(METHODS) == list(NAMES)


def test_sizes_are_applied_to_the_blocks_named_only(tiny_bert):
    model = load_model(tiny_bert).model
    apply_sizes(model, {"encoder.layer.1": BlockSizes(intermediate=50)})
    assert [layer.output.dense.in_features for layer in model.encoder.layer] == [128, 50]
