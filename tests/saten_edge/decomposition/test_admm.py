"""Every step of ADMM against float64."""

from __future__ import annotations

import pytest
import torch

from saten_edge.decomposition.admm import DAMPING, FIRST_PENALTY, Admm, Iterate
from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.residual import Unstructured
from saten_edge.decomposition.tt import refined_factors

SHAPES = [(40, 24), (24, 40), (32, 32)]
COUNT, BOND = 60, 3


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments(inputs: int) -> torch.Tensor:
    x = normal(4 * inputs, inputs, seed=1) @ normal(inputs, inputs, seed=2) * torch.logspace(0, -1, inputs)
    return x.T @ x / len(x)


def scaled(matrix: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """X and Ĥ as the specification writes them."""
    damped = sigma + DAMPING * (torch.diag(sigma.diagonal()) + sigma.diagonal().mean() * torch.eye(len(sigma)))
    scale = damped.diagonal().sqrt()
    return scale[:, None] * matrix, damped / torch.outer(scale, scale)


def begun(shape: tuple[int, int], steps: int) -> tuple[Admm, Iterate]:
    solver = Admm(normal(*shape, seed=0), moments(shape[0]), Unstructured())
    iterate = solver.start(BOND, COUNT)
    solver.run(iterate, COUNT, steps)
    return solver, iterate


def dual_of(now: Iterate) -> torch.Tensor:
    """V, in float64."""
    return now.penalty * now.scaled_dual.double()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_is_the_ridge_regression_and_the_projection(shape):
    solver, now = begun(shape, 2)
    x, h = scaled(normal(*shape, seed=0), moments(shape[0]))
    rho, low, sparse, dual = now.penalty, now.low.double(), now.sparse.double(), dual_of(now)
    dense = torch.linalg.solve(h + rho * torch.eye(len(h)), h @ (x - low) - dual + rho * sparse)
    kept = torch.zeros(shape, dtype=torch.bool)
    kept.view(-1)[(dense + dual / rho).abs().reshape(-1).topk(COUNT).indices] = True
    wanted = (dense + dual / rho) * kept
    solver.run(now, COUNT, 3)
    near = 1e-4 * float(wanted.abs().max())  # float32 through a system whose condition is below 1/DAMPING
    assert float((now.sparse - wanted).abs().max()) < near
    assert float((dual_of(now) - (dual + rho * (dense - wanted))).abs().max()) < near
    assert float((now.sparse - sparse).abs().max()) > 10 * near  # the twin: it was a step


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_of_subspace_iteration_lead_to_the_best_of_its_rank(shape):
    solver, now = begun(shape, 0)
    _, h = scaled(normal(*shape, seed=0), moments(shape[0]))
    target, rows = normal(*shape, seed=4), now.factors[1]
    root = torch.linalg.cholesky(h).T
    least = float(torch.linalg.svdvals(root @ target)[BOND:].norm())
    errors = []
    for _ in range(60):
        a, rows = refined_factors(target.float(), rows, solver.metric)
        low = a @ rows
        errors.append(float((root @ (target - low.double())).norm()))
    assert errors[-1] == pytest.approx(least, rel=1e-3)
    assert errors[0] > 1.01 * least
    assert torch.linalg.matrix_rank(low) == BOND


def test_the_start_is_the_best_train_and_the_largest_entries_beside_it():
    _, now = begun((40, 24), 0)
    x, h = scaled(normal(40, 24, seed=0), moments(40))
    root = torch.linalg.cholesky(h).T
    least = float(torch.linalg.svdvals(root @ x)[BOND:].norm())
    assert float((root @ (x - now.low.double())).norm()) == pytest.approx(least, rel=1e-5)
    assert int(now.kept.sum()) == COUNT
    assert float((x - now.low)[now.kept].abs().min()) >= float((x - now.low)[~now.kept].abs().max())


def test_parts_are_given_in_the_scale_of_the_matrix():
    solver, now = begun((40, 24), 10)
    x, _ = scaled(normal(40, 24, seed=0), moments(40))
    scale = (x / normal(40, 24, seed=0))[:, :1]
    a, b = solver.factors(now)
    assert torch.allclose(a.double() @ b.double() * scale, now.low.double(), atol=1e-4)
    residual = solver.residual(now, COUNT)
    where = Unstructured().positions(residual.indices, (40, 24))
    assert torch.allclose(residual.values.double() * scale[where // 24, 0], now.sparse.reshape(-1)[where].double())


def test_it_stops_when_the_support_stands_still():
    solver, now = begun((40, 24), 500)
    assert now.settled
    assert 15 < now.done < 500
    assert now.penalty > FIRST_PENALTY
    assert solver.metric.norm(now.scaled_dual) > 0


def test_the_error_that_chooses_a_split_is_that_of_fitted_values():
    solver, now = begun((40, 24), 10)
    metric = Metric(scaled(normal(40, 24, seed=0), moments(40))[1])
    unfitted = metric.norm(solver.target.double() - now.low.double() - now.sparse.double())
    assert solver.error(now) < unfitted
