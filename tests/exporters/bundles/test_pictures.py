"""Files of pictures on a device, against transformers' own reading of them and its processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from saten_exporters.bundles.preparation import image_of
from saten_runtime.run.image import pixel_values

SIDE = 32


def photo(mode: str, size: tuple[int, int] = (61, 50)) -> Image.Image:
    """Something smooth with noise on it, in a mode of Pillow's."""
    width, height = size
    slope = np.linspace(0, 200, width)[None, :, None] * np.array([1.0, 0.6, 0.2])
    noise = np.random.default_rng(5).integers(0, 56, (height, width, 3))
    return Image.fromarray((slope + noise).astype(np.uint8)).convert(mode)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: the camera was held upright
    photo("RGB").save(path, exif=exif)


def transparent(path: Path) -> None:
    picture = photo("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(path)


FILES: dict[str, Callable[[Path], None]] = {
    "a.jpg": lambda path: photo("RGB").save(path, quality=90),
    "progressive.jpeg": lambda path: photo("RGB").save(path, progressive=True, quality=70),
    "grey.jpg": lambda path: photo("L").save(path),
    "cmyk.jpg": lambda path: photo("CMYK").save(path),
    "turned.jpg": turned,
    "a.png": lambda path: photo("RGB").save(path),
    "bits.png": lambda path: photo("1").save(path),
    "palette.png": lambda path: photo("RGB").quantize(40).save(path),
    "transparent.png": transparent,
    "grey-transparent.png": lambda path: photo("LA").save(path),
    "lossy.webp": lambda path: photo("RGB").save(path, quality=80),
    "lossless.webp": lambda path: photo("RGB").save(path, lossless=True),
    "transparent.webp": transparent,
    "turned.webp": turned,
}
WHOLE = {"height": SIDE, "width": SIDE}
PROCESSORS = {
    "vit": transformers.ViTImageProcessorPil(size=WHOLE),
    "clip": transformers.CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=WHOLE),
    "deit": transformers.DeiTImageProcessorPil(size={"height": 37, "width": 37}, crop_size=WHOLE),
    **{
        name: transformers.ViTImageProcessorPil(size=WHOLE, resample=k)
        for k, name in {1: "lanczos", 4: "box", 5: "hamming"}.items()
    },
}


def settings_of(processor: Any) -> Any:
    config = SimpleNamespace(image_size=SIDE, num_channels=3)
    return image_of(SimpleNamespace(processor=processor, source={"model": "m"}, model=SimpleNamespace(config=config)))


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_becomes_what_transformers_makes_of_it(name: str, processor: str, tmp_path: Path) -> None:
    path, theirs = tmp_path / name, PROCESSORS[processor]
    FILES[name](path)
    picture = transformers.image_utils.load_image(str(path))
    wanted = np.asarray(theirs(images=[picture], return_tensors="np")["pixel_values"])
    how = settings_of(theirs)
    level = how.rescale / np.array(how.std)[:, None, None]
    got = pixel_values([path], how)
    assert got.shape == wanted.shape == (1, 3, SIDE, SIDE)
    assert (np.abs(got - wanted) / level).max() < 0.01  # no pixel has another of 255 shades
    assert (np.abs(got[..., ::-1] - wanted) / level).max() > 20  # the other way round would be seen
