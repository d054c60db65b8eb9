"""Caps and deadlines of a connection, below the routes, and the body of a request."""

from __future__ import annotations

import asyncio

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["GONE", "MOST_CONNECTIONS", "READ_DEADLINE_S", "Connection", "read_body"]

MOST_CONNECTIONS = 1024
READ_DEADLINE_S = 10.0
GONE = 499  # as nginx logs a client that did not wait
_MOST_DIGITS = 12


class Connection(H11Protocol):
    """uvicorn's, dropped when there are too many or when the head of a request takes too long."""

    most_connections = MOST_CONNECTIONS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it in, or drop it."""
        super().connection_made(transport)
        if self.is_too_many():
            transport.abort()
        else:
            self._watch()

    def is_too_many(self) -> bool:
        """Whether there is no room for this one among `self.connections`."""
        return len(self.connections) > self.most_connections

    def read_deadline_s(self) -> float:
        """Seconds that the head of a request may take."""
        return READ_DEADLINE_S

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
            self._deadline = self.loop.call_later(self.read_deadline_s(), self.transport.abort)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


async def read_body(request: Request, most_bytes: int, deadline_s: float) -> bytes:
    """The body, when it says beforehand that it is JSON and not too long, and comes in time.

    That it must say JSON keeps out the pages of other sites: their browser asks first, and gets no permission.

    Raises:
        HTTPException: 415, 411, 413 or 408; `GONE` for a client that goes away amid it.
    """
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected Content-Type application/json")
    length = request.headers.get("Content-Length", "")
    if not (length.isascii() and length.isdigit()):
        raise HTTPException(411, "expected a Content-Length")
    if len(length) > _MOST_DIGITS or int(length) > most_bytes:
        raise HTTPException(413, f"{length[:20]} bytes, at most {most_bytes} are taken")
    try:
        with anyio.fail_after(deadline_s):
            return await request.body()  # h11 gives no more than Content-Length
    except TimeoutError:
        raise HTTPException(408, f"the body took longer than {deadline_s:g} s") from None
    except ClientDisconnect:
        raise HTTPException(GONE, "the client went away") from None
