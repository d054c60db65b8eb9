"""A vision model whose processor makes pictures of another size than it was trained on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from saten_edge.checkpoints.models import load_model, save_model
from saten_exporters import export
from saten_exporters.bundles.preparation import image_of
from saten_runtime.errors import ExportError
from saten_runtime.run.parity import compare_outputs
from saten_runtime.run.runner import Runner

TRAINED, MADE = 56, 32  # of patches of 8: 7 × 7 positions become 4 × 4


@pytest.fixture
def with_crop(make_tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """with_crop(family, crop) -> a model of 56 × 56 pictures, whose processor crops."""

    def make(family: str, crop: int | dict[str, int] = MADE) -> Path:
        model = shutil.copytree(make_tiny(family, "feature-extraction", image_size=TRAINED), tmp_path / "model")
        transformers.BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=crop).save_pretrained(model)
        return model

    return make


def hidden(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(pixel_values=pixels).last_hidden_state
    return found


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers"])
def test_positions_are_interpolated_once_as_transformers_does_in_every_run(
    family: str, with_crop: Callable[..., Path], images: list[Any], tmp_path: Path
) -> None:
    folder = with_crop(family)
    loaded, plain = load_model(folder), transformers.AutoModel.from_pretrained(folder).eval()
    pixels = loaded.encode(images[:2])["pixel_values"]
    assert pixels.shape[2:] == (MADE, MADE)
    wanted = hidden(plain, pixels)
    assert (plain.config.image_size, loaded.model.config.image_size) == (TRAINED, MADE)
    assert torch.equal(hidden(loaded.model, pixels), wanted)
    save_model(loaded, tmp_path / "saved")
    again = transformers.AutoModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(hidden(again, pixels), wanted)
    positions = again.embeddings.position_embeddings
    assert positions.shape[1] == 1 + 4 * 4
    positions.data = positions.roll(1, 1)
    assert not torch.allclose(hidden(again, pixels), wanted, atol=1e-3)  # the twin


def test_a_bundle_takes_what_the_processor_makes(
    with_crop: Callable[..., Path], images: list[Any], tmp_path: Path
) -> None:
    folder = with_crop("dinov2")
    loaded, plain = load_model(folder), transformers.AutoModel.from_pretrained(folder).eval()
    bundle = export(loaded, tmp_path / "bundle")
    assert (bundle.manifest.image.resize, bundle.manifest.image.crop) == ([36], [MADE, MADE])
    states = hidden(plain, loaded.encode(images)["pixel_values"])
    wanted = loaded.pool(states, torch.ones(states.shape[:2])).numpy()
    pictures = [np.asarray(image) for image in images]
    got, bound = Runner.load(bundle).predict(pictures), 4 * bundle.manifest.tolerance["relative"]
    assert compare_outputs(got, wanted, None)[0] <= bound
    assert compare_outputs(np.roll(got, 1, axis=0), wanted, None)[0] > bound


def test_pictures_that_are_not_square_are_refused(with_crop: Callable[..., Path]) -> None:
    loaded = load_model(with_crop("dinov2", {"height": 32, "width": 24}))
    with pytest.raises(ExportError, match=r"its image processor makes \[32, 24\], its model takes \[56, 56\]"):
        image_of(loaded)


def test_grey_pictures_have_positions_too(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    grey = {"num_channels": 1, "image_size": TRAINED}
    folder = shutil.copytree(make_tiny("dinov2", "feature-extraction", **grey), tmp_path / "model")
    size = {"height": MADE, "width": MADE}
    transformers.ViTImageProcessorPil(size=size, image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)
    assert load_model(folder).model.config.image_size == MADE
