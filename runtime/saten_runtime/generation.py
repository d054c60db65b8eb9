"""What programs outside import from here; it is defined in `saten_runtime.run.generation`."""

from __future__ import annotations

from saten_runtime.run.generation import Sampling

__all__ = ["Sampling"]
