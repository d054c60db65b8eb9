"""One address, and how uvicorn answers there; the page for phones, in `saten_edge.phone`, is served the same way."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette

from saten_runtime.errors import DeviceError
from saten_runtime.serve.connection import Connection

__all__ = ["is_loopback", "listen", "uvicorn_config"]

_BACKLOG = 256


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to this address alone; host: a name or an IPv4 address.

    Raises:
        DeviceError: the address is not of this machine, or the port is taken.
    """
    try:
        return socket.create_server((host, port), backlog=_BACKLOG)
    except OSError as cause:
        raise DeviceError(f"{host}:{port}: cannot listen ({cause.strerror}); see --host, --port") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    return host == "localhost" or host.startswith("127.")


def uvicorn_config(app: Starlette, connection: type[Connection], **settings: Any) -> uvicorn.Config:
    """How uvicorn runs the routes: our connections, no proxy trusted, no log of addresses.

    settings: the others, by uvicorn's names.
    """
    return uvicorn.Config(
        app,
        http=connection,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        **settings,
    )
