"""Sensitivities by one backward pass against those that are measured layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from saten_edge.checkpoints.compress import compressible_layers, matrices, tied_head
from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.decomposition.calibration import second_moments
from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.sensitivity import model_output, output_sensitivities
from saten_edge.decomposition.tt import truncated_factors
from saten_exporters.bundles.passages import PASSAGES
from saten_runtime.errors import DataError

Batch = dict[str, torch.Tensor]
SHARE = 0.25


def measured(model: torch.nn.Module, views: dict[str, torch.Tensor], moments: dict, batch: Batch) -> dict[str, float]:
    """Replace each matrix in turn, and compare the outputs."""
    results = {}
    with torch.no_grad():
        wanted = model_output(model, batch)
        for name, matrix in views.items():
            original, metric = matrix.clone(), Metric.from_moments(moments[name])
            rank = max(1, int(SHARE * matrix.numel() / sum(matrix.shape)))
            a, b = truncated_factors(original.double(), rank, metric)
            matrix.copy_(a @ b)
            got = model_output(model, batch)
            matrix.copy_(original)
            error = metric.relative_error(original.double(), a @ b)
            results[name] = float(((got - wanted).norm() / wanted.norm() / error) ** 2)
    return results


def both(
    loaded: LoadedModel, texts: list[str], tokens: int, every: int, *, bf16: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of what is measured and of what is estimated, for every so manieth layer."""
    chosen = dict(list(compressible_layers(loaded.model).items())[::every])
    views, batch, heads = matrices(chosen), loaded.encode(texts, tokens), tied_head(loaded.model)
    moments = second_moments(loaded.model, chosen, [batch], heads.values())
    batches = [loaded.encode(texts[start : start + 2], tokens) for start in range(0, len(texts), 2)]
    estimated = output_sensitivities(loaded.model, views, moments, batches, SHARE, heads=heads, bf16=bf16)
    found = measured(loaded.model, views, moments, batch)
    assert list(estimated) == list(found)
    return np.log(list(found.values())), np.log(list(estimated.values()))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


@pytest.mark.parametrize("bf16", [False, True])
def test_a_real_encoder_is_judged_as_by_measuring(minilm: Path, bf16: bool) -> None:
    found, estimated = both(load_model(minilm), list(PASSAGES[:4]), 32, 4, bf16=bf16)
    assert np.corrcoef(found, estimated)[0, 1] >= 0.9
    assert np.corrcoef(found, np.roll(estimated, 1))[0, 1] < 0.9
    assert 0.5 < np.exp(np.median(estimated - found)) < 2


@pytest.mark.slow
def test_every_layer_of_an_encoder_is_ranked_as_by_measuring(minilm: Path) -> None:
    found, estimated = both(load_model(minilm), list(PASSAGES), 64, 1)
    print(f"rank correlation of {len(found)} layers of MiniLM: {rank_correlation(found, estimated):.3f}")
    assert rank_correlation(found, estimated) >= 0.9
    assert rank_correlation(found, np.roll(estimated, 1)) < 0.9


@pytest.mark.slow
def test_layers_of_a_real_decoder_are_ranked_as_by_measuring(smollm2: Path) -> None:
    found, estimated = both(load_model(smollm2), list(PASSAGES), 64, 8)
    print(f"rank correlation of {len(found)} layers of SmolLM2: {rank_correlation(found, estimated):.3f}")
    assert rank_correlation(found, estimated) >= 0.9
    assert rank_correlation(found, np.roll(estimated, 1)) < 0.9


@pytest.mark.parametrize("model_type", ["llama", "gemma", "gpt2"])
def test_a_tied_table_counts_as_table_and_as_head(model_type, make_tiny, texts: list[str]) -> None:
    loaded = load_model(make_tiny(model_type, "text-generation", tie_word_embeddings=True))
    assert tied_head(loaded.model)
    found, estimated = both(loaded, texts[:6], 24, 1)
    assert rank_correlation(found, estimated) >= 0.8
    assert abs(found[0] - estimated[0]) < np.log(2)  # the table comes first


def test_the_weights_may_be_trained_again_and_have_no_gradient(tiny_bert: Path, texts: list[str]) -> None:
    loaded = load_model(tiny_bert)
    views = matrices(compressible_layers(loaded.model))
    batch = loaded.encode(texts[:4], 16)
    moments = second_moments(loaded.model, views, [batch])
    output_sensitivities(loaded.model, views, moments, [batch], SHARE)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in loaded.model.parameters())
    assert not any(module._forward_hooks for module in loaded.model.modules())


def test_without_a_text_there_is_nothing_to_say(tiny_bert: Path, texts: list[str]) -> None:
    loaded = load_model(tiny_bert)
    views = matrices(compressible_layers(loaded.model))
    moments = second_moments(loaded.model, views, [loaded.encode(texts[:4], 16)])
    with pytest.raises(DataError, match="needs one that makes a token, at least"):
        output_sensitivities(loaded.model, views, moments, [], SHARE)
