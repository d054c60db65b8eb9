"""How the bytes of a budget are shared out among layers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.residual import VALUE_BYTES
from saten_runtime.bundle.recipe import Option
from saten_runtime.errors import CheckpointError, UsageError
from saten_runtime.records.files import parse_json, replacing, system_errors

__all__ = ["ALLOCATIONS", "Measured", "allocate", "most_bytes"]

# The entry of a file's metadata that says whose moments a layer's are.
_OWNERS = "owners"
# However little a layer seems to need, it keeps this part of an equal share: a spectrum says what truncation
# costs, not what the residual and fine-tuning will win back.
SMALLEST_PART = 0.5


@dataclass(frozen=True)
class Measured:
    """What calibration found out about the layers, by name; see `saten_edge.decomposition.calibration`.

    texts: what it read, for the recipe; `save` leaves it out.
    """

    moments: Mapping[str, Tensor]
    sensitivities: Mapping[str, float]
    texts: Mapping[str, Option] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write a safetensors file: `moments.<layer>` and `sensitivities.<layer>`; moments that layers share once."""
        first: dict[int, str] = {}
        owners = {name: first.setdefault(id(moments), name) for name, moments in self.moments.items()}
        tensors = {f"moments.{name}": self.moments[name].contiguous() for name in first.values()}
        for name, sensitivity in self.sensitivities.items():
            tensors[f"sensitivities.{name}"] = torch.tensor(sensitivity, dtype=torch.float64)
        with replacing(path) as aside, system_errors(path):
            save_file(tensors, aside, {_OWNERS: json.dumps(owners, allow_nan=False)})  # no copy of them in memory

    @classmethod
    def load(cls, path: Path) -> Measured:
        """Back from `save`.

        Raises:
            CheckpointError: there is no such file, or it holds something else.
        """
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                owners = parse_json((file.metadata() or {}).get(_OWNERS, "{}").encode())
        except (OSError, SafetensorError, ValueError) as cause:
            raise CheckpointError(f"{path}: cannot be read as measurements of a model ({cause})") from None
        found: dict[str, dict[str, Tensor]] = {"moments": {}, "sensitivities": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            if part not in found:
                raise CheckpointError(f"{path}: holds {key!r}, expected moments and sensitivities of layers")
            found[part][name] = tensor
        moments = found["moments"]
        if owners:
            moments = {name: moments[owner] for name, owner in owners.items() if owner in moments}
        return cls(moments, {name: float(value) for name, value in found["sensitivities"].items()})


# What one more rank of a layer's train takes, by layer; None: as float32.
Ranks = Mapping[str, float] | None
# matrices (in, out) by layer, share of the dense bytes, measurements, bytes of a rank → bytes by layer
Allocation = Callable[[Mapping[str, Tensor], float, Measured | None, Ranks], dict[str, int]]


def allocate(
    how: str,
    matrices: Mapping[str, Tensor],
    budget: float,
    measured: Measured | None,
    fixed: Mapping[str, float] | None = None,
    ranks: Ranks = None,
) -> dict[str, int]:
    """Bytes for each layer, together at most `budget` of the dense fp32 bytes of `matrices` (in, out).

    fixed: shares of their bytes that some layers have; the others share the rest of the budget. ranks: bytes of one
    more rank of each layer's train; in float32 by default.

    Raises:
        UsageError: no such allocation, one that needs calibration without it, or a rest that the others cannot share.
    """
    check_allocation(how, calibrated=measured is not None)
    shares = fixed or {}
    others = {name: matrix for name, matrix in matrices.items() if name not in shares}
    sizes = {name: int(matrices[name].numel() * VALUE_BYTES * share) for name, share in shares.items()}
    if sizes:
        budget = _rest(matrices, others, budget, sum(sizes.values()))
    found = sizes | (ALLOCATIONS[how](others, budget, measured, ranks) if others else {})
    return {name: found[name] for name in matrices}


def most_bytes(
    how: str, matrices: Mapping[str, Tensor], budget: float, fixed: Mapping[str, float] | None = None
) -> dict[str, int]:
    """What `allocate` gives each layer at most, whatever is measured.

    Raises:
        UsageError: as `allocate` has it.
    """
    equal = allocate("uniform", matrices, budget, None, fixed)
    spare = sum(size for name, size in equal.items() if name not in (fixed or {})) * (1 - SMALLEST_PART)
    if how == "uniform":
        return equal
    return {
        name: size if name in (fixed or {}) else math.ceil(size * SMALLEST_PART + spare) for name, size in equal.items()
    }


def _rest(matrices: Mapping[str, Tensor], others: Mapping[str, Tensor], budget: float, taken: int) -> float:
    """The budget of `others`, a share of their bytes, after `taken` bytes of all.

    Raises:
        UsageError: it is no share.
    """
    whole = sum(matrix.numel() for matrix in matrices.values()) * VALUE_BYTES
    left = budget * whole - taken
    dense = sum(matrix.numel() for matrix in others.values()) * VALUE_BYTES
    if not 0 < left < dense:
        raise UsageError(
            f"--tables takes {taken / whole:.3f} of all bytes, which leaves {left / whole:.3f} of --budget {budget:g} "
            f"to the other layers; expected more than 0 and less than the {dense / whole:.3f} that they have"
        )
    return left / dense


def check_allocation(how: str, *, calibrated: bool) -> None:
    """Refuse an allocation before there are matrices.

    Raises:
        UsageError: no such allocation, or one that needs calibration without it.
    """
    if how not in ALLOCATIONS:
        raise UsageError(f"no allocation {how!r}; there are: {', '.join(sorted(ALLOCATIONS))}")
    if how == "sensitivity" and not calibrated:
        raise UsageError("--allocation sensitivity needs calibration texts; pass --calibration FILE.jsonl")


def uniform(
    matrices: Mapping[str, Tensor], budget: float, measured: Measured | None, ranks: Ranks = None
) -> dict[str, int]:
    """The same share of its dense bytes for every layer."""
    return {name: int(matrix.numel() * VALUE_BYTES * budget) for name, matrix in matrices.items()}


def by_sensitivity(
    matrices: Mapping[str, Tensor], budget: float, measured: Measured | None, ranks: Ranks = None
) -> dict[str, int]:
    """Bytes go where they lower the model's output error most.

    One more rank of a layer's factors costs (in + out) values and removes one singular value σ_k of Σ^½ M: σ_k² / Σσ²
    of the layer's squared relative error, times its sensitivity of the output's. These rates fall with
    k, so buying ranks of all layers in the order of error removed per byte minimises the sum.
    """
    if measured is None:
        raise ValueError("not calibrated")  # `allocate` refuses it
    floors = uniform(matrices, budget * SMALLEST_PART, None)
    left = sum(uniform(matrices, budget, None).values()) - sum(floors.values())
    each = ranks or {name: sum(matrix.shape) * VALUE_BYTES for name, matrix in matrices.items()}
    offers = [
        _offers(matrix, floors[name], measured.moments[name], measured.sensitivities[name], each[name])
        for name, matrix in matrices.items()
    ]
    rates = torch.cat([rate for rate, _ in offers])
    prices = torch.cat([price for _, price in offers])
    layers = torch.repeat_interleave(torch.arange(len(offers)), torch.tensor([len(rate) for rate, _ in offers]))
    order = rates.argsort(descending=True, stable=True)
    bought = order[prices[order].cumsum(0) <= left]
    extra = torch.zeros(len(offers), dtype=torch.float64).index_add(0, layers[bought], prices[bought])
    return {name: floors[name] + int(size) for name, size in zip(matrices, extra.tolist(), strict=True)}


def _offers(
    matrix: Tensor, floor_bytes: int, moments: Tensor, sensitivity: float, price: float
) -> tuple[Tensor, Tensor]:
    """Error removed per byte, and bytes, of each rank above the floor up to the size of the dense matrix."""
    ranks = _energy(matrix, moments)[int(floor_bytes // price) : matrix.numel() // sum(matrix.shape)]
    return ranks * sensitivity / price, torch.full_like(ranks, price)


def _energy(matrix: Tensor, moments: Tensor) -> Tensor:
    """σ_k² / Σσ² of Σ^½ M, largest first."""
    gram = Metric.from_moments(moments).like(matrix).gram(matrix)
    energy: Tensor = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)
    total: Tensor = energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
    return energy / total


ALLOCATIONS: dict[str, Allocation] = {"uniform": uniform, "sensitivity": by_sensitivity}
