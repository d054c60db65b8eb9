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
from saten_runtime.errors import CheckpointError, DataError, UsageError
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


def test_a_flat_model_is_fine_tuned_and_then_decomposed(flat_bert, tiny_bert, texts, tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts[:16]))
    schedule = saten_edge.Schedule(steps=2, batch_size=8)
    tuning = saten_edge.FinetuneOptions(teacher=str(tiny_bert), schedule=schedule)
    saten_edge.finetune(flat_bert, tmp_path / "tuned", str(data), tuning)
    options = CompressOptions(0.4, group=8, allocation="uniform", recipe=Recipe(rounds=1))
    saten_edge.compress(tmp_path / "tuned", tmp_path / "both", options)
    both = load_model(tmp_path / "both")
    assert [stage.stage for stage in both.recipe.stages] == ["flat", "finetune", "compress"]
    assert both.model.config.quantization_config.sizes == {
        f"encoder.layer.{block}": {"value": 12, "intermediate": 96} for block in range(2)
    }
    assert torch.isfinite(output(both.model, both.encode(texts[64:72]))).all()


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


@pytest.mark.parametrize(("options", "layer"), [({"head_keep": 1}, "output.dense"), ({}, "attention.output.dense")])
def test_the_error_of_a_row_is_that_of_the_layers_output(options, layer, job):
    """Of the first block, whose inputs are the dense model's, on the calibration texts; heads lie before the MLP."""
    work = job("bert", keep=0.5, **options)
    made: list[torch.Tensor] = []

    def outputs_of(model: Any) -> torch.Tensor:
        made.clear()
        hook = model.get_submodule(f"encoder.layer.0.{layer}").register_forward_hook(lambda *told: made.append(told[2]))
        for text in work.items:
            output(model, work.loaded.encode([text]))
        hook.remove()
        return torch.cat([each[0] for each in made]).double()

    work = dataclasses.replace(work, loaded=load_model(work.loaded.folder, work.loaded.task))
    dense = outputs_of(work.loaded.model.base_model)
    rows = {row.name.removeprefix("bert."): row for row in flat.run(work)}
    small = outputs_of(work.loaded.model.base_model)
    bias = work.loaded.model.base_model.get_submodule(f"encoder.layer.0.{layer}").bias.detach()
    error = float((small - dense).norm() / (dense - bias).norm())
    assert rows[f"encoder.layer.0.{layer}"].error == pytest.approx(error, rel=1e-3)
    assert rows[f"encoder.layer.1.{layer}"].error != pytest.approx(error, rel=1e-2)  # the twin: another block's


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, 0.75),
        ({"keep": 0.6}, 0.6),
        ({"then": "saten"}, 0.75),
        ({"then": "saten", "budget": 0.25}, 0.75),
        ({"then": "saten", "budget": 0.2}, 0.5),
        ({"then": "saten", "budget": 0.2, "keep": 0.9}, 0.9),
        ({"then": "ptnn"}, 0.75),
    ],
)
def test_what_is_kept_depends_on_what_is_to_be_left(options, kept):
    assert CompressOptions(method="flat", **options).kept == kept


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
    ("options", "message"),
    [
        ({"keep": 0.0}, r"--keep 0: expected a share above 0 and below 1"),
        ({"keep": 1.0}, r"--keep 1: expected a share above 0 and below 1"),
        ({"keep": 1.5}, r"--keep 1.5: expected a share above 0 and below 1"),
        ({"keep": float("nan")}, r"--keep nan: expected a share above 0 and below 1"),
        ({"head_keep": 0.0}, r"--head-keep 0: expected a share above 0, and 1 at most"),
        ({"head_keep": 1.1}, r"--head-keep 1.1: expected a share above 0, and 1 at most"),
        ({"ranks": "equal"}, r"--ranks equal: there is no such one; there are: iprs, uniform"),
        ({"method": "flatter"}, r"--method flatter: there is no such one; there are: saten, flat, ptnn"),
        ({"then": "flat"}, r"--then flat cannot follow --method flat"),
        ({"method": "saten", "then": "saten"}, r"--then saten cannot follow --method saten"),
        ({"method": "saten", "keep": 0.5}, r"--keep is for --method flat, but this is --method saten"),
        ({"budget": 0.5}, r"--budget is for --method saten, but this is --method flat"),
        ({"recipe": Recipe(rounds=1)}, r"an option of the recipe is for --method saten"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        CompressOptions(**{"method": "flat", **options})


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


@pytest.mark.parametrize(
    ("options", "calibration", "message"),
    [
        ({}, 0, "--method flat chooses by what texts or images show; pass --calibration"),
        ({"keep": 0.999}, 4, r"--keep 0.999: every block keeps all it has; lower --keep"),
        (
            {"then": "saten", "budget": 0.95},
            4,
            r"--budget 0.95: --method flat alone leaves 0.9\d\d of the bytes, and .* 0.\d\d\d; choose a budget between",
        ),
    ],
)
def test_what_cannot_be_done_leaves_nothing(options, calibration, message, tiny_bert, texts, tmp_path):
    told = CompressOptions(**{"method": "flat", **options})
    with pytest.raises(UsageError, match=message):
        saten_edge.compress(tiny_bert, tmp_path / "out", told, calibration=texts[:calibration])
    assert not (tmp_path / "out").exists()


def test_a_compressed_model_is_not_flattened(tiny_saten, texts, tmp_path):
    with pytest.raises(UsageError, match="compressed already"):
        saten_edge.compress(tiny_saten, tmp_path / "out", FLAT, calibration=texts[:4])


@pytest.fixture(scope="module")
def flat_bert(tiny_bert: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flat") / "out"
    saten_edge.compress(tiny_bert, out, FLAT, calibration=texts[:16])
    return out


def test_a_flat_model_is_not_flattened_again(flat_bert, texts, tmp_path):
    with pytest.raises(UsageError, match="the model has smaller blocks already; start from the dense one"):
        saten_edge.compress(flat_bert, tmp_path / "out", FLAT, calibration=texts[:4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layer.0": {"value": 5}}, "value of encoder.layer.0 is 5, expected a multiple of 4 up to 16"),
        ({"encoder.layer.0": {"value": 32}}, "value of encoder.layer.0 is 32, expected a multiple of 4 up to 16"),
        ({"encoder.layer.0": {"intermediate": 0}}, "intermediate of encoder.layer.0 is 0, expected a multiple of 1"),
        ({"encoder.layer.0": {"intermediate": True}}, "intermediate of encoder.layer.0 is True"),
        ({"encoder.layer.0": {"intermediate": 10**9}}, "intermediate of encoder.layer.0 is 1000000000"),
        ({"encoder.layer.9": {"value": 8}}, "sizes of 'encoder.layer.9' do not fit BertModel"),
        ({"encoder.layer.0": {"qk": 8}}, "sizes of 'encoder.layer.0' do not fit BertModel"),
        ({"encoder.layer.0": {}}, "sizes of 'encoder.layer.0' do not fit BertModel"),
        ([3], "sizes of blocks are no object"),
        ({}, "cannot be loaded|size|mismatch"),
    ],
)
def test_sizes_from_a_file_are_checked(change, message, flat_bert, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(flat_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["sizes"] = change
    config["quantization_config"]["files"] = {}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_another_attention_function_is_refused_by_name(flat_bert):
    with pytest.raises(UsageError, match="attn_implementation 'eager'"):
        AutoModel.from_pretrained(flat_bert, attn_implementation="eager")


def test_a_damaged_weight_file_is_refused(flat_bert, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(flat_bert, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="sha256"):
        load_model(folder)


def test_the_table_has_a_row_for_every_name():
    assert list(METHODS) == list(NAMES)


def test_sizes_are_applied_to_the_blocks_named_only(tiny_bert):
    model = load_model(tiny_bert).model
    apply_sizes(model, {"encoder.layer.1": BlockSizes(intermediate=50)})
    assert [layer.output.dense.in_features for layer in model.encoder.layer] == [128, 50]
