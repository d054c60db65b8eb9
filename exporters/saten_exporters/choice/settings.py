"""What the person exporting chose, in one value that is handed down.

Imports nothing heavy, so that a command line can be built from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saten_runtime.bundle.recipe import Option, options_of
from saten_runtime.errors import UsageError
from saten_runtime.options import option

__all__ = ["DEFAULT_TARGET", "LARGEST_LOSS", "ExportSettings"]

DEFAULT_TARGET = "x86-64"
# A divergence of 0.1 nats takes a tenth from the probability of what comes next; a cosine falls to 0.9. Sound
# precisions cost a tenth of that, ruined models five times as much.
LARGEST_LOSS = 0.1


@dataclass(frozen=True)
class ExportSettings:
    """precision: of `PRECISIONS`. target: of `TARGETS`. rows: of x that a layer is expected to get at once.

    lowering: of `LOWERINGS`, for every layer that it can write; or a JSON file, pattern of layer names → lowering, of
    which the first that fits counts. All other layers are left to the cost model; None leaves it all of them.
    prices: a file that `saten-edge devices calibrate` wrote, to choose by instead of those that ship; emulated: it may
    be an emulator's.
    """

    precision: str = option("fp32", "Precision of the weights: fp32, fp16, int8, int8-block, int4, int4-128 or int2")
    target: str = option(DEFAULT_TARGET, "Kind of device: x86-64, x86-64+kernels, arm64, arm64+kernels, web or mobile")
    rows: int = option(128, "Rows that a layer gets at once: 1 to decode, 128 for a short text")
    lowering: str | None = option(
        None, "Form for all layers, or a JSON file that maps patterns of layer names to forms"
    )
    prices: Path | None = option(
        None, "Choose forms by the prices of a device, a file of devices calibrate; those of x86-64 by default"
    )
    emulated: bool = option(False, "Choose by prices of an emulator, too", "--emulated", const=True)

    def recorded(self) -> dict[str, Option]:
        """As the recipe has them: of a file of patterns its content, of prices the name: a path says nothing elsewhere.

        Raises:
            UsageError: as `lowerings_of`.
        """
        from saten_exporters.choice.lowerings import rules_of  # imports torch

        prices = None if self.prices is None else self.prices.name
        return options_of(self, lowering=rules_of(self.lowering), prices=prices)

    def __post_init__(self) -> None:
        """Refuse what no layer could be written for.

        Raises:
            UsageError: fewer rows than one.
        """
        if self.rows < 1:
            raise UsageError(
                f"--rows {self.rows}: a layer gets at least 1 row at once; 1 is decoding, 128 a short text"
            )
