"""Second moments against numpy, padding left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from saten_edge.checkpoints.compress import compressible_layers, matrices
from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.decomposition.calibration import UNSEEN_TOKEN_COUNT, second_moments
from saten_edge.decomposition.sensitivity import output_sensitivities

TABLE, FIRST, LAST = (
    "embeddings.word_embeddings",
    "encoder.layer.0.attention.self.query",
    "encoder.layer.1.output.dense",
)
EPS = np.finfo(np.float32).eps


@pytest.fixture(scope="module")
def loaded(tiny_bert: Path) -> LoadedModel:
    return load_model(tiny_bert)


@pytest.fixture(scope="module")
def batches(loaded: LoadedModel, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    """Three batches of different lengths, each with padding."""
    return [loaded.encode(texts[start : start + 8]) for start in (0, 8, 16)]


def inputs_of(loaded: LoadedModel, name: str, batches: list[dict[str, torch.Tensor]], *, padded: bool) -> np.ndarray:
    """The rows (tokens, in) that reach a layer, or its (tokens,) ids."""
    seen = []
    module = loaded.model.get_submodule(name)
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().numpy()))
    with torch.no_grad():
        for batch in batches:
            loaded.model(**batch)
    hook.remove()
    masks = [batch["attention_mask"].numpy().astype(bool) for batch in batches]
    return np.concatenate([x[np.ones_like(mask) if padded else mask] for x, mask in zip(seen, masks, strict=True)])


def within_rounding(found: torch.Tensor, rows: np.ndarray) -> bool:
    """|Σ̂ − Σ| ≤ γ_n |X|ᵀ|X| / n, element by element, n products summed in float32 (Higham)."""
    exact = rows.astype(np.float64)
    bound = 2 * len(rows) * EPS * (np.abs(exact).T @ np.abs(exact)) / len(rows)
    return bool((np.abs(found.numpy() - exact.T @ exact / len(rows)) <= bound).all())


@pytest.mark.parametrize("name", [FIRST, LAST])
def test_moments_of_a_linear_are_the_mean_of_outer_products(loaded, batches, name):
    moments = second_moments(loaded.model, [name], batches)[name]
    assert moments.dtype == torch.float32
    assert within_rounding(moments, inputs_of(loaded, name, batches, padded=False))


def test_in_bfloat16_only_the_products_before_a_layer_are_rounded(loaded, batches):
    """Each of the eleven before the last layer once; what reaches the first comes from tables."""
    first, last = (second_moments(loaded.model, [FIRST, LAST], batches, bf16=bf16) for bf16 in (False, True))
    exact, found = (moments[LAST] for moments in (first, last))
    bound = 2 * 11 * torch.finfo(torch.bfloat16).eps * exact.norm()
    assert torch.equal(first[FIRST], last[FIRST])
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() <= bound
    assert (found.roll(1, 0) - exact).norm() > bound


@pytest.mark.parametrize("name", [FIRST, LAST])
def test_with_padding_counted_they_differ(loaded, batches, name):
    moments = second_moments(loaded.model, [name], batches)[name]
    assert not within_rounding(moments, inputs_of(loaded, name, batches, padded=True))


def test_with_a_batch_left_out_they_differ(loaded, batches):
    moments = second_moments(loaded.model, [FIRST], batches[:-1])[FIRST]
    assert not within_rounding(moments, inputs_of(loaded, FIRST, batches, padded=False))


@pytest.mark.parametrize("padded", [False, True])
def test_moments_of_a_table_are_token_counts_without_padding(loaded, batches, padded):
    moments = second_moments(loaded.model, [TABLE], batches)[TABLE].numpy()
    ids = inputs_of(loaded, TABLE, batches, padded=padded)
    rows = sum(int(batch["attention_mask"].sum()) for batch in batches)
    expected = (np.bincount(ids, minlength=len(moments)) + UNSEEN_TOKEN_COUNT) / rows
    assert np.allclose(moments, expected, rtol=1e-15) is not padded


def test_all_layers_at_once_are_each_layer_alone(loaded, batches):
    names = list(compressible_layers(loaded.model))
    together = second_moments(loaded.model, names, batches)
    assert list(together) == names
    assert all(torch.equal(together[name], second_moments(loaded.model, [name], batches)[name]) for name in names[::4])


def test_no_hook_stays_even_after_a_failure(loaded, batches):
    with pytest.raises(IndexError):
        second_moments(loaded.model, [FIRST, LAST], [{**batches[0], "input_ids": batches[0]["input_ids"] + 1200}])
    second_moments(loaded.model, [FIRST], batches[:1])
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_sensitivities_are_positive_and_leave_the_weights_as_they_were(loaded, batches):
    views = matrices(compressible_layers(loaded.model))
    before = {name: view.clone() for name, view in views.items()}
    moments = second_moments(loaded.model, views, batches)
    asked = []
    found = output_sensitivities(loaded.model, views, moments, batches[:1], 0.3, asked.append)
    assert list(found) == asked == list(views)
    assert all(np.isfinite(value) and value > 0 for value in found.values())
    assert all(torch.equal(views[name], before[name]) for name in views)


def test_a_layer_that_the_output_ignores_is_not_sensitive(loaded, batches):
    """The twin: zero the layer after it, and what a layer does no longer matters."""
    name = "encoder.layer.1.intermediate.dense"
    views = {name: matrices(compressible_layers(loaded.model))[name]}
    moments = second_moments(loaded.model, [name], batches)
    following = loaded.model.get_submodule(LAST).weight
    kept = following.detach().clone()
    try:
        with torch.no_grad():
            following.zero_()
        assert output_sensitivities(loaded.model, views, moments, batches[:1], 0.3)[name] == 0
    finally:
        with torch.no_grad():
            following.copy_(kept)
