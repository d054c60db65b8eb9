"""The distance of hidden states is the quotient of sums that it says, and so is its gradient, also where it is zero."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from saten_edge.training.losses import Sides, hidden_distance

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


def states(seed: int) -> list[Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 8, generator=chance, dtype=torch.float32) for _ in range(3)]


def distance(student: list[Tensor], teacher: list[Tensor], mask: Tensor = MASK) -> Tensor:
    sides = (SimpleNamespace(hidden_states=tuple(each)) for each in (student, teacher))
    above, below = hidden_distance(Sides({"attention_mask": mask}, *sides))
    return above / below


def exact(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """In float64, entry by entry."""
    kept = MASK[..., None].double()
    pairs = [(got.double(), wanted.double()) for got, wanted in zip(student, teacher, strict=True)]
    return torch.stack([(((g - w) * kept) ** 2).sum() / ((w * kept) ** 2).sum() for g, w in pairs])


def test_value_and_gradient_are_those_of_the_formula():
    teacher, mine, oracle = states(0), states(1), states(1)
    for each in (*mine, *oracle):
        each.requires_grad_()
    got, wanted = distance(mine, teacher), exact(oracle, teacher)
    bound = 64 * torch.finfo(torch.float32).eps  # of sums of 64 products
    torch.testing.assert_close(got.double(), wanted, rtol=bound, atol=0)
    got.sum().backward()
    wanted.sum().backward()
    for one, other in zip(mine, oracle, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=bound, atol=bound)
        assert not one.grad[MASK == 0].any()  # padding teaches nothing
    unmasked = distance(states(1), teacher, torch.ones_like(MASK))
    assert not torch.allclose(unmasked.double(), wanted, rtol=1e-3)


def test_a_block_that_is_as_the_teachers_has_no_gradient():
    teacher, mine = states(0), states(1)
    mine[0] = teacher[0].clone()
    for each in mine:
        each.requires_grad_()
    distance(mine, teacher).sum().backward()
    assert torch.equal(mine[0].grad, torch.zeros_like(mine[0]))
    assert bool(mine[1].grad.any())
    assert all(bool(each.grad.isfinite().all()) for each in mine)
