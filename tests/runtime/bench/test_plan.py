from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from saten_runtime.bench.plan import Plan, Setup, Size, turns
from saten_runtime.errors import UsageError


def test_every_combination_smallest_size_first() -> None:
    plan = Plan(threads=(1, 2), batches=(8, 1), tokens=(32, 16), memory_modes=("fast", "small"))
    assert len(plan.setups) == 4
    assert plan.setups[1] == Setup(1, "small")
    assert plan.sizes("texts") == [Size(1, 16), Size(1, 32), Size(8, 16), Size(8, 32)]
    assert plan.sizes("images") == [Size(1, 1), Size(8, 1)]


def test_sizes_of_a_decoder_are_named_as_llama_bench_has_it() -> None:
    plan = Plan(tokens=(128,), generate=(64,), depths=(0, 512))
    names = [size.name for size in plan.sizes("prompts")]
    assert names == ["pp128", "pp128 @ d512", "tg64", "tg64 @ d512"]
    assert max(size.longest for size in plan.sizes("prompts")) == 640


@pytest.mark.parametrize(
    "bad",
    [
        {"threads": ()},
        {"threads": (0,)},
        {"batches": (1, 1)},
        {"tokens": (-5,)},
        {"memory_modes": ("tiny",)},
        {"memory_modes": ()},
        {"rounds": 0},
        {"rounds": 10**9},
        {"generate": (0,)},
        {"depths": (-1,)},
        {"depths": ()},
        {"timeout_s": 0.0},
        {"min_time_s": -1.0},
        {"min_time_s": float("nan")},
        {"min_time_s": float("inf")},
    ],
)
def test_impossible_plans(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Plan(**bad)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_turns_are_fair(count: int) -> None:
    names = [f"m{k}" for k in range(count)]
    rounds = [turns(names, index) for index in range(2 * count)]
    for order in rounds:
        assert sorted(order) == names
    for place in range(count):  # everybody is in each place equally often
        assert set(Counter(order[place] for order in rounds).values()) == {2}
    for one in names:  # and as often before as after each other
        for other in names:
            before = sum(order.index(one) < order.index(other) for order in rounds)
            assert one == other or before == count
