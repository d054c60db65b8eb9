"""A bundle in a folder that another library saves."""

from __future__ import annotations

import shutil
from pathlib import Path

from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import MANIFEST_FILE

__all__ = ["copy_bundle"]


def copy_bundle(bundle: Bundle, folder: Path) -> None:
    """Copy all that the manifest names, and the manifest; what else is in the folder stays."""
    for name in (MANIFEST_FILE, *bundle.manifest.files):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, target)
