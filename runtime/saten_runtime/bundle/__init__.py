"""A bundle on disk: manifest, graph, layers. Nothing of it is believed before it was checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saten_runtime.lazy import lazily

if TYPE_CHECKING:
    from saten_runtime.bundle.folder import Bundle

__all__ = ["Bundle"]

__getattr__ = lazily(__name__, {"Bundle": ".folder"})
