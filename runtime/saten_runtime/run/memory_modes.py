"""What a session may spend memory on, by name."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MEMORY_MODES", "MemoryMode"]


@dataclass(frozen=True)
class MemoryMode:
    """What ONNX Runtime may spend memory on.

    prepacking: weights copied into the layout of the kernels; without it they stay memory-mapped
    pages of the file. arena: freed buffers are kept.
    """

    prepacking: bool
    arena: bool


MEMORY_MODES = {
    "fast": MemoryMode(prepacking=True, arena=True),
    "small": MemoryMode(prepacking=False, arena=False),
}
