"""What a long fine-tuning leaves of the points that a short one lost: a rule, from those that were measured."""

from __future__ import annotations

from saten_edge.options import OptimizeOptions

__all__ = ["left_of", "promising"]

# What is left, where a fine-tuning is so many times as long, is to this power. Of six compressed MiniLMs, 60 steps left
# 2.1, 4.6 and 9.2 points, and 6.6, 7.9 and 13.7; 8, 14 and 14 times as many left 0.5, 0.7 and 2.1, and 22 times as many
# 1.9, 1.2 and 1.1: powers from -0.4 to -0.8.
DECAY = -0.6
# How many times as long as a short fine-tuning the last is, before anyone knows.
USUAL = 20


def left_of(points: float, longer: float) -> float:
    """Points that are expected to be left of those lost, by a fine-tuning that is so many times as long."""
    return float(points * min(1.0, longer**DECAY))


def promising(options: OptimizeOptions) -> float:
    """Points that a short fine-tuning may lose, so that the last is expected to meet the goal."""
    longer = USUAL if options.steps is None else options.steps / options.short_steps
    return options.max_drop / left_of(1.0, longer)
