"""What an evaluation can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saten_runtime.options import check_ranges, option
from saten_runtime.records.files import refuse_existing

__all__ = ["EvalOptions"]


@dataclass(frozen=True)
class EvalOptions:
    """How bundles are evaluated, and what is kept of every example.

    Raises:
        UsageError: a number outside of its range.
    """

    reference: Path | None = option(None, "Bundle that the others are compared with, by example", metavar="BUNDLE")
    threads: int = option(1, "Threads of ONNX Runtime", "--threads", "-t", low=1)
    examples: Path | None = option(None, "JSON Lines file for the values of every example", metavar="FILE")
    output: Path | None = option(None, "File for the result as JSON", "--output", "-o", metavar="PATH")
    resume: bool = option(False, "Evaluate only the bundles that --examples lacks", const=True)
    overwrite: bool = option(False, "Replace the output if it exists", const=True)

    def __post_init__(self) -> None:
        check_ranges(self)

    def refuse_existing(self) -> None:
        """Refuse an output file that exists, unless it may be replaced or gone on with.

        Raises:
            UsageError: it exists.
        """
        if self.output is not None and not self.overwrite and not self.resume:
            refuse_existing(self.output)
