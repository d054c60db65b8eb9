"""Native kernels for the operators of the domain `saten`.

The library depends on nothing but the C library. `saten_runtime` registers it; elsewhere:

    options.register_custom_ops_library(str(saten_kernels.library()))
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["library"]


def library() -> Path:
    """The shared library, an absolute path."""
    return Path(__file__).resolve().with_name("libsaten_kernels.so")
