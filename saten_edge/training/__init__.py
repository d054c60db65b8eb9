"""Fine-tune a model: on labels, towards the dense model it was made from, or both.

Cores, residual values and what stayed dense are trained; masks stay fixed unless they are told to move.
"""

from __future__ import annotations

from saten_edge.training.data import Examples, read_examples
from saten_edge.training.job import Job, prepare
from saten_edge.training.objectives import TRAININGS, Distillation, Training, training_for
from saten_edge.training.run import Outcome, finetune
from saten_edge.training.schedule import Progress, Schedule

__all__ = [
    "TRAININGS",
    "Distillation",
    "Examples",
    "Job",
    "Outcome",
    "Progress",
    "Schedule",
    "Training",
    "finetune",
    "prepare",
    "read_examples",
    "training_for",
]
