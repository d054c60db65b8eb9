"""How a compression counts the bytes of its layers, and what of them was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from saten_runtime.bundle.recipe import Option

__all__ = ["AS_CHECKPOINT", "Stored", "gap_bytes"]


@dataclass(frozen=True)
class Stored:
    """precision: of the bundle whose bytes count; None counts those of a checkpoint, whose numbers are float32.

    room: bytes that all layers and the gaps between their tensors may take; None where the budget alone says it.
    asked: what says the bytes in a recipe, in the place of a budget.
    """

    precision: str | None = None
    room: int | None = None
    asked: Mapping[str, Option] = field(default_factory=dict)

    def options(self, budget: float | None) -> dict[str, Option]:
        """As a recipe has them."""
        said = {"budget": None if self.asked else budget, **self.asked}
        return said if self.precision is None else {"precision": self.precision, **said}

    def fitted(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Bytes of layers, made less by one factor where they and the gaps between them do not fit into the room."""
        if self.room is None:
            return dict(sizes)
        left = (self.room - gap_bytes(sizes.values())) / max(1, sum(sizes.values()))
        return {name: int(size * min(1.0, left)) for name, size in sizes.items()}


AS_CHECKPOINT = Stored()


def gap_bytes(sizes: Iterable[int]) -> int:
    """At most, before tensors that take these bytes, several a layer: large ones start where a file can be mapped."""
    from saten_exporters.bundles.export import ALIGNED_FROM_BYTES, ALIGNMENT_BYTES  # imports onnx

    return sum(size // ALIGNED_FROM_BYTES for size in sizes) * ALIGNMENT_BYTES
