"""Pictures as `pixel_values`: numpy alone; Pillow reads PNG, JPEG and WebP, with the extra `saten-runtime[images]`.

Resizing is Pillow's, which image processors were trained with, to the last bit: a separable kernel, stretched when
shrinking, with weights of 22 bits, rounded to whole numbers after each of the two passes.
"""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.bundle.manifest import Image
from saten_runtime.errors import BundleError, DataError
from saten_runtime.records.plain_text import one_line

__all__ = ["KERNELS", "Picture", "Pixels", "pixel_values", "read_picture", "resize"]

Pixels = npt.NDArray[np.uint8]  # (height, width, channels)
Picture = Pixels | str | Path
FloatArray = npt.NDArray[np.float64]

_MOST_PIXELS = 100_000_000
_CHANNELS = (1, 3)  # grey, or red, green and blue
_NETPBM = re.compile(rb"(P[56])(?:\s+|#[^\n]*\n)+(\d{1,6})(?:\s+|#[^\n]*\n)+(\d{1,6})(?:\s+|#[^\n]*\n)+(\d{1,5})\s")


@dataclass(frozen=True)
class _Kernel:
    """support: half its width; weigh: its value at distances in source pixels."""

    support: float
    weigh: Callable[[FloatArray], FloatArray]


def _triangle(distance: FloatArray) -> FloatArray:
    return np.asarray(np.maximum(1 - np.abs(distance), 0))


def _cubic(distance: FloatArray) -> FloatArray:
    """Keys' kernel with a = -1/2 ("Cubic Convolution Interpolation", 1981)."""
    x, a = np.abs(distance), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _box(distance: FloatArray) -> FloatArray:
    return np.asarray((distance > -0.5) & (distance <= 0.5), np.float64)


def _hamming(distance: FloatArray) -> FloatArray:
    return np.where(np.abs(distance) < 1, np.sinc(distance) * (0.54 + 0.46 * np.cos(np.pi * distance)), 0)


def _lanczos(distance: FloatArray) -> FloatArray:
    return np.where(np.abs(distance) < _LOBES, np.sinc(distance) * np.sinc(distance / _LOBES), 0)


_LOBES = 3
_ONE = 2.0**22  # of Pillow's weights: https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c
KERNELS: dict[str, _Kernel | None] = {
    "nearest": None,
    "box": _Kernel(0.5, _box),
    "bilinear": _Kernel(1, _triangle),
    "hamming": _Kernel(1, _hamming),
    "bicubic": _Kernel(2, _cubic),
    "lanczos": _Kernel(_LOBES, _lanczos),
}


def pixel_values(pictures: Sequence[Picture], how: Image) -> npt.NDArray[np.float32]:
    """The input of an image model, (len(pictures), channels, height, width); channels are as many as means.

    Raises:
        DataError: a picture that cannot be read, has other channels, or is smaller than the crop.
        BundleError: settings that no picture can satisfy.
    """
    channels, sizes = len(how.mean), len(how.resize) > 2 or len(how.crop) not in (0, 2)
    if how.resample not in KERNELS or sizes or channels not in _CHANNELS or len(how.std) != channels:
        raise BundleError(f"image settings {how}: there are {', '.join(KERNELS)}, and one channel or three")
    ready = [_prepare(read_picture(picture, channels), how) for picture in pictures]
    shapes = {array.shape for array in ready}
    if len(shapes) > 1:
        raise DataError(f"pictures become {sorted(shapes)}; without a size in the bundle they must be of one size")
    return np.stack(ready)


def read_picture(picture: Picture, channels: int = 3) -> Pixels:
    """A picture as (height, width, channels), one or three; grey becomes three equal channels.

    picture: an array of uint8, grey as (height, width) or (height, width, 1), or (height, width, 3), or a file: .npy
    of such an array, binary .ppm and .pgm, or, with Pillow, PNG, JPEG and WebP, turned as their EXIF says; other
    colours, such as CMYK or a palette, become red, green and blue, and what is transparent is left out of account.

    Raises:
        DataError: anything else.
    """
    if not isinstance(picture, np.ndarray):
        return _with_channels(_read_file(Path(picture)), channels, str(picture))
    return _with_channels(picture, channels, "picture")


def _read_file(path: Path) -> npt.NDArray[Any]:
    suffix = path.suffix.lower()
    readers = {**_READERS, **(_PILLOW_READERS if importlib.util.find_spec("PIL") else {})}
    if suffix not in readers:
        install = ", or pip install 'saten-runtime[images]'" if suffix in _PILLOW_READERS else ""
        raise DataError(
            f"{path}: expected {', '.join(readers)}; convert it: magick {path.name} {path.stem}.ppm{install}"
        )
    try:
        return readers[suffix](path)
    except OSError as cause:
        raise DataError(f"{path}: cannot be read ({cause.strerror or cause})") from None
    except (ValueError, EOFError) as cause:
        raise DataError(f"{path}: is not a picture ({cause})") from None


def _read_npy(path: Path) -> npt.NDArray[Any]:
    # Mapped first: a header that claims more than the file holds is refused before anything is allocated.
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if mapped.size > 3 * _MOST_PIXELS:
        raise ValueError(f"{mapped.size} values, more than {3 * _MOST_PIXELS}")
    return np.array(mapped)


def _read_netpbm(path: Path) -> npt.NDArray[Any]:
    content = path.read_bytes()
    head = _NETPBM.match(content)
    if head is None or int(head[4]) != 255:
        raise ValueError("expected binary PPM or PGM (P6, P5) with values up to 255")
    shape = (int(head[3]), int(head[2])) + ((3,) if head[1] == b"P6" else ())
    if len(content) - head.end() < math.prod(shape) or not math.prod(shape):
        raise ValueError(f"{len(content) - head.end()} bytes of pixels, {math.prod(shape)} are needed")
    return np.frombuffer(content, np.uint8, math.prod(shape), head.end()).reshape(shape)


def _read_with_pillow(path: Path) -> npt.NDArray[Any]:
    from PIL import Image as pillow
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
                if picture.mode in _DEEP_MODES or picture.mode.startswith("I;16"):
                    raise ValueError("more than 8 bits per channel; expected 8")
                grey = picture.mode in _GREY_MODES
                return np.asarray(ImageOps.exif_transpose(picture).convert("L" if grey else "RGB"))
    except (SyntaxError, pillow.DecompressionBombWarning, pillow.DecompressionBombError) as cause:
        raise ValueError(one_line(cause)) from None


_READERS: dict[str, Callable[[Path], npt.NDArray[Any]]] = {
    ".npy": _read_npy,
    ".ppm": _read_netpbm,
    ".pgm": _read_netpbm,
}
_PILLOW_READERS = dict.fromkeys((".png", ".jpg", ".jpeg", ".webp"), _read_with_pillow)
# Modes of Pillow: https://pillow.readthedocs.io/en/stable/handbook/concepts.html#modes
_GREY_MODES = ("1", "L", "LA", "La")
_DEEP_MODES = ("I", "F")


def _with_channels(array: npt.NDArray[Any], channels: int, where: str) -> Pixels:
    grey = array[:, :, None] if array.ndim == 2 else array
    found = np.repeat(grey, channels, axis=2) if grey.ndim == 3 and grey.shape[2] == 1 else grey
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != channels or 0 in found.shape:
        known = " or (height, width, 3)" if channels == 3 else ", as the model takes one channel"
        raise DataError(f"{where}: found {array.dtype} {array.shape}, expected uint8 (height, width){known}")
    return found


def _prepare(pixels: Pixels, how: Image) -> npt.NDArray[np.float32]:
    height, width = pixels.shape[:2]
    if len(how.resize) == 2:
        pixels = resize(pixels, how.resize[0], how.resize[1], how.resample)
    elif len(how.resize) == 1:
        shorter = min(height, width)
        pixels = resize(pixels, how.resize[0] * height // shorter, how.resize[0] * width // shorter, how.resample)
    if how.crop:
        pixels = _crop(pixels, how.crop[0], how.crop[1])
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    values = (pixels.astype(np.float32) * np.float32(how.rescale) - mean) / std
    return np.asarray(values.transpose(2, 0, 1), np.float32)  # (channels, height, width)


def _crop(pixels: Pixels, height: int, width: int) -> Pixels:
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    if min(top, left) < 0:
        raise DataError(f"picture of {pixels.shape[0]} × {pixels.shape[1]}: smaller than the crop {height} × {width}")
    return pixels[top : top + height, left : left + width]


def resize(pixels: Pixels, height: int, width: int, kernel: str) -> Pixels:
    """`pixels` as (height, width, channels), by a name in `KERNELS`."""
    chosen = KERNELS[kernel]
    if chosen is None:
        rows, columns = (_nearest(*pair) for pair in ((pixels.shape[0], height), (pixels.shape[1], width)))
        return pixels[rows][:, columns]
    # Rounding between the passes makes their order count. This is the order of Pillow 13; earlier ones always
    # begin with the width.
    lost_height, lost_width = pixels.shape[0] - height, pixels.shape[1] - width
    heights_first = lost_height > max(0, 2 * lost_width)
    for axis, size in ((0, height), (1, width)) if heights_first else ((1, width), (0, height)):
        sums = np.tensordot(_weights(pixels.shape[axis], size, chosen), pixels, (1, axis))
        pixels = _rounded(np.moveaxis(sums, 0, axis))
    return pixels


def _nearest(inputs: int, outputs: int) -> npt.NDArray[np.int64]:
    step = inputs / outputs
    # Pillow adds step after step; where the sum meets the border of a pixel, its rounding decides.
    return np.cumsum([step * 0.5, *[step] * (outputs - 1)]).astype(np.int64)


def _weights(inputs: int, outputs: int, kernel: _Kernel) -> FloatArray:
    """What each of `inputs` pixels adds to each of `outputs`, (outputs, inputs), in units of 1 / `_ONE`.

    They are whole numbers, as Pillow has them, so that a sum on the border between two shades goes to the same one.
    """
    scale = inputs / outputs
    stretch = max(scale, 1.0)
    centers = (np.arange(outputs)[:, None] + 0.5) * scale
    places = np.arange(inputs)[None, :]
    # Pillow cuts the window at whole pixels, which matters where the kernel is not yet zero there.
    first = np.floor(centers - kernel.support * stretch + 0.5)
    last = np.floor(centers + kernel.support * stretch + 0.5)
    weights = kernel.weigh((places - centers + 0.5) * (1 / stretch)) * ((places >= first) & (places < last))
    weights /= weights.cumsum(axis=1)[:, -1:]  # one after the other, as in C: another order rounds otherwise
    whole: FloatArray = np.trunc(weights * _ONE + np.copysign(0.5, weights))
    return whole


def _rounded(sums: npt.NDArray[Any]) -> Pixels:
    """Shades of sums in units of 1 / `_ONE`, which are whole numbers below 2^53, and so exact."""
    return np.clip(np.floor((sums + _ONE / 2) / _ONE), 0, 255).astype(np.uint8)
