"""Pictures in files, as training and calibration hand them to a model's processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saten_runtime.errors import DataError

__all__ = ["open_image"]


def open_image(image: Any) -> Any:
    """A picture, from its file or itself as PIL has it, in colours.

    A file's is turned as its EXIF data says, as `datasets` does it and the device where it reads such a file.

    Raises:
        DataError: the file is no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        opened = ImageOps.exif_transpose(Image.open(image)) if isinstance(image, Path) else image
        return opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as cause:
        raise DataError(f"{image}: cannot be read as an image ({cause})") from None
