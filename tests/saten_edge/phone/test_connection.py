"""How many requests an address may send; the rest of connection.py is tested in test_app.py, over sockets."""

from __future__ import annotations

from saten_edge.phone import connection
from saten_edge.phone.connection import Allowance


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_a_rate():
    clock = Clock()
    allowance = Allowance(burst=20, per_s=4, clock=clock)
    assert [allowance.take("a") for _ in range(22)] == [*20 * [True], False, False]
    clock.now = 10 / 4
    assert [allowance.take("a") for _ in range(11)] == [*10 * [True], False]


def test_addresses_do_not_share():
    allowance = Allowance(burst=3, clock=Clock())
    while allowance.take("a"):
        pass
    assert allowance.take("b")


def test_addresses_are_forgotten():
    allowance = Allowance(clock=Clock())
    for number in range(3 * connection._MOST_ADDRESSES):
        allowance.take(str(number))
    assert len(allowance._left) == connection._MOST_ADDRESSES
