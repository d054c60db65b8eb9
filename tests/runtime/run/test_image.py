"""Pictures: resizing as Pillow does it, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saten_runtime.bundle.manifest import Image
from saten_runtime.errors import BundleError, DataError
from saten_runtime.run.image import KERNELS, pixel_values, read_picture, resize

PLAIN = Image([], [], "bilinear", 1.0, [0.0] * 3, [1.0] * 3)
CASES = [((40, 60), (20, 30)), ((37, 51), (224, 224)), ((300, 200), (32, 80)), ((5, 5), (5, 5)), ((9, 1), (4, 3))]
# Sums that fall on the border of two shades, and steps whose sum falls on the border of two pixels.
CASES += [((40, 30), (32, 16)), ((20, 20), (32, 16)), ((310, 236), (121, 89))]
# More is lost of the height than twice of the width, just as much, and less.
CASES += [((64, 77), (10, 57)), ((72, 18), (19, 44)), ((50, 46), (4, 23)), ((283, 219), (21, 48))]


def pillow(pixels: np.ndarray, size: tuple[int, int], kernel: str) -> np.ndarray:
    images = pytest.importorskip("PIL.Image")
    method = getattr(images.Resampling, kernel.upper())
    return np.asarray(images.fromarray(pixels).resize((size[1], size[0]), method))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("before", "after"), CASES)
def test_resize_is_pillows(kernel: str, before: tuple[int, int], after: tuple[int, int]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*before, 3), np.uint8)
    expected = pillow(pixels, after, kernel)
    if before[0] - after[0] > max(0, 2 * (before[1] - after[1])) and pillow_version() < 13:
        pytest.skip("Pillow 13 was the first to begin with the height of such a picture")
    np.testing.assert_array_equal(resize(pixels, *after, kernel), expected)
    if before != after and min(before) > 1:
        assert (resize(pixels[::-1], *after, kernel) != expected).mean() > 0.5


def pillow_version() -> int:
    return int(pytest.importorskip("PIL").__version__.partition(".")[0])


def test_order_of_the_steps() -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12, 0] = 200
    how = Image([4], [4, 4], "nearest", 0.5, [10.0, 0.0, 1.0], [2.0, 1.0, 4.0])
    values = pixel_values([pixels], how)
    assert values.shape == (1, 3, 4, 4)
    np.testing.assert_array_equal(values[0, 0], np.full((4, 4), (200 * 0.5 - 10) / 2))
    np.testing.assert_array_equal(values[0, 2], np.full((4, 4), -0.25))


def test_grey_becomes_three_channels(tmp_path: Path) -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    (tmp_path / "g.pgm").write_bytes(b"P5\n# a comment\n3 2\n255\n" + grey.tobytes())
    for picture in (read_picture(grey), read_picture(tmp_path / "g.pgm")):
        np.testing.assert_array_equal(picture, np.stack([grey] * 3, axis=2))


def test_grey_stays_grey_where_the_model_takes_one_channel(tmp_path: Path) -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.save(tmp_path / "g.npy", grey)
    (tmp_path / "g.pgm").write_bytes(b"P5 6 4 255\n" + grey.tobytes())
    how = Image([2, 3], [], "bicubic", 1.0, [4.0], [2.0])
    wanted = pixel_values([np.stack([grey] * 3, 2)], Image([2, 3], [], "bicubic", 1.0, [4.0] * 3, [2.0] * 3))
    for picture in (grey, grey[:, :, None], tmp_path / "g.npy", tmp_path / "g.pgm"):
        np.testing.assert_array_equal(pixel_values([picture], how), wanted[:, :1])
    with pytest.raises(DataError, match=r"uint8 \(4, 6, 3\), expected uint8 \(height, width\), as the model takes one"):
        pixel_values([np.stack([grey] * 3, 2)], how)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_of_channels_are_refused(channels: int) -> None:
    with pytest.raises(BundleError, match="and one channel or three"):
        pixel_values([], Image([], [], "bilinear", 1.0, [0.0] * channels, [1.0] * channels))
    with pytest.raises(BundleError, match="and one channel or three"):
        pixel_values([], Image([], [], "bilinear", 1.0, [0.0], [1.0] * 3))


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7), (7, 1, 1), (3, 500, 3), (500, 3)])
def test_pictures_of_any_size_are_resized(shape: tuple[int, ...]) -> None:
    values = pixel_values([np.full(shape, 9, np.uint8)], Image([4], [4, 4], "bilinear", 1.0, [0.0] * 3, [1.0] * 3))
    np.testing.assert_array_equal(values, np.full((1, 3, 4, 4), 9))


BAD_FILES = {
    "short.ppm": b"P6 6 4 255\n" + bytes(71),
    "deep.ppm": b"P6 6 4 65535\n" + bytes(144),
    "text.ppm": b"P3 1 1 255\n0 0 0",
    "none.ppm": b"",
    "huge.ppm": b"P6 999999 999999 255\n",
    "zero.pgm": b"P5 0 4 255\n",
    "none.npy": b"",
    "object.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 60 + b"\n",
    "claims.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 3), }"
    + b" " * 48
    + b"\n",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_pictures(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD_FILES[name])
    with pytest.raises(DataError, match=name):
        read_picture(tmp_path / name)
    with pytest.raises(DataError, match="missing"):
        read_picture(tmp_path / "missing.npy")


def test_arrays_that_are_no_pictures() -> None:
    rgba, channels_first = np.zeros((2, 2, 4), np.uint8), np.zeros((3, 2, 2), np.uint8)
    for array in (rgba, channels_first, np.zeros((2, 2, 3), np.float32), np.zeros((0, 2, 3), np.uint8), rgba[None]):
        with pytest.raises(DataError, match="expected uint8"):
            read_picture(array)
    small = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(DataError, match="smaller than the crop"):
        pixel_values([small], Image([], [3, 3], "bilinear", 1.0, [0.0] * 3, [1.0] * 3))
    with pytest.raises(DataError, match="one size"):
        pixel_values([small, np.zeros((3, 2, 3), np.uint8)], PLAIN)
    with pytest.raises(BundleError, match="gauss"):
        pixel_values([small], Image([2], [], "gauss", 1.0, [0.0] * 3, [1.0] * 3))


# --- PNG and JPEG, where Pillow is installed ------------------------------------------------------------------------


def saved(path: Path, pixels: np.ndarray, mode: str, **how: object) -> Path:
    image = pytest.importorskip("PIL.Image").fromarray(pixels)
    (image if image.mode == mode else image.convert(mode)).save(path, **how)
    return path


def test_png_and_jpeg_are_read_as_pillow_reads_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 3), np.uint8)
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "a.png", pixels, "RGB")), pixels)
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "b.PNG", pixels, "RGBA")), pixels)
    jpeg = saved(tmp_path / "a.jpg", pixels, "RGB")
    decoded = np.asarray(pytest.importorskip("PIL.Image").open(jpeg))
    np.testing.assert_array_equal(read_picture(jpeg), decoded)
    assert (decoded != pixels).any()


def test_a_grey_png_serves_both_kinds_of_models(tmp_path: Path) -> None:
    grey = np.arange(54, dtype=np.uint8).reshape(9, 6)
    path = saved(tmp_path / "grey.png", grey, "L")
    np.testing.assert_array_equal(read_picture(path, 1)[:, :, 0], grey)
    np.testing.assert_array_equal(read_picture(path), np.stack([grey] * 3, 2))
    with pytest.raises(DataError, match="takes one channel"):
        read_picture(saved(tmp_path / "colour.png", np.stack([grey] * 3, 2), "RGB"), 1)


def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = pytest.importorskip("PIL.Image").Exif()
    exif[0x0112] = 6  # Orientation: the camera was held upright
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 3), np.uint8)
    found = read_picture(saved(tmp_path / "turned.png", pixels, "RGB", exif=exif))
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(9), b"GIF89a" + bytes(40), b"\xff\xd8\xff\xe0"])
def test_files_that_pillow_refuses(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("PIL")
    for name in ("broken.png", "broken.jpg"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_picture(tmp_path / name)


def test_deep_and_cut_and_huge_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = saved(tmp_path / "deep.png", np.zeros((4, 4), np.uint16), "I;16")
    with pytest.raises(DataError, match="more than 8 bits per channel"):
        read_picture(deep)
    whole = saved(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "RGB")
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:900])
    with pytest.raises(DataError, match=r"cut\.png"):
        read_picture(tmp_path / "cut.png")
    for most in (3000, 1000):  # pixels; Pillow warns above, and refuses twice as many
        monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", most)
        with pytest.raises(DataError, match="decompression bomb"):
            read_picture(whole)


def test_a_device_without_pillow_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8), "RGB")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=r"expected \.npy, \.ppm, \.pgm; convert it: .*, or pip install 'saten-runtime\[images\]'"
    ):
        read_picture(path)
