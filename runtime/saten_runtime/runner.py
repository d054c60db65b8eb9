"""What programs outside import from here; it is defined in `saten_runtime.run.runner`."""

from __future__ import annotations

from saten_runtime.run.runner import Runner

__all__ = ["Runner"]
