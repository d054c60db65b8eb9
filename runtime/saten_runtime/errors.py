"""The one error tree of saten-edge.

    SatenError                      exit 2: what was given cannot be used
    ├── UsageError                  arguments that do not fit together, an output that already exists
    ├── CheckpointError             a model folder that is missing, damaged, foreign or hostile
    ├── ShapeError                  tensors that do not fit each other
    ├── BudgetError                 a byte budget that cannot be met
    ├── ExportError                 a sound model that has no expression in our graphs
    ├── BundleError                 a bundle that is missing, damaged, too new or hostile
    ├── DataError                   a text or label file that cannot be read
    ├── RuntimeMismatch             an ONNX Runtime, opset or IR version that does not fit
    ├── DeviceError                 a machine that cannot be reached or has too little left
    ├── DefectError                 exit 1: a defect, ours or a library's, that left nothing to go on with
    ├── ParityError                 exit 3: two computations of one thing disagree
    ├── GoalMissed                  exit 3: a search whose goal nothing met
    └── InvalidRun                  exit 4: a measurement that must not be believed

Every message says where, what was found, what was expected and what to do, in one line. A
command line prints that line and exits with `exit_code`; a traceback means a defect of ours.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "BundleError",
    "CheckpointError",
    "DataError",
    "DefectError",
    "DeviceError",
    "ExportError",
    "GoalMissed",
    "InvalidRun",
    "ParityError",
    "RuntimeMismatch",
    "SatenError",
    "ShapeError",
    "UsageError",
    "system_refusal",
]


class SatenError(Exception):
    """Base of every error a user can cause; `exit_code` is what the command line ends with."""

    exit_code = 2


class UsageError(SatenError):
    """Arguments that do not fit together, or an output path that already exists."""


class CheckpointError(SatenError):
    """A model folder that is missing, damaged, foreign or hostile."""


class ShapeError(SatenError):
    """Tensors, shapes or ranks that do not fit each other."""


class BudgetError(SatenError):
    """A byte budget that cannot be met."""


class ExportError(SatenError):
    """A sound model that has no expression in our graphs."""


class BundleError(SatenError):
    """A bundle that is missing, damaged, of a newer schema, or hostile."""


class DataError(SatenError):
    """A text or label file that cannot be read, or does not fit the task."""


class RuntimeMismatch(SatenError):
    """An ONNX Runtime, opset or IR version that does not fit the file."""


class DeviceError(SatenError):
    """A machine that cannot be reached, or has too little left to run on."""


class DefectError(SatenError):
    """An exception that nobody expected, ours or a library's, where others than the first it met would meet it, too."""

    exit_code = 1


class ParityError(SatenError):
    """Two computations of one thing disagree beyond the derived bound."""

    exit_code = 3


class GoalMissed(SatenError):
    """A search ended, and nothing that was measured meets its goal."""

    exit_code = 3


class InvalidRun(SatenError):
    """A measurement that must not be believed: throttled, drifting, too few samples."""

    exit_code = 4


def system_refusal(error: OSError) -> str:
    """Where the system refused and why; "output" for an error that names no file.

    An `OSError` that a library raised by its own words has no number, and so no words of the system.
    """
    return f"{error.filename or 'output'}: {error.strerror or error}"
