"""`--prefer speed`: a split is better where squared error times predicted time is less."""

from __future__ import annotations

import pytest
import torch

from saten_edge.checkpoints.layers import LayerTask, decompose_layer
from saten_edge.decomposition.decompose import Decomposition, check_sizes
from saten_edge.decomposition.prices import TIMED, blank_parts, time_of
from saten_edge.decomposition.recipe import Recipe
from saten_edge.decomposition.residual import Grouped, NoResidual, Unstructured
from saten_exporters.choice.cost import fastest_us, predicted_us
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.forms import LOWERINGS
from saten_runtime.errors import UsageError

SHAPE, RANK = (96, 128), 90
TARGET = "x86-64+kernels"
SPEED = {"prefer": "speed", "target": TARGET}


def planted(large: float, seed: int = 0) -> torch.Tensor:
    """A matrix of slowly falling singular values plus single entries of this size."""
    drawn = torch.Generator().manual_seed(seed)
    left, right = torch.randn(SHAPE[0], RANK, generator=drawn), torch.randn(RANK, SHAPE[1], generator=drawn)
    return (left * torch.linspace(1, 0.3, RANK)) @ right + large * (torch.rand(SHAPE, generator=drawn) < 0.05)


def moments() -> torch.Tensor:
    x = torch.randn(400, SHAPE[0], generator=torch.Generator().manual_seed(7)) @ (
        torch.eye(SHAPE[0]) + torch.randn(SHAPE[0], SHAPE[0], generator=torch.Generator().manual_seed(8)) / 10
    )
    return x.T @ x / len(x)


def found(matrix: torch.Tensor, kind: str = "linear", **recipe: object) -> Decomposition:
    task = LayerTask("layer", kind, matrix.numel() // 2, "unstructured", 32, Recipe(**recipe), "int8")
    return decompose_layer(task, matrix, moments())


def cost(parts: Decomposition) -> float:
    time = time_of("linear", SHAPE, Unstructured(), "int8", TARGET)
    assert time is not None
    return parts.error**2 * time(parts.train.bond, parts.residual.nnz)


@pytest.mark.parametrize(("solver", "large"), [("alternate", 35), ("admm", 18)])
def test_what_is_slow_and_hardly_better_is_left_out(solver, large):
    accurate, fast = (found(planted(large), solver=solver, **more) for more in ({}, SPEED))
    assert accurate.error < fast.error
    assert cost(fast) < cost(accurate)
    assert max(accurate.bytes, fast.bytes) <= SHAPE[0] * SHAPE[1] // 2


def test_entries_that_are_worth_their_time_stay():
    """The twin: speed does not mean a train alone."""
    fast = found(planted(30), **SPEED)
    assert fast.mixed
    assert fast.error < 0.9 * found(planted(30), share=1.0).error


def test_a_lookup_is_split_by_its_error_alone():
    matrix = planted(18)
    one, other = (found(matrix, "embedding", **more) for more in ({}, SPEED))
    assert (one.train.bond, one.residual.nnz) == (other.train.bond, other.residual.nnz)
    assert time_of("embedding", SHAPE, Unstructured(), "int8", TARGET) is None
    assert time_of(TIMED, SHAPE, Unstructured(), "int8", None) is None


@pytest.mark.parametrize(("bond", "count"), [(12, 0), (0, 640), (12, 640)])
def test_the_time_is_that_of_the_form_that_an_export_would_choose(bond, count):
    time, parts = (
        time_of("linear", SHAPE, Grouped(32), "int8", TARGET),
        blank_parts("linear", SHAPE, bond, Grouped(32), count),
    )
    assert time is not None
    forms = {
        name: row.form(parts, "int8") for name, row in LOWERINGS.items() if name != "dense" and not row.refusal(parts)
    }
    times = {name: predicted_us(form, parts, 128, TARGET) for name, form in forms.items()}
    assert time(bond, count) == min(times.values()) > 0
    assert time(bond, count) < time(2 * bond, 2 * count)
    slowest = max(times, key=lambda name: times[name])
    asked = fastest_us(parts, ExportSettings("int8", TARGET, lowering=slowest))
    assert asked == times[slowest]
    assert time(0, 0) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefer": "size"}, "--prefer size: there are accuracy, speed"),
        ({"target": "x86-64"}, "add --prefer speed"),
        ({"prefer": "speed", "share": 0.5}, "with --share there is"),
        ({"prefer": "speed", "density": 0.1}, "with --density there is"),
        ({"prefer": "speed", "eps": 0.1, "density": 0.1}, "with --density and --eps there"),
        ({"prefer": "speed", "train": "tt-svd"}, "with --train tt-svd there is"),
    ],
)
def test_a_preference_without_a_choice_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        Recipe(**options)


def test_a_preference_needs_a_residual_and_a_known_target():
    with pytest.raises(UsageError, match="--pattern is none"):
        check_sizes(0.25, NoResidual(), Recipe(prefer="speed"))
    with pytest.raises(UsageError, match="--target toaster: there are x86-64"):
        check_sizes(0.25, Grouped(32), Recipe(prefer="speed", target="toaster"))
    check_sizes(0.25, Grouped(32), Recipe(prefer="speed", target="arm64"))
