from __future__ import annotations

from saten_runtime.bench.verdict import MIN_SAMPLES, judge
from saten_runtime.machine.device import State


def states(clocks: list[int | None], bits: list[int | None] | None = None) -> list[State]:
    words = bits or [0] * len(clocks)
    return [State("ondemand", clock, 2_400_000, None, word, None) for clock, word in zip(clocks, words, strict=True)]


CALM = states([600_000, *[2_400_000] * 6, 600_000])
STEADY = [[1e6, 1.01e6]] * 6


def test_a_calm_run_is_valid() -> None:
    verdict = judge(CALM, {"a": STEADY}, [])
    assert verdict.valid
    assert verdict.reasons == []


def test_a_machine_that_tells_nothing_is_not_accused() -> None:
    assert judge(states([None] * 8, [None] * 8), {"a": STEADY}, []).valid


def reasons(*, seen: list[State] = CALM, rounds: list[list[float]] = STEADY, known: tuple[str, ...] = ()) -> list[str]:
    verdict = judge(seen, {"cell": rounds}, known)
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
