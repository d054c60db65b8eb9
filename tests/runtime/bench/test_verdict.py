from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from saten_runtime.bench.results import CellRatio
from saten_runtime.bench.stats import paired_ratio
from saten_runtime.bench.verdict import LIMITS, MIN_SAMPLES, Timed, judge
from saten_runtime.machine.device import State
from saten_runtime.machine.load import Disturbance

RECORDED = Path(__file__).parent / "recorded"


def states(clocks: list[int | None], bits: list[int | None] | None = None) -> list[State]:
    words = bits or [0] * len(clocks)
    return [State("ondemand", clock, 2_400_000, None, word, None) for clock, word in zip(clocks, words, strict=True)]


CALM = states([600_000, *[2_400_000] * 6, 600_000])
STEADY = [[1e6, 1.01e6]] * 6


def test_a_calm_run_is_valid() -> None:
    verdict = judge(CALM, [Timed("a", STEADY)], [])
    assert verdict.valid
    assert verdict.reasons == []


def test_a_machine_that_tells_nothing_is_not_accused() -> None:
    assert judge(states([None] * 8, [None] * 8), [Timed("a", STEADY)], []).valid


def reasons(*, seen: list[State] = CALM, rounds: list[list[float]] = STEADY, known: tuple[str, ...] = ()) -> list[str]:
    verdict = judge(seen, [Timed("cell", rounds)], known)
    assert verdict.valid is not bool(verdict.reasons)
    return verdict.reasons


def test_throttling() -> None:
    (reason,) = reasons(seen=states([None] * 4, [0, 0, 0x4, 0]))
    assert "throttled: the firmware reports 0x4" in reason


def test_frequency_drop() -> None:
    (reason,) = reasons(seen=states([2_400_000, *[2_400_000] * 3, *[1_500_000] * 6, 2_400_000]))
    assert "between 2400 and 1500 MHz" in reason


def test_one_low_reading_is_no_drop() -> None:
    assert reasons(seen=states([600_000, *[2_400_000] * 4, 600_000, *[2_400_000] * 4, 600_000])) == []


def test_too_few_samples() -> None:
    (reason,) = reasons(rounds=[[1e6]] * (MIN_SAMPLES - 1))
    assert f"{MIN_SAMPLES - 1} samples" in reason
    assert reasons(rounds=[[1e6]] * MIN_SAMPLES) == []


def test_drift_both_ways() -> None:
    slower = [[1e6, 1e6]] * 3 + [[1.4e6, 1.4e6]] * 3
    for rounds in (slower, slower[::-1]):
        (reason,) = reasons(rounds=rounds)
        assert "last third" in reason
    assert reasons(rounds=[[1e6, 1e6]] * 3 + [[1.1e6, 1.1e6]] * 3) == []


def test_what_is_known_comes_first() -> None:
    found = reasons(known=("interrupted",), rounds=[[1e6]])
    assert found[0] == "interrupted"
    assert len(found) == 2


# --- the load of the machine ----------------------------------------------------------------------------------------


def recorded(name: str) -> tuple[list[Timed], int]:
    """The cells of a benchmark that was carried out, the second compared with the first, and the number of cores."""
    run = json.loads((RECORDED / f"{name}.json").read_text())
    rounds = [cell["rounds"] for cell in run["cells"].values()]
    cells = [
        Timed(bundle, cell["rounds"], 1, [Disturbance(**one) for one in cell["disturbances"]])
        for bundle, cell in run["cells"].items()
    ]
    ratio = paired_ratio(rounds[1], rounds[0])
    cells[1] = dataclasses.replace(cells[1], ratio=CellRatio("slow", ratio.value, ratio.low, ratio.high))
    return cells, run["cores"]


def rules(cells: list[Timed], cores: int | None = 2) -> list[str]:
    return [reason.partition(":")[0] for reason in judge(CALM, cells, [], cores=cores).reasons]


def test_a_recorded_quiet_run_is_valid_and_a_busy_one_is_not() -> None:
    assert rules(*recorded("quiet")) == []
    assert rules(*recorded("busy")) == ["load", "switches", "spread"]


def test_a_busy_phone_is_found_by_its_samples_alone() -> None:
    """A page tells nothing but samples."""
    for name, expected in (("quiet", []), ("busy", ["spread"])):
        cells = [dataclasses.replace(cell, disturbances=()) for cell in recorded(name)[0]]
        assert rules(cells, None) == expected


@pytest.mark.parametrize("name", ["busy", "quiet"])
def test_each_rule_alone_finds_what_it_is_for(name: str) -> None:
    """What is said of one rule must not come from another."""
    cells, cores = recorded(name)
    fields: dict[str, dict[str, Any]] = {
        "load": {"switches": None, "ticks": None},
        "switches": {"others": None, "ticks": None},
    }
    for rule, left_out in fields.items():
        alone = [
            dataclasses.replace(
                cell,
                rounds=[[1e6] * 5] * 6,
                ratio=None,
                disturbances=[dataclasses.replace(one, **left_out) for one in cell.disturbances],
            )
            for cell in cells
        ]
        assert rules(alone, cores) == ([rule] if name == "busy" else [])


def disturbed(count: int = 6, **fields: Any) -> list[Disturbance]:
    return [Disturbance(1.0, **fields)] * count


@pytest.mark.parametrize(
    ("others", "threads", "cores", "valid"),
    [
        (3, 1, 2, False),  # three loops beside one thread on two cores
        (1, 1, 2, True),  # one core is left for each
        (1, 2, 2, False),
        (0, 2, 2, True),
        (0, 4, 2, True),  # more threads than cores: the plan's wish
        (1, 4, 2, False),
        (3, 1, 16, True),
        (3, 1, None, True),
    ],
)
def test_load(others: int, threads: int, cores: int | None, valid: bool) -> None:
    cell = Timed("cell", STEADY, threads, disturbed(others=others))
    assert rules([cell], cores) == ([] if valid else ["load"])


def test_a_burst_of_load_or_a_few_readings_are_no_reason() -> None:
    burst = [*disturbed(4, others=0), *disturbed(3, others=9)]
    assert rules([Timed("cell", STEADY, 1, burst)]) == []
    assert rules([Timed("cell", STEADY, 1, disturbed(4, others=9))]) == []
    assert rules([Timed("cell", STEADY, 1, disturbed(5, others=9))]) == ["load"]


@pytest.mark.parametrize(("stolen", "expected"), [(5, []), (6, ["stolen"])])
def test_stolen_time(stolen: int, expected: list[str]) -> None:
    assert rules([Timed("cell", STEADY, 1, disturbed(ticks=100, stolen=stolen))]) == expected
    assert rules([Timed("cell", STEADY, 1, disturbed(1, ticks=50, stolen=stolen))]) == []


@pytest.mark.parametrize(
    ("switches", "threads", "cores", "expected"),
    [(25, 1, 2, []), (26, 1, 2, ["switches"]), (50, 2, 2, []), (52, 2, 2, ["switches"]), (900, 4, 2, [])],
)
def test_context_switches(switches: int, threads: int, cores: int, expected: list[str]) -> None:
    assert rules([Timed("cell", STEADY, threads, disturbed(switches=switches))], cores) == expected


def test_switches_of_a_moment_are_not_judged() -> None:
    moment = [Disturbance(0.01, switches=9)] * 9
    assert rules([Timed("cell", STEADY, 1, moment)]) == []
    assert rules([Timed("cell", STEADY, 1, [*moment, *moment])]) == ["switches"]


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.9, 1.12, []), (0.9, 1.13, ["interval"]), (0.7, 2.44, ["interval"])]
)
def test_the_width_of_the_interval(low: float, high: float, expected: list[str]) -> None:
    ratio = CellRatio("base", 1.0, low, high)
    assert rules([Timed("cell", STEADY, ratio=ratio)]) == expected
    assert rules([Timed("cell", [[1e6] * 5] * 2, ratio=ratio)]) == []


def test_the_spread_within_rounds() -> None:
    """A core that is taken away makes few samples very long: the median stays where it was, and the mean does not."""
    calm, hit = [1e6] * 20, [*[1e6] * 19, 12e6]
    assert rules([Timed("cell", [hit] * 6)]) == ["spread"]
    assert rules([Timed("cell", [hit, calm, calm] * 2)]) == []
    assert rules([Timed("cell", [hit] * 2)]) == []


def test_one_reason_names_the_worst_cell_of_a_rule() -> None:
    cells = [Timed(name, STEADY, 1, disturbed(switches=count)) for name, count in (("a", 30), ("b", 90), ("c", 0))]
    (reason,) = judge(CALM, cells, [], cores=2).reasons
    assert reason.startswith("switches: b: the kernel took the core away 90 times a second")
    assert reason.endswith("is the machine busy? (2 of 3 cells)")


def test_the_page_on_measuring_lists_every_limit() -> None:
    page = (Path(__file__).parents[3] / "docs/measuring.md").read_text()
    table = page.partition("## When a run is invalid")[2].partition("\n## ")[0]
    found = {name: float(value) for name, value in re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", table, re.MULTILINE)}
    assert found == LIMITS
