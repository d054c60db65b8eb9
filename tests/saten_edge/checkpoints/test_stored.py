"""The bytes that a compression counts are those that the bundle stores, and a size that is asked for is kept to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

import saten_edge
from saten_edge.checkpoints.bundle_bytes import dense_layers, reached
from saten_edge.checkpoints.compress import CompressedLayer, compress
from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.checkpoints.selection import Selection
from saten_edge.checkpoints.stored import Stored, gap_bytes
from saten_edge.decomposition.decompose import decompose
from saten_edge.decomposition.prices import bundle_prices
from saten_edge.decomposition.recipe import Recipe
from saten_edge.decomposition.residual import NoResidual, Unstructured, pattern_named
from saten_edge.options import CompressOptions
from saten_edge.recipes.schema import given_by
from saten_edge.units import size_in_bytes
from saten_exporters import PRECISIONS, export, quantize
from saten_exporters.bundles.export import ALIGNED_FROM_BYTES, ALIGNMENT_BYTES
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.choice.targets import TARGETS
from saten_exporters.passes import run_passes
from saten_runtime.errors import BudgetError, UsageError

PATTERNS = ("none", "unstructured", "1:8", "2:4", "grouped")
CELLS = [(pattern, precision) for pattern in PATTERNS for precision in PRECISIONS]
STORED_BITS = {name: precision.bits for name, precision in quantize.PRECISIONS.items()}


Compressed = tuple[LoadedModel, list[CompressedLayer]]
NO_POSITIONS = Selection(exclude=("*position*",))


@pytest.fixture(scope="module")
def wide_bert(make_bert: Callable[..., Path]) -> Path:
    """Wide enough for trains and residuals in blocks of 64."""
    return make_bert(width=256, layers=1)


def compressed(model: Path, pattern: str, precision: str | None, bits: float) -> Compressed:
    """Every matrix in parts, the train half of the bytes where there is a residual."""
    loaded = load_model(model)
    recipe = Recipe(rounds=1, share=None if pattern == "none" else 0.5)
    how: dict[str, Any] = {"pattern": pattern, "group": 8, "recipe": recipe, "selection": NO_POSITIONS}
    return loaded, compress(loaded, bits / 32, stored=Stored(precision), **how)


@pytest.fixture(scope="module")
def graph_of(trace_once: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """graph_of(model, precision) -> the file of its graph, lowered and saved as an export does it."""
    folder, traces = tmp_path_factory.mktemp("graphs"), dict[tuple[str, ...], LoadedModel]()

    def get(loaded: LoadedModel, precision: str) -> Path:
        from saten_exporters.bundles.export import _save_graph

        # The names of the layers decide the traced graph, their numbers do not.
        first = traces.setdefault(tuple(loaded.layer_parts()), loaded)
        program = trace_once(first, TARGETS["x86-64"]).program
        run_passes(program, loaded.layer_parts(), ExportSettings(precision, lowering="low-rank"))
        out = folder / f"{len(list(folder.iterdir()))}"
        out.mkdir()
        _save_graph(program, out, TARGETS["x86-64"])
        return out / "model.onnx"

    return get


def constants_of(path: Path) -> dict[str, dict[str, int]]:
    """Bytes of the constants that each node of a layer reads from the files of a graph, without a bias."""
    return {
        str(node.name): {
            str(value.name): value.const_value.nbytes
            for value in node.inputs[1:]
            if value is not None and value.const_value is not None and not str(value.name).endswith("bias")
        }
        for node in ir.load(path).graph
        if node.domain == "saten"
    }


def layer_bytes(path: Path) -> dict[str, int]:
    return {name: sum(constants.values()) for name, constants in constants_of(path).items()}


def twice_bytes(path: Path) -> int:
    """Of constants that several layers read."""
    each = list(constants_of(path).values())
    return sum(map(sum, (one.values() for one in each))) - sum({k: v for one in each for k, v in one.items()}.values())


def file_bytes(path: Path) -> int:
    """Of all weights, in the file beside the graph or within it."""
    return sum(value.const_value.nbytes for value in ir.load(path).graph.initializers.values() if value.const_value)


# --- what is counted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pattern", "precision"), CELLS)
def test_what_is_counted_is_what_the_file_holds(
    pattern: str, precision: str, wide_bert: Path, graph_of: Callable[..., Path]
) -> None:
    bits = 0.9 * min(STORED_BITS[precision], 12)
    loaded, rows = compressed(wide_bert, pattern, precision, bits)
    path = graph_of(loaded, precision)
    assert {row.name: row.bytes for row in rows} == layer_bytes(path)
    assert all(8 * row.bytes <= bits * math.prod(row.shape) for row in rows)
    assert pattern == "none" or all(row.nnz and max(row.ranks) > 1 for row in rows)
    said = reached(loaded, rows, precision, {})
    data = path.with_name("model.onnx.data").stat().st_size
    assert data <= file_bytes(path) <= said["bytes"]
    # Equal constants of several layers are stored once, and some kilobytes are kept for those of the graph.
    assert said["bytes"] - twice_bytes(path) - file_bytes(path) < 6000
    assert said["layers"] == sum(row.bytes for row in rows)


def test_another_precision_holds_other_bytes(wide_bert: Path, graph_of: Callable[..., Path]) -> None:
    """The twin: bytes counted for int8 are not those of a bundle at int4, nor those of the checkpoint."""
    loaded, rows = compressed(wide_bert, "unstructured", "int8", 4)
    counted = {row.name: row.bytes for row in rows}
    assert counted != layer_bytes(graph_of(loaded, "int4"))
    _, others = compressed(wide_bert, "unstructured", None, 16)
    assert counted != {row.name: row.bytes for row in others}


def test_without_a_precision_bytes_are_those_of_the_checkpoint() -> None:
    matrix = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    found = decompose(matrix, 6000, Unstructured(), Recipe(share=0.5))
    again = decompose(matrix, 6000, Unstructured(), Recipe(share=0.5), None, None)
    train = sum(core.numel() * 4 for core in found.train.cores)
    assert found.bytes == again.bytes == train + 5 * found.residual.nnz + 2 * 64


def test_dense_weights_are_counted_as_they_are_stored(tiny_bert: Path) -> None:
    model = load_model(tiny_bert).model
    name, numel = "embeddings.word_embeddings.weight", 1200 * 64
    found = {precision: dense_layers(model, precision)[name] for precision in (None, *PRECISIONS)}
    assert found[None] == found["fp32"] == 4 * numel
    assert found["int8"] == numel + 4 * 1200
    assert found["int4"] == numel // 2 + 4 * 1200 * 2 + 8  # the width stands beside it
    assert dense_layers(model, "int8")["embeddings.LayerNorm.weight"] == 4 * 64


def test_gaps_are_counted_for_what_may_be_large() -> None:
    large = ALIGNED_FROM_BYTES
    assert gap_bytes([large - 1, 100]) == 0
    assert gap_bytes([large, 2 * large + 5]) == 3 * ALIGNMENT_BYTES
    fitted = Stored("int8", room=10 * large).fitted({"a": 8 * large, "b": 2 * large})
    assert sum(fitted.values()) + gap_bytes(fitted.values()) <= 10 * large
    assert Stored("int8", room=20 * large).fitted({"a": 8 * large}) == {"a": 8 * large}


# --- what is asked for -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sized(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of a bundle of 80 kB at int8, and its table."""
    out = tmp_path_factory.mktemp("sized") / "out"
    options = CompressOptions(size="80kB", precision="int8", pattern="unstructured", recipe=Recipe(rounds=1))
    return out, saten_edge.compress(tiny_bert, out, options)


def test_a_size_is_kept_to(sized: tuple[Path, dict[str, Any]], tmp_path: Path, trace_once: object) -> None:
    out, table = sized
    bundle = export(load_model(out), tmp_path / "bundle", precision="int8", max_loss=math.inf)
    stored = file_bytes(bundle.model)
    assert stored <= table["stored"]["bytes"] <= 80_000
    # What is left over is less than one more rank, or one more entry in each row of a table, of every layer.
    spare = sum(sum(row["shape"]) + 8 + 3 * row["shape"][0] for row in table["layers"])
    assert 80_000 - spare < table["stored"]["bytes"]
    assert table["stored"]["asked"] == {"size": "80kB"}
    assert not bundle.manifest.notices


@pytest.mark.slow
def test_a_bundle_at_another_precision_says_so(
    sized: tuple[Path, dict[str, Any]], tmp_path: Path, trace_once: object
) -> None:
    bundle = export(load_model(sized[0]), tmp_path / "bundle", precision="fp32")
    assert any("--precision fp32" in notice and "int8" in notice for notice in bundle.manifest.notices)
    assert file_bytes(bundle.model) > 80_000


def test_the_recipe_says_what_was_asked_for(sized: tuple[Path, dict[str, Any]]) -> None:
    (stage,) = load_model(sized[0]).recipe.stages
    said = {name: stage.options.get(name) for name in ("budget", "size", "bits", "precision")}
    assert said == {"budget": None, "size": "80kB", "bits": None, "precision": "int8"}
    again = given_by("compress", {name: value for name, value in stage.options.items() if name != "train"})
    assert (again.size_bytes, again.counted, again.share) == (80_000, "int8", None)


def test_bits_are_a_budget(wide_bert: Path, tmp_path: Path) -> None:
    how = {"pattern": "1:8", "precision": "int4", "recipe": Recipe(rounds=1), "selection": NO_POSITIONS}
    tables = [
        saten_edge.compress(wide_bert, tmp_path / name, CompressOptions(**how, **given))
        for name, given in (("bits", {"bits": 3.0}), ("budget", {"budget": 3 / 32}))
    ]
    assert tables[0]["layers"] == tables[1]["layers"]
    assert 2.5 < tables[0]["stored"]["bits"] <= 3
    weights = sum(math.prod(row["shape"]) for row in tables[0]["layers"])
    assert tables[0]["stored"]["layers"] <= 3 * weights / 8


def test_the_default_is_a_quarter_of_what_is_dense_at_the_precision() -> None:
    assert CompressOptions().share == 0.25
    assert CompressOptions(precision="int8").share == 0.0625
    assert CompressOptions(precision="int4").share == 0.03125
    assert CompressOptions(bits=8.0).share == 0.25
    assert CompressOptions(size="8MB").share is None
    assert CompressOptions(size="8MB").counted == CompressOptions(bits=2.0).counted == "fp32"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": 0.2, "size": "8MB"}, "--budget and --size each say"),
        ({"budget": 0.2, "bits": 2.0}, "--budget and --bits each say"),
        ({"size": "8MB", "bits": 2.0}, "--size and --bits each say"),
        ({"size": "8"}, "--size 8: expected a number with a unit"),
        ({"size": "8 pounds"}, "--size 8 pounds: expected"),
        ({"size": "-8MB"}, "--size -8MB: expected"),
        ({"size": "0MB"}, "--size 0MB: expected"),
        ({"bits": 0.0}, "--bits 0"),
        ({"bits": 33.0}, "--bits 33"),
        ({"bits": math.nan}, "--bits nan"),
        ({"method": "ptnn", "precision": "int8"}, "--precision is for --method saten"),
        ({"method": "ptnn", "size": "8MB"}, "--size is for --method saten"),
    ],
)
def test_what_contradicts_itself_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CompressOptions(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "int3"}, "--precision int3: there are fp32"),
        ({"precision": "int8", "recipe": Recipe(train="tt-svd")}, "--precision int8 counts a train as the two factors"),
        ({"size": "80kB", "recipe": Recipe(eps=0.5)}, "--precision fp32 counts a train"),
        (
            {"size": "10kB", "precision": "int8"},
            "--size 10kB: .* the smallest that can be asked for is",
        ),
        ({"size": "9MB", "precision": "int8"}, "--size 9MB: .* dense at int8, .*or export the dense model"),
        ({"bits": 9.0, "precision": "int8"}, "--bits 9: the layers take .* dense at int8"),
        ({"budget": 0.5, "precision": "int4"}, "--budget 0.5: the layers take .* dense at int4"),
        ({"bits": 0.01, "precision": "int8"}, "--bits 0.01: the layers take .* at least at int8"),
    ],
)
def test_what_cannot_be_reached_is_refused(
    given: dict[str, Any], message: str, tiny_bert: Path, tmp_path: Path
) -> None:
    with pytest.raises((BudgetError, UsageError), match=message):
        saten_edge.compress(tiny_bert, tmp_path / "out", CompressOptions(**given))
    assert not (tmp_path / "out").exists()


def test_the_smallest_size_can_be_asked_for(tiny_bert: Path, tmp_path: Path) -> None:
    how = CompressOptions(size="1kB", precision="int8", pattern="none", recipe=Recipe(rounds=1))
    with pytest.raises(BudgetError, match="the smallest that can be asked for is") as caught:
        saten_edge.compress(tiny_bert, tmp_path / "out", how)
    smallest = str(caught.value).rpartition(" is ")[2]
    size = size_in_bytes("", smallest) * 1.01  # three digits are said
    table = saten_edge.compress(tiny_bert, tmp_path / "out", dataclasses.replace(how, size=f"{size:.0f}B"))
    assert table["stored"]["bytes"] <= size


@pytest.mark.parametrize(
    ("text", "size"),
    [("8MB", 8_000_000), ("1.5 KiB", 1536), ("600kb", 600_000), ("2MiB", 2 << 20), ("12B", 12), ("0.5GB", 500_000_000)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert size_in_bytes("--size", text) == size


# --- what it is for --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("pattern", ["unstructured", "1:8", "grouped"])
def test_prices_leave_less_error_in_the_same_bundle(pattern: str, precision: str, minilm: Path) -> None:
    """A layer of MiniLM at 2 bits a weight; without prices at the largest float32 budget whose bundle is no larger."""
    layer: Any = load_model(minilm).model.get_submodule("encoder.layer.4.attention.self.query")
    matrix = layer.weight.detach().T.contiguous()
    shape, recipe = (matrix.shape[0], matrix.shape[1]), Recipe(solver="alternate")
    kept = pattern_named(pattern, "linear", group=16, width=shape[1])
    prices, size = bundle_prices("linear", shape, kept, precision), matrix.numel() // 4
    priced = decompose(matrix, size, kept, recipe, None, prices)
    assert 0.95 * size < priced.bytes <= size
    plain, least, most = 1.0, 0, 4 * matrix.numel()
    for _ in range(8):
        budget = (least + most) // 2
        try:
            parts = decompose(matrix, budget, kept, recipe)
            fits = prices.train(parts.train.bond) + prices.residual(parts.residual.nnz) <= size
        except BudgetError:
            fits = True
        else:
            plain = parts.error if fits else plain
        least, most = (budget, most) if fits else (least, budget)
    assert plain < 1
    assert priced.error <= plain
    if (pattern, precision) == ("unstructured", "int4"):
        assert priced.error < 0.8 * plain  # three bytes for an entry, half a byte for a value of the train


def test_a_train_alone_is_the_largest_that_fits() -> None:
    prices = bundle_prices("linear", (384, 1536), NoResidual(), "int8")
    for size in (5000, 20_000, 147_456):
        bond = prices.bond(size)
        assert prices.train(bond) <= size < prices.train(bond + 1)
    assert prices.bond(prices.train(1) - 1) == 0
