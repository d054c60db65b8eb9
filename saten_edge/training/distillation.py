"""How a teacher is learned from; light, so that a command line can be built from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saten_runtime.errors import UsageError
from saten_runtime.options import check_ranges, option, words

if TYPE_CHECKING:
    from saten_edge.training.objectives import Training

__all__ = ["Distillation"]

NO_DISTILLATION = "none"


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part for part in words(text) if part != NO_DISTILLATION)


@dataclass(frozen=True)
class Distillation:
    """How a teacher is learned from.

    parts: names in `Training.distances`, or None for the task's own choice. temperature: that logits are divided by.
    label_weight: of the loss on labels, beside a weight of 1 for each part.
    """

    parts: tuple[str, ...] | None = option(
        None,
        "Parts of the teacher to learn from: logits, hidden, embedding, or none",
        "--distill",
        read=_parts,
        metavar="LIST",
    )
    temperature: float = option(2.0, "Temperature that divides the logits of both models", low=0.01)
    label_weight: float = option(1.0, "Weight of the label loss", low=0)

    def __post_init__(self) -> None:
        check_ranges(self)

    def chosen(self, training: Training, taught: bool) -> tuple[str, ...]:
        """The parts that are used, none without a teacher.

        Raises:
            UsageError: a part that the task has not, or nothing left to learn from.
        """
        parts = training.distilled if self.parts is None else self.parts
        unknown = sorted(set(parts) - set(training.distances))
        if unknown:
            known = ", ".join(training.distances)
            raise UsageError(
                f"--distill {','.join(unknown)}: {training.task.name} distils {known}, or {NO_DISTILLATION}"
            )
        if taught and not parts and not (training.label_loss and self.label_weight):
            raise UsageError(f"--distill {NO_DISTILLATION}: there is nothing else to learn from; leave it out")
        if not taught and training.label_loss is None:
            raise UsageError(
                f"{training.task.name} learns from a teacher; pass --teacher with the model that was compressed"
            )
        if not taught and self.parts:
            raise UsageError(f"--distill {','.join(parts)} needs a --teacher")
        return parts if taught else ()
