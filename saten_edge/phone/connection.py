"""Caps and deadlines of a connection, below the routes."""

from __future__ import annotations

import time
from collections.abc import Callable

from uvicorn.protocols.http.h11_impl import H11Protocol

from saten_runtime.serve import connection

__all__ = [
    "BURST",
    "MOST_CONNECTIONS",
    "MOST_PER_ADDRESS",
    "READ_DEADLINE_S",
    "REQUESTS_PER_S",
    "Allowance",
    "Connection",
]

MOST_CONNECTIONS = 64
MOST_PER_ADDRESS = 16  # a browser opens six
READ_DEADLINE_S = 10.0

REQUESTS_PER_S = 50.0
BURST = 400.0
_MOST_ADDRESSES = 1024


class Connection(connection.Connection):
    """One of few; more of one address are dropped, too."""

    most_connections = MOST_CONNECTIONS

    def is_too_many(self) -> bool:
        """Whether there is no room for this one, or none for its address."""
        address = _address(self)
        same = sum(isinstance(other, H11Protocol) and _address(other) == address for other in self.connections)
        return super().is_too_many() or same > MOST_PER_ADDRESS

    def read_deadline_s(self) -> float:
        """Seconds that the head of a request may take."""
        return READ_DEADLINE_S


class Allowance:
    """How many requests an address may still send: `burst` at once, `per_s` in the long run."""

    def __init__(
        self, burst: float = BURST, per_s: float = REQUESTS_PER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._per_s, self._clock = burst, per_s, clock
        self._left: dict[str, tuple[float, float]] = {}  # address -> (requests left, at what time)

    def take(self, address: str) -> bool:
        """Whether one more is allowed; counts it."""
        now = self._clock()
        left, then = self._left.pop(address, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._per_s)
        if len(self._left) >= _MOST_ADDRESSES:
            self._left.pop(next(iter(self._left)))  # the one that has been silent longest
        self._left[address] = (max(0.0, left - 1), now)
        return left >= 1


def _address(connection: H11Protocol) -> str:
    return connection.client[0] if connection.client else ""
