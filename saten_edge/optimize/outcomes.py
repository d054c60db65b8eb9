"""How a task may end other than with what it was to find: refused, by a defect, or by the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saten_runtime.errors import (
    BudgetError,
    CheckpointError,
    DataError,
    ExportError,
    ParityError,
    SatenError,
    ShapeError,
    UsageError,
)
from saten_runtime.records.plain_text import one_line

__all__ = ["ENDINGS", "REFUSALS", "defect_words", "failure", "is_defect", "of_machine"]

# What an outcome may hold in the place of what was found: the stage refused its input, or failed as nobody expected.
REFUSED, DEFECT = ENDINGS = ("refused", "defect")
# What the same input would meet again.
REFUSALS = (BudgetError, CheckpointError, DataError, ExportError, ParityError, ShapeError, UsageError)
# What another machine, or this one later, would not meet: it ends the search, which can be resumed.
MACHINE = (SatenError, OSError, MemoryError)
# The same in the words of torch, safetensors and ONNX Runtime, whose exceptions are those of a defect.
MACHINE_WORDS = (
    *("no space left", "storagefull", "file write failed", "too many open files", "can't start new thread"),
    *("out of memory", "not enough memory", "allocate memory", "failed to allocate", "bad_alloc", "cuda error"),
)
MOST_WORDS = 200


def failure(outcome: Mapping[str, Any]) -> str:
    """Why a task came to nothing, "refused: …" or "defect: …"; empty where it did not."""
    return next((f"{each}: {outcome[each]}" for each in ENDINGS if each in outcome), "")


def is_defect(why: str) -> bool:
    """Whether it is a defect that ended what a `failure` says this of."""
    return why.startswith(f"{DEFECT}: ")


def of_machine(cause: Exception) -> bool:
    """Whether an exception of a stage that is no refusal is due to the machine, and not to a defect."""
    words = str(cause).lower()
    return isinstance(cause, MACHINE) or any(each in words for each in MACHINE_WORDS)


def defect_words(cause: Exception) -> str:
    """Type and message of an exception."""
    return f"{type(cause).__name__}: {one_line(cause, MOST_WORDS)}"
