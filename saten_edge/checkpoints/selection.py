"""Which matrices are compressed; light, so that a command line can be built from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from saten_runtime.errors import UsageError
from saten_runtime.options import check_ranges, option

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EVERYTHING", "Selection"]

# Below this many values a matrix stays dense: its factors and indices would save nothing worth a node.
SMALLEST_MATRIX = 4096


@dataclass(frozen=True)
class Selection:
    """Which weight matrices are compressed: those of `smallest` values or more whose layer's name matches.

    include, exclude: shell patterns, `*` for any characters; a name must match one of the first and none of the second.
    """

    smallest: int = option(SMALLEST_MATRIX, "Values that a matrix must have to be compressed", low=1)
    include: tuple[str, ...] = option(("*",), "Compress only layers whose name matches; * stands for anything")
    exclude: tuple[str, ...] = option((), "Compress no layer whose name matches")

    def __post_init__(self) -> None:
        check_ranges(self)

    def takes(self, name: str, weight: Tensor) -> bool:
        """Whether the layer `name` with this weight is compressed."""
        included = any(fnmatchcase(name, pattern) for pattern in self.include)
        excluded = any(fnmatchcase(name, pattern) for pattern in self.exclude)
        return weight.ndim == 2 and weight.numel() >= self.smallest and included and not excluded

    def refuse_idle(self, names: Iterable[str]) -> None:
        """Refuse exclusions that exclude nothing, by the names of all parts of a model.

        Raises:
            UsageError: none of the patterns matches a name.
        """
        there = list(names)
        if self.exclude and not any(fnmatchcase(name, pattern) for pattern in self.exclude for name in there):
            raise UsageError(
                f"--exclude {' --exclude '.join(self.exclude)}: matches nothing; layers have names such as {there[-1]}"
            )


EVERYTHING = Selection()
