"""What programs outside import from here; it is defined in `saten_runtime.run.parity`."""

from __future__ import annotations

from saten_runtime.run.parity import Comparison, check_parity, compare

__all__ = ["Comparison", "check_parity", "compare"]
