"""How many texts a calibration reads at once, and that it changes nothing but the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saten_edge.checkpoints.compress import compressible_layers
from saten_edge.checkpoints.models import load_model
from saten_edge.methods import calibrate as calibration
from saten_edge.methods.calibrate import BATCH, calibrate, rows_at_once


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "head of its own"])
def decoder(request: pytest.FixtureRequest, make_tiny: Callable[..., Path]) -> Path:
    return make_tiny("llama", "text-generation", tie_word_embeddings=request.param)


def test_fewer_texts_are_read_at_once_where_logits_are_made(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(decoder)
    logits = calibration.TOKENS * loaded.model.config.vocab_size
    monkeypatch.setattr(calibration, "MOST_LOGITS", 3 * logits)
    layers = compressible_layers(loaded.model)
    assert rows_at_once(loaded) == 3
    assert rows_at_once(loaded, layers) == (3 if "lm_head" in layers else BATCH)
    assert rows_at_once(loaded, [name for name in layers if name != "lm_head"]) == BATCH


def test_moments_are_the_same_however_many_are(
    decoder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(decoder)
    layers = {name: module for name, module in compressible_layers(loaded.model).items() if name != "lm_head"}
    together = calibrate(loaded, layers, texts[:6], None, None).moments
    monkeypatch.setattr(calibration, "BATCH", 1)
    for name, moments in calibrate(loaded, layers, texts[:6], None, None).moments.items():
        # a sum of n products in another order: n·eps of the sum of their sizes at most
        near = 6 * calibration.TOKENS * torch.finfo(torch.float32).eps * float(moments.max())
        assert float((together[name] - moments).abs().max()) <= near
        assert float((together[name] - moments.flip(0)).abs().max()) > near  # the twin: of other inputs
