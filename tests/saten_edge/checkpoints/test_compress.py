"""Compressing whole models: which layers, within which bytes, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saten_edge.checkpoints import compress as compression
from saten_edge.checkpoints.bundle_bytes import dense_layers
from saten_edge.checkpoints.compress import (
    Selection,
    check_options,
    compress,
    compressible_layers,
    layer_errors,
    matrices,
)
from saten_edge.checkpoints.models import load_model, save_model
from saten_edge.checkpoints.modules import SatenEmbedding, SatenLinear, saten_layers
from saten_edge.decomposition.allocation import ALLOCATIONS, Measured, allocate
from saten_edge.decomposition.recipe import Recipe
from saten_edge.methods import METHODS, calibrate
from saten_edge.methods.method import Job
from saten_edge.options import CompressOptions
from saten_edge.recipes import stages_in
from saten_runtime.errors import BudgetError, CheckpointError, ExportError, UsageError

QUICK = Recipe(rounds=1, share=0.6)
LINEARS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
NAMES = {
    "embeddings.word_embeddings",
    "embeddings.position_embeddings",
    *(f"encoder.layer.{k}.{name}" for k in (0, 1) for name in (*LINEARS, "intermediate.dense", "output.dense")),
}

WORDS, INNER, OUTER = "embeddings.word_embeddings", "encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"


def test_every_linear_and_table_is_compressed(tiny_bert):
    """But for the token types: two rows are not worth it."""
    assert set(compressible_layers(load_model(tiny_bert).model)) == NAMES


def test_every_matrix_of_the_real_model_is_compressed(minilm):
    layers = compressible_layers(load_model(minilm).model)
    assert len(layers) == 6 * 6 + 2
    assert matrices(layers)["embeddings.word_embeddings"].shape == (30522, 384)
    assert matrices(layers)["encoder.layer.0.intermediate.dense"].shape == (384, 1536)


@pytest.mark.parametrize("pattern", ["grouped", "unstructured"])
@pytest.mark.parametrize("budget", [0.15, 0.4])
def test_the_bytes_stay_within_the_budget_and_are_those_of_the_modules(tiny_bert, pattern, budget):
    loaded = load_model(tiny_bert)
    rows = compress(loaded, budget, pattern=pattern, group=8, recipe=QUICK)
    assert {row.name for row in rows} == set(saten_layers(loaded.model)) == NAMES
    assert sum(row.bytes for row in rows) <= budget * sum(row.dense_bytes for row in rows)
    for row in rows:
        module = saten_layers(loaded.model)[row.name]
        tensors = (*module.cores, module.residual.values, *module.residual.index_tensors().values())
        assert isinstance(module, SatenEmbedding if row.kind == "embedding" else SatenLinear)
        assert (row.shape, row.nnz) == (module.spec.shape, module.residual.values.numel())
        assert row.dense_bytes == 4 * row.shape[0] * row.shape[1]
        assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) <= row.bytes


def test_the_saved_layers_are_as_small_as_the_table_says(tiny_saten):
    """Cores, values and indices on disk take no more than the bytes reported, which also allow for folded factors."""
    reported = json.loads((tiny_saten / "saten_layers.json").read_text())
    tensors = load_file(tiny_saten / "model.safetensors")
    for row in reported["layers"]:
        parts = {key: t for key, t in tensors.items() if key.startswith((f"{row['name']}.cores", f"{row['name']}.res"))}
        assert sum(t.numel() * t.element_size() for t in parts.values()) <= row["bytes"]
    dense = {key: t.numel() * 4 for key, t in tensors.items() if ".cores." not in key and ".residual." not in key}
    assert reported["dense"] == dense


def test_what_stays_dense_is_untouched(tiny_bert):
    loaded = load_model(tiny_bert)
    before = {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}
    compress(loaded, 0.3, group=8, recipe=QUICK)
    kept = dense_layers(loaded.model)
    assert set(kept) == {name for name in before if name.removesuffix(".weight") not in NAMES}
    assert all(torch.equal(loaded.model.get_parameter(name), before[name]) for name in kept)


def test_progress_names_each_layer_and_ends(tiny_bert):
    calls = []
    compress(load_model(tiny_bert), 0.3, group=8, recipe=QUICK, progress=lambda *call: calls.append(call))
    assert [done for _, done, _ in calls] == list(range(len(NAMES) + 1))
    assert {name for name, _, _ in calls[:-1]} == NAMES
    assert calls[-1] == ("", len(NAMES), len(NAMES))


@pytest.mark.parametrize("budget", [0.0, 1.0, -0.5, 30, float("nan")])
def test_a_budget_that_is_no_share_is_refused(tiny_bert, budget):
    with pytest.raises(UsageError, match=r"--budget .*: expected a share of the dense bytes between 0 and 1"):
        compress(load_model(tiny_bert), budget)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (BudgetError, r"^embeddings\.word_embeddings: \d+ bytes for a matrix of 1200 × 64", {"budget": 0.001}),
        (
            UsageError,
            "no residual pattern 'blocky'; there are: ",
            {"pattern": "blocky"},
        ),
        (UsageError, "no allocation 'fair'; there are: sensitivity, uniform", {"allocation": "fair"}),
        (UsageError, "needs calibration texts", {"allocation": "sensitivity"}),
    ],
)
def test_what_cannot_be_done_is_refused_naming_the_layer(tiny_bert, error, message, options):
    with pytest.raises(error, match=message):
        compress(load_model(tiny_bert), **{"budget": 0.3, "recipe": QUICK, **options})


@pytest.mark.parametrize(("group", "pattern"), [(7, "grouped 4"), (48, "grouped 32"), (3, "unstructured")])
def test_a_group_that_does_not_divide_the_outputs_gives_way_to_what_fits(tiny_bert, group, pattern):
    loaded = load_model(tiny_bert)
    rows = compress(loaded, 0.4, group=group, recipe=Recipe(rounds=1, share=0.5))
    assert {row.pattern for row in rows if row.kind == "linear"} == {pattern}
    assert {row.pattern for row in rows if row.kind == "embedding"} == {"whole rows"}
    assert all(row.nnz for row in rows)
    assert sum(row.bytes for row in rows) <= 0.4 * sum(row.dense_bytes for row in rows)


@pytest.mark.parametrize("name", ["encoder.layer.1.output.dense.weight", "encoder.layer.1.output.LayerNorm.bias"])
@pytest.mark.parametrize("method", [None, *METHODS])
def test_a_damaged_model_is_refused_before_anything_is_computed(tiny_bert, texts, name, method, monkeypatch):
    monkeypatch.setattr(compression, "decompose_layer", lambda *_: pytest.fail("decomposed a layer all the same"))
    monkeypatch.setattr(calibrate, "second_moments", lambda *_: pytest.fail("calibrated all the same"))
    loaded = load_model(tiny_bert)
    with torch.no_grad():
        loaded.model.get_parameter(name).view(-1)[3] = float("nan")
    job = Job(loaded, CompressOptions(budget=0.3), texts)
    ways = {name: partial(row.run, job) for name, row in METHODS.items()}
    with pytest.raises(CheckpointError, match=rf"^{re.escape(name)}: holds values that are NaN or infinite"):
        ways.get(method, partial(compress, loaded, 0.3))()


def test_a_compressed_model_is_not_compressed_again(tiny_saten):
    with pytest.raises(UsageError, match="compressed already; start from the dense one"):
        compress(load_model(tiny_saten), 0.3)


class TestSelection:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"smallest": 8192}, {name for name in NAMES if "dense" in name and "attention" not in name} | {WORDS}),
            ({"include": ("*.layer.0.*",)}, {name for name in NAMES if ".layer.0." in name}),
            ({"include": ("*.query", "*.key")}, {name for name in NAMES if name.endswith(("query", "key"))}),
            ({"exclude": ("embeddings.*",)}, {name for name in NAMES if not name.startswith("embeddings")}),
            ({"include": ("*.layer.0.*",), "exclude": ("*attention*",)}, {INNER, OUTER}),
        ],
    )
    def test_layers_by_size_and_name(self, tiny_bert, options, expected):
        loaded = load_model(tiny_bert)
        assert set(compressible_layers(loaded.model, Selection(**options))) == expected
        rows = compress(loaded, 0.3, group=8, recipe=QUICK, selection=Selection(**options))
        assert {row.name for row in rows} == set(saten_layers(loaded.model)) == expected

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"smallest": 10**6}, "has no weight matrix of at least 1000000 values: nothing to compress"),
            ({"include": ("*nowhere*",)}, "4096 values that --include and --exclude leave: nothing to compress"),
        ],
    )
    def test_nothing_left(self, tiny_bert, options, message):
        with pytest.raises(ExportError, match=message):
            compressible_layers(load_model(tiny_bert).model, Selection(**options))

    @pytest.mark.parametrize(("width", "inner"), [(67, 131), (64, 1), (61, 127)])
    def test_awkward_sizes(self, make_tiny, width, inner, texts, tmp_path):
        """Primes and 1 × n."""
        sizes = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": 1}
        loaded = load_model(make_tiny("bert", "feature-extraction", **sizes))
        selection = Selection(smallest=1, exclude=("*.intermediate.dense", "*.layer.1.*") if inner == 1 else ())
        compress(loaded, 0.6, pattern="unstructured", recipe=Recipe(rounds=1), selection=selection)
        save_model(loaded, tmp_path / "saten")
        again = load_model(tmp_path / "saten").model
        batch = loaded.encode(texts[:3])
        with torch.no_grad():
            first, second = (model(**batch).last_hidden_state for model in (loaded.model, again))
        # Products of one column depend on where in memory it lies, so these outputs may differ by rounding.
        assert torch.allclose(first, second, rtol=0, atol=1e-5)
        state = again.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.model.state_dict().items())


class TestStoredPrecision:
    """Weights that are stored in 16 bits stay so until their turn."""

    @pytest.fixture
    def half(self, tiny_bert: Path, tmp_path: Path) -> Path:
        loaded = load_model(tiny_bert)
        loaded.model.to(torch.bfloat16)
        save_model(loaded, tmp_path / "half")
        return tmp_path / "half"

    def test_layers_are_widened_one_at_a_time(self, half):
        loaded = load_model(half, dtype="auto")
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
        seen = []

        def look(name: str, done: int, total: int) -> None:
            dense = dense_layers(loaded.model)
            seen.append({loaded.model.get_parameter(key).dtype for key in dense if key.endswith("weight")})

        compress(loaded, 0.4, group=8, recipe=QUICK, progress=look)
        assert all(dtypes == {torch.bfloat16} for dtypes in seen)
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}

    def test_the_result_is_that_of_weights_widened_at_once(self, half, texts):
        pair = [load_model(half, dtype=dtype) for dtype in ("auto", torch.float32)]
        for loaded in pair:
            compress(loaded, 0.4, group=8, recipe=QUICK)
        with torch.no_grad():
            first, second = (loaded.model(**pair[0].encode(texts[:3])).last_hidden_state for loaded in pair)
        assert torch.equal(first, second)


def test_errors_against_the_dense_model(tiny_bert):
    """Without calibration they are those of the compression; any change of a layer moves its own."""
    loaded, dense = load_model(tiny_bert), load_model(tiny_bert)
    rows = compress(loaded, 0.4, group=8, recipe=QUICK)
    errors = layer_errors(loaded.model, dense.model)
    # ‖·‖_F of float32 values, summed in float32: some rounding errors of the terms.
    assert errors == {row.name: pytest.approx(row.error, rel=1e-4) for row in rows}
    with torch.no_grad():
        saten_layers(loaded.model)[OUTER].cores[0].mul_(0.9)
    changed = layer_errors(loaded.model, dense.model)
    assert {name for name in errors if changed[name] != errors[name]} == {OUTER}


class TestAllocation:
    @pytest.fixture
    def two(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(48, 32, generator=generator) for name in ("first", "second")}

    @staticmethod
    def measured(first: float, second: float) -> Measured:
        moments = {name: torch.eye(48, dtype=torch.float64) for name in ("first", "second")}
        return Measured(moments, {"first": first, "second": second})

    @pytest.mark.parametrize("how", ALLOCATIONS)
    @pytest.mark.parametrize("budget", [0.01, 0.2, 0.5, 0.95])
    def test_the_sum_stays_within_the_budget(self, two, how, budget):
        sizes = allocate(how, two, budget, self.measured(1.0, 5.0))
        assert set(sizes) == set(two)
        assert 0 <= sum(sizes.values()) <= budget * sum(matrix.numel() * 4 for matrix in two.values())

    def test_the_more_sensitive_layer_gets_more(self, two):
        first, second = (allocate("sensitivity", two, 0.3, self.measured(*given)) for given in ((9, 1), (1, 9)))
        assert first["first"] > first["second"]
        assert second["first"] < second["second"]

    def test_uniform_gives_equal_shares(self, two: dict[str, torch.Tensor]):
        assert allocate("uniform", two, 0.25, None) == {"first": 48 * 32, "second": 48 * 32}

    @pytest.mark.parametrize("how", ALLOCATIONS)
    def test_a_fixed_share_is_kept_and_the_others_have_the_rest(self, two, how):
        sizes = allocate(how, two, 0.3, self.measured(1.0, 100.0), {"second": 0.1})
        assert sizes["second"] == int(0.1 * 48 * 32 * 4)
        assert 0.4 * 48 * 32 * 4 < sizes["first"] <= 0.5 * 48 * 32 * 4
        assert list(sizes) == list(two)
        assert allocate(how, two, 0.3, self.measured(1.0, 100.0))["second"] > sizes["second"]

    @pytest.mark.parametrize("fixed", [{"second": 0.7}, {"second": 0.61}, {"first": 0.3, "second": 0.3}])
    def test_fixed_shares_that_leave_nothing_are_refused(self, two, fixed):
        with pytest.raises(UsageError, match=r"--tables takes .* of all bytes, which leaves .* of --budget 0.3"):
            allocate("uniform", two, 0.3, None, fixed)

    def test_a_fixed_share_that_leaves_more_than_there_is_is_refused(self, two):
        with pytest.raises(UsageError, match=r"expected more than 0 and less than the 0.500 that they have"):
            allocate("uniform", two, 0.6, None, {"second": 0.1})


def test_tables_have_their_own_share_of_the_budget(tiny_bert):
    """Within the same bytes; without the option they would share as the layers do."""

    def sizes(tables: float | None) -> dict[str, int]:
        rows = compress(load_model(tiny_bert), 0.5, pattern="none", recipe=QUICK, tables=tables)
        dense = {kind: sum(row.dense_bytes for row in rows if row.kind == kind) for kind in ("embedding", "linear")}
        assert sum(row.bytes for row in rows) <= 0.5 * sum(dense.values())
        return {kind: sum(row.bytes for row in rows if row.kind == kind) / size for kind, size in dense.items()}

    few, alike = sizes(0.3), sizes(None)
    assert few["embedding"] <= 0.3 < alike["embedding"]
    assert few["linear"] > alike["linear"]


def test_a_share_of_tables_needs_a_table(tiny_bert):
    layers = Selection(include=("*.intermediate.dense",))
    with pytest.raises(UsageError, match=r"--tables 0.3: no lookup table of this model is compressed"):
        compress(load_model(tiny_bert), 0.5, pattern="none", recipe=QUICK, selection=layers, tables=0.3)
    assert compress(load_model(tiny_bert), 0.5, pattern="none", recipe=QUICK, selection=layers)


def test_a_share_of_tables_needs_a_budget():
    recipe = Recipe(eps=0.5, density=0.1)
    with pytest.raises(UsageError, match=r"--tables 0.3 is a part of --budget, which --eps and --density leave out"):
        check_options(None, "unstructured", 8, "uniform", recipe, calibrated=False, tables=0.3)
    check_options(None, "unstructured", 8, "uniform", recipe, calibrated=False)


def test_calibration_lowers_the_error_of_the_output(make_bert: Callable[..., Path], texts: list[str], tmp_path: Path):
    """Against the same compression without it: the hidden states of held-out texts come nearer to the dense ones."""
    import saten_edge

    options = saten_edge.CompressOptions(0.3, group=8, allocation="uniform", recipe=Recipe(rounds=1))
    dense = load_model(make_bert(seed=1))
    batch = dense.encode(texts[64:])
    with torch.no_grad():
        wanted = dense.model(**batch).last_hidden_state[batch["attention_mask"].bool()]
    errors = {}
    for name, calibration in (("blind", []), ("seeing", texts[:64])):
        saten_edge.compress(dense.folder, tmp_path / name, options, calibration=calibration)
        with torch.no_grad():
            got = load_model(tmp_path / name).model(**batch).last_hidden_state[batch["attention_mask"].bool()]
        errors[name] = float((got - wanted).norm() / wanted.norm())
    assert errors["seeing"] < errors["blind"]


@pytest.mark.parametrize("options", [{"allocation": "uniform"}, {"recipe": Recipe(eps=0.5, density=0.1, rounds=1)}])
def test_sensitivities_that_nothing_reads_are_not_measured(options, tiny_bert, texts, tmp_path, monkeypatch):
    import saten_edge

    class Measuring(Exception):
        pass

    def measure(*_: object, **__: object) -> None:
        raise Measuring

    monkeypatch.setattr("saten_edge.methods.calibrate.output_sensitivities", measure)
    usual = {"recipe": Recipe(rounds=1), "group": 8}
    told = saten_edge.CompressOptions(**{**usual, **options})
    assert saten_edge.compress(tiny_bert, tmp_path / "out", told, calibration=texts[:4])["layers"]
    with pytest.raises(Measuring):
        saten_edge.compress(tiny_bert, tmp_path / "other", saten_edge.CompressOptions(**usual), calibration=texts[:4])


def products(folder: Path) -> str | None:
    """What the recipe of a compressed checkpoint says of the products of its calibration."""
    return stages_in(folder)[0].inputs["calibration"].get("products")


def test_a_text_generator_is_calibrated_in_bfloat16_where_the_processor_multiplies_it(
    make_tiny: Callable[..., Path], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import saten_edge

    def compressed(name: str, dense: Path, **options: bool) -> Path:
        told = saten_edge.CompressOptions(0.5, group=8, recipe=Recipe(rounds=1, solver="alternate"), **options)
        saten_edge.compress(dense, tmp_path / name, told, calibration=texts[:4])
        return tmp_path / name

    llama, bert = make_tiny("llama", "text-generation"), make_tiny("bert", "feature-extraction")
    monkeypatch.setattr("saten_edge.methods.method.multiplies_bf16", lambda *, gpu: not gpu)
    assert products(compressed("usual", llama)) == products(compressed("asked", bert, bf16=True)) == "bf16"
    assert products(compressed("encoder", bert)) is None
    assert products(compressed("exact", llama, bf16=False)) is None
    monkeypatch.setattr("saten_edge.methods.method.multiplies_bf16", lambda *, gpu: gpu)
    assert products(compressed("without", llama)) is None
    with pytest.raises(UsageError, match="--bf16: says how calibration multiplies; add --calibration"):
        saten_edge.compress(llama, tmp_path / "blind", saten_edge.CompressOptions(bf16=True))
