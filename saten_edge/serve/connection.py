"""Caps and deadlines of a connection, below the routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from uvicorn.protocols.http.h11_impl import H11Protocol

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


class Connection(H11Protocol):
    """uvicorn's, dropped when there are too many or when the head of a request takes too long."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it in, or drop it."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        same = sum(isinstance(other, H11Protocol) and _address(other) == address for other in self.connections)
        if len(self.connections) > MOST_CONNECTIONS or same > MOST_PER_ADDRESS:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first byte of a head, stop it with the last."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        if not waiting:
            self._stop()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(READ_DEADLINE_S, self.transport.abort)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


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
