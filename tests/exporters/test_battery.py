"""Every family of the table, with every task it has, dense and compressed: exported, verified, and run without torch.

One cell of each family runs always; the rest of the table is `slow`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from saten_edge.checkpoints.architectures import ARCHITECTURES
from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_exporters import PRECISIONS, export
from saten_exporters.tracing.narrow import NARROW
from saten_runtime.bundle.folder import Bundle
from saten_runtime.run.parity import compare_outputs
from saten_runtime.run.runner import Runner
from saten_runtime.vocabulary.operators import DOMAIN, LOGITS_TO_KEEP
from saten_runtime.vocabulary.tasks import HUB_TASKS

FORMS = ("dense", "saten")
CELLS = [
    (model_type, task, form, precision)
    for model_type, row in ARCHITECTURES.items()
    for task in row.tasks
    for form in FORMS
    for precision in PRECISIONS
]
# Every lowering that can be asked for, of every family's first task.
CELLS += [
    (model_type, row.tasks[0], f"saten as {lowering}", precision)
    for model_type, row in ARCHITECTURES.items()
    for lowering in ("tt-chain", "dense")
    for precision in PRECISIONS
]
# Another layout of the residual.
CELLS += [
    (model_type, row.tasks[0], "saten 1:8", name) for model_type, row in ARCHITECTURES.items() for name in PRECISIONS
]
# Fewer channels and narrower heads, alone and decomposed after that.
CELLS += [
    (model_type, row.tasks[-1], form, name)
    for model_type, row in ARCHITECTURES.items()
    for form in ("flat", "flat saten")
    for name in PRECISIONS
]
# Some layers compressed and the others dense, as a bound on the error leaves them.
CELLS += [(model_type, row.tasks[0], "ptnn", name) for model_type, row in ARCHITECTURES.items() for name in PRECISIONS]
CELLS += [("llama", "text-generation", "ptnn", name) for name in PRECISIONS]
# The cells that run always: each family, each task and both forms at least once, decoders with and without a tied head.
QUICK = {
    ("bert", "text-classification", "saten", "fp32"),
    ("roberta", "token-classification", "saten", "int8"),
    ("xlm-roberta", "feature-extraction", "saten", "int8"),
    ("camembert", "token-classification", "dense", "fp32"),
    ("distilbert", "question-answering", "saten", "int4"),
    ("electra", "feature-extraction", "dense", "fp16"),
    ("mpnet", "feature-extraction", "saten", "int8-block"),
    ("modernbert", "text-classification", "saten", "fp32"),
    ("vit", "image-classification", "saten", "fp32"),
    ("vit", "image-classification", "dense", "int8"),
    ("deit", "feature-extraction", "dense", "fp32"),
    ("dinov2", "image-classification", "saten", "fp32"),
    ("dinov2_with_registers", "feature-extraction", "dense", "int8"),
    ("siglip_vision_model", "feature-extraction", "saten", "fp32"),
    ("vit", "feature-extraction", "saten as tt-chain", "fp32"),
    ("electra", "feature-extraction", "saten as dense", "fp32"),
    ("bert", "feature-extraction", "saten 1:8", "int8"),
    ("llama", "text-generation", "dense", "fp32"),
    ("qwen2", "text-generation", "dense", "fp32"),
    ("qwen3", "text-generation", "saten", "fp32"),
    ("qwen3", "text-generation", "saten", "int8"),
    ("mistral", "text-classification", "saten", "fp32"),
    ("gemma", "text-generation", "saten", "fp32"),
    ("gemma3_text", "text-generation", "dense", "fp32"),
    ("gpt2", "text-generation", "saten", "fp32"),
    ("gpt2", "text-generation", "dense", "int8"),
    ("bert", "question-answering", "flat saten", "int8"),
    ("vit", "image-classification", "flat", "int8"),
    ("llama", "text-generation", "flat", "int4-128"),
    ("llama", "text-generation", "flat", "fp32"),
    ("bert", "feature-extraction", "ptnn", "int2"),
    ("vit", "feature-extraction", "ptnn", "int8"),
    ("llama", "text-generation", "ptnn", "fp32"),
}
TEXTS = ["the number of path", "file", "returns and reads the file of a number"]
PAIRS = [("which file", "the path returns a number and reads the file"), ("what", "reads")]

Export = Callable[[str, str, str, str], tuple[LoadedModel, Bundle]]


def marked(cell: tuple[str, str, str, str]) -> Any:
    return pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.slow, id="-".join(cell))


# --- what torch says --------------------------------------------------------------------------------------------


def torch_outputs(source: LoadedModel, item: Any) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return dict(source.model(**_taken(source, source.encode([item]))))


def _taken(source: LoadedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without what a tokenizer gives and the model does not take."""
    return {name: tensor for name, tensor in inputs.items() if name != "token_type_ids" or takes_types(source)}


def takes_types(source: LoadedModel) -> bool:
    return source.model.config.model_type in ("bert", "electra")


def vectors(source: LoadedModel, items: list[Any]) -> np.ndarray:
    rows = []
    for item in items:
        hidden = torch_outputs(source, item)["last_hidden_state"]
        rows.append(source.pool(hidden, torch.ones(hidden.shape[:2]))[0].numpy())
    return np.stack(rows)


def probabilities(source: LoadedModel, items: list[Any]) -> np.ndarray:
    return np.stack([torch_outputs(source, item)["logits"][0].softmax(-1).numpy() for item in items])


def continuation(source: LoadedModel, text: str, tokens: int = 64) -> list[int]:
    """What transformers' own `generate` adds, without the token that ends it."""
    inputs = source.encode([text])
    room = min(tokens, source.max_length - inputs["input_ids"].shape[1] + 1)  # the last token takes no place
    with torch.no_grad():
        whole = source.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=room,
            pad_token_id=source.tokenizer.pad_token_id,
        )
    new = whole[0, inputs["input_ids"].shape[1] :].tolist()
    stops = source.model.generation_config.eos_token_id
    return new[: new.index(stops)] if stops in new else new


# --- what the runtime says, compared with it --------------------------------------------------------------------


def close(got: np.ndarray, wanted: np.ndarray, bound: float) -> bool:
    """Within the bound of the bundle; pooling, softmax and other padding add less than as much again."""
    return compare_outputs(got, wanted, None)[0] <= 4 * bound


def distance(got: np.ndarray, wanted: np.ndarray) -> float:
    """Root of the mean square of the difference."""
    return float(np.sqrt(np.square(got - wanted).mean()))


def embed(runner: Runner, source: LoadedModel, pictures: list[Any], bound: float) -> None:
    items = TEXTS if source.processor is None else pictures
    got, wanted = runner.predict(items), vectors(source, items)
    assert close(got, wanted, bound)
    # Random weights in few bits may differ by their own size, and any bound then lets wrong numbers through. Those of
    # another place are further off in any case.
    assert distance(got, wanted) < min(distance(np.roll(got, k, axis=1), wanted) for k in range(1, got.shape[1]))


def classify(runner: Runner, source: LoadedModel, pictures: list[Any], bound: float) -> None:
    items = TEXTS if source.processor is None else pictures
    got, wanted = runner.predict(items), probabilities(source, items)
    assert close(got.probabilities, wanted, bound * 10)  # a logit of 10 turns its rounding into ten times as much
    assert (got.labels == got.probabilities.argmax(axis=1)).all()


def tag(runner: Runner, source: LoadedModel, pictures: list[Any], bound: float) -> None:
    for text, words in zip(TEXTS, runner.predict(TEXTS), strict=True):
        likeliest = torch_outputs(source, text)["logits"][0].softmax(-1).max(-1).values.numpy()
        assert [text[word.start : word.end] for word in words] == text.split()
        assert all(np.abs(likeliest - word.probability).min() <= 40 * bound for word in words)


def answer(runner: Runner, source: LoadedModel, pictures: list[Any], bound: float) -> None:
    for (question, context), found in zip(PAIRS, runner.predict(PAIRS), strict=True):
        outputs = torch_outputs(source, (question, context))
        best = float(outputs["start_logits"].max() + outputs["end_logits"].max())
        assert context[found.start : found.end] == found.text != ""
        assert found.score <= best + 40 * bound * abs(best) + 1e-6


def complete(runner: Runner, source: LoadedModel, pictures: list[Any], bound: float) -> None:
    exact = runner.bundle.manifest.precision == "fp32"
    for text, found in zip(TEXTS, runner.predict(TEXTS), strict=True):
        assert found.ids
        assert not exact or found.ids == continuation(source, text)


CHECKS = {
    "feature-extraction": embed,
    "text-classification": classify,
    "token-classification": tag,
    "question-answering": answer,
    "image-classification": classify,
    "text-generation": complete,
}


# --- the battery -------------------------------------------------------------------------------------------------


def test_every_row_has_a_fixture(tiny_sizes: dict[str, Any]) -> None:
    assert set(tiny_sizes) == set(ARCHITECTURES)
    assert set(CHECKS) == set(HUB_TASKS)
    assert {task for row in ARCHITECTURES.values() for task in row.tasks} == set(HUB_TASKS)


def test_the_quick_cells_touch_every_row_and_column() -> None:
    assert set(CELLS) >= QUICK
    for column in range(4):
        assert {cell[column] for cell in QUICK} == {cell[column] for cell in CELLS}


@pytest.mark.parametrize(("model_type", "task", "form", "precision"), [marked(cell) for cell in CELLS])
def test_an_export_is_whole_and_computes_what_torch_does(
    model_type: str, task: str, form: str, precision: str, export_of: Export, pixels: list[np.ndarray]
) -> None:
    source, bundle = export_of(model_type, task, form, precision)
    manifest, graph = bundle.manifest, ir.load(bundle.model).graph
    bound = manifest.tolerance["relative"]
    assert (manifest.task, manifest.precision) == (task, precision)
    assert precision != "fp32" or bound < 1e-4
    optional = {LOGITS_TO_KEEP} if task == "text-generation" else set()
    assert [value.name for value in graph.inputs if value.name not in optional] == manifest.inputs
    assert {value.name for value in graph.inputs if value.const_value is not None} == optional
    onnx.checker.check_model(bundle.model)
    fused = task == "text-generation" and source.model.config._attn_implementation != NARROW
    blocks = source.model.config.num_hidden_layers if fused else 0
    assert sum(node.op_type == "GroupQueryAttention" for node in graph) == blocks
    layers = {node.name.partition("#")[0] for node in graph if node.domain == DOMAIN}
    assert layers == {layer.name for layer in manifest.layers if layer.lowering != "dense"}
    assert {layer.name for layer in manifest.layers} == set(source.layer_parts())
    asked = form.partition(" as ")[2]
    assert not asked or asked in {layer.lowering for layer in manifest.layers}
    stored = [value.const_value for value in graph.initializers.values()]
    assert sum(tensor.nbytes for tensor in stored) <= bundle.model_bytes
    assert bundle.model_bytes == sum((bundle.path / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    CHECKS[task](Runner.load(bundle), source, pixels, bound)


def test_one_label_is_a_regression(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = load_model(make_tiny("bert", "text-classification", num_labels=1))
    bundle = export(source, tmp_path / "bundle")
    assert bundle.manifest.task == "text-regression"
    assert "pipeline_tag: text-classification" in (bundle.path / "README.md").read_text()
    wanted = np.array([float(torch_outputs(source, text)["logits"]) for text in TEXTS])
    got, bound = Runner.load(bundle).predict(TEXTS), bundle.manifest.tolerance["relative"]
    assert close(got, wanted, bound)
    assert not close(np.roll(got, 1), wanted, bound)


def test_embeddings_of_tokens_that_see_later_ones(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    """As EmbeddingGemma's, whose windows are open on both sides."""
    folders = [
        make_tiny("gemma3_text", "feature-extraction", use_bidirectional_attention=both) for both in (True, None)
    ]
    source, forward = (load_model(folder) for folder in folders)
    bundle = export(source, tmp_path / "bundle")
    got, bound = Runner.load(bundle).predict(TEXTS), bundle.manifest.tolerance["relative"]
    assert close(got, vectors(source, TEXTS), bound)
    assert not close(got, vectors(forward, TEXTS), bound)  # the same weights, and tokens that see earlier ones alone


@pytest.mark.parametrize("model_type", ["qwen2", "gpt2"])
def test_a_tied_head_is_stored_once(model_type: str, export_of: Export) -> None:
    source, bundle = export_of(model_type, "text-generation", "dense", "fp32" if model_type == "qwen2" else "int8")
    vocabulary = source.model.config.vocab_size
    weights = [value.const_value for value in ir.load(bundle.model).graph.initializers.values()]
    tables = [weight for weight in weights if vocabulary in weight.shape.numpy() and weight.size > 2 * vocabulary]
    assert len(tables) == 1


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_decoder_keeps_what_transformers_needs(precision: str, export_of: Export) -> None:
    """Axes by name, one graph, and a cache that goes in and out."""
    _, bundle = export_of("qwen3", "text-generation", "saten", precision)
    graph = ir.load(bundle.model).graph
    shapes = {value.name: [str(dim) for dim in value.shape or ()] for value in (*graph.inputs, *graph.outputs)}
    assert shapes["input_ids"] == shapes["position_ids"] == ["batch", "sequence"]
    assert shapes["attention_mask"] == ["batch", "past_sequence + sequence"]
    assert shapes["logits"][:2] == ["batch", "kept"]
    entries = bundle.generation.cache
    assert len(entries) == 2 * 2
    for entry in entries:
        assert shapes[entry.input] == ["batch", str(entry.heads), "past_sequence", str(entry.width)]
        assert shapes[entry.output] == ["batch", str(entry.heads), "past_sequence + sequence", str(entry.width)]
    assert entries[0].heads == 2  # grouped queries: 4 heads share 2 keys
    assert bundle.generation.stop_ids == [3]


@pytest.mark.parametrize(("form", "part"), [("flat", 2), ("dense", 1)])
def test_narrower_heads_have_a_smaller_cache(form: str, part: int, export_of: Export) -> None:
    _, bundle = export_of("llama", "text-generation", form, "fp32")
    sizes = [entry.heads * entry.width for entry in bundle.generation.cache]
    keys, values = sizes[::2], sizes[1::2]
    assert len(keys) == 2
    assert [part * size for size in values] == keys


def test_the_tokens_and_their_distribution_are_in_the_report(export_of: Export) -> None:
    _, bundle = export_of("qwen3", "text-generation", "saten", "fp32")
    rows = json.loads((bundle.path / "validation" / "report.json").read_text())["comparisons"]
    assert {row["case"] for row in rows} == {"single", "prompt", "steps", "padded", "pieces", "ragged", "greedy"}
    for row in rows:
        assert row["same_token"] == 1
        assert 0 <= row["kl"] < 1e-9


def test_a_graph_reads_the_cache(export_of: Export, run_ort: Callable[..., list[np.ndarray]]) -> None:
    """A cache of other numbers gives other logits, and so does hiding a token of it."""
    _, bundle = export_of("qwen3", "text-generation", "saten", "fp32")
    random = np.random.default_rng(0)
    cache = {
        entry.input: random.standard_normal((1, entry.heads, 4, entry.width)).astype(np.float32)
        for entry in bundle.generation.cache
    }
    feeds = {"input_ids": np.array([[7]]), "attention_mask": np.ones((1, 5), np.int64), "position_ids": np.array([[4]])}
    logits, *_ = run_ort(bundle.model, {**feeds, **cache})
    other, *_ = run_ort(bundle.model, {**feeds, **{name: array[..., ::-1].copy() for name, array in cache.items()}})
    hidden, *_ = run_ort(bundle.model, {**feeds, **cache, "attention_mask": np.array([[0, 1, 1, 1, 1]])})
    assert np.abs(logits - other).max() > 1e-2
    assert np.abs(logits - hidden).max() > 1e-3


def test_nothing_is_exported_where_a_step_differs(
    export_of: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache changes places between steps: the prompt is right, what follows is not."""
    from saten_exporters import export
    from saten_runtime.errors import ParityError
    from saten_runtime.run import parity

    source, _ = export_of("qwen3", "text-generation", "saten", "fp32")
    honest = parity.make_session

    class Forgetful:
        def __init__(self, session: Any) -> None:
            self.session = session

        def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            moved = {n: a[:, :, ::-1] if "past_key_values" in n else a for n, a in feeds.items()}
            return self.session.run(names, {name: np.ascontiguousarray(array) for name, array in moved.items()})

    monkeypatch.setattr(parity, "make_session", lambda *a, **k: Forgetful(honest(*a, **k)))
    with pytest.raises(ParityError, match="output 'logits'"):
        export(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
