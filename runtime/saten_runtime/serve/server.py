"""The server from its start to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from saten_runtime.errors import UsageError
from saten_runtime.serve.app import make_app
from saten_runtime.serve.binding import is_loopback, listen, uvicorn_config
from saten_runtime.serve.connection import Connection
from saten_runtime.serve.models import load_runners
from saten_runtime.serve.options import API_KEY_VARIABLE, ServeOptions

__all__ = ["Server", "make_server", "serve"]

_KEEP_ALIVE_S = 30
Listening = Callable[[str, list[str]], None]


def serve(
    bundles: Sequence[Path], options: ServeOptions, *, listening: Listening, notice: Callable[[str], None]
) -> None:
    """Serve until Ctrl-C or SIGTERM; then answers under way get `options.grace_s`.

    listening: gets the address and the names of the models, once requests are taken.

    Raises:
        UsageError: a bundle that neither embeds texts nor continues them, or an address that is none.
        DeviceError: the address cannot be bound.
        SatenError: a bundle that cannot be loaded.
    """
    options = replace(options, api_key=options.api_key or os.environ.get(API_KEY_VARIABLE) or None)
    if not options.host or ":" in options.host:
        raise UsageError(f"--host {options.host!r}: expected an IPv4 address or a name")
    with listen(options.host, options.port) as listening_socket:
        server = make_server(bundles, options, listening=listening)
        if not is_loopback(options.host) and options.api_key is None:
            notice(f"--host {options.host}: everybody who reaches this address may use the models; set --api-key")
        server.run(sockets=[listening_socket])


def make_server(bundles: Sequence[Path], options: ServeOptions, *, listening: Listening) -> Server:
    """A server with its bundles in memory, to be run with one socket.

    Raises:
        as `serve`.
    """
    runners = load_runners(bundles, options)
    hosts = [options.host, "localhost", "127.0.0.1"] if is_loopback(options.host) else ["*"]
    config = uvicorn_config(
        make_app(runners, options, hosts),
        Connection,
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=options.grace_s,
    )
    return Server(config, options.host, lambda url: listening(url, list(runners)))


class Server(uvicorn.Server):
    """uvicorn's; it says when it listens, and a signal ends it without being a failure."""

    def __init__(self, config: uvicorn.Config, host: str, listening: Callable[[str], None]) -> None:
        super().__init__(config)
        self._host, self._listening = host, listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and say where."""
        await super().startup(sockets)
        if sockets and self.started:
            self._listening(f"http://{self._host}:{sockets[0].getsockname()[1]}")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """What it catches, uvicorn raises again, which would end this process as if it had failed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
