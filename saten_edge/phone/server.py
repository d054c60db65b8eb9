"""Binding one address, showing the link, and ending."""

from __future__ import annotations

import io
import itertools
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import segno
import uvicorn
from starlette.applications import Starlette

from saten_edge.console import Talk
from saten_edge.phone.app import Served, make_app
from saten_edge.phone.connection import Connection
from saten_edge.phone.received import Received
from saten_runtime.errors import UsageError
from saten_runtime.records.plain_text import printable
from saten_runtime.serve.binding import is_loopback, listen, uvicorn_config

__all__ = ["Address", "lan_address", "serve", "show_link", "uvicorn_server"]

_KEEP_ALIVE_S = 5
_GRACE_S = 1  # for responses under way when the server ends

RunType = TypeVar("RunType", bound=Received)


@dataclass(frozen=True)
class Address:
    """Where to listen. host: a name or IPv4 address of this machine; port 0: any free one.

    certificate, key: PEM files; with them the page is served over https, where browsers allow
    threads, a fine clock and installation.

    Raises:
        UsageError: every address at once, or a certificate and a key that do not make a pair.
    """

    host: str
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if self.host in ("", "0.0.0.0", "::", "*") or ":" in self.host:  # noqa: S104 - refused here
            raise UsageError(f"--host {self.host!r}: expected one IPv4 address or name of this machine")
        if (self.certificate is None) != (self.key is None):
            raise UsageError("--certificate and --key: expected both or none")
        if self.certificate and self.key:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
            except OSError as cause:
                raise UsageError(f"{self.certificate}, {self.key}: no certificate and its key ({cause})") from None

    def listen(self) -> socket.socket:
        """A socket bound to this address alone.

        Raises:
            DeviceError: the address is not of this machine, or the port is taken.
        """
        return listen(self.host, self.port)

    def at(self, port: int) -> Address:
        """The same address with the port that was found."""
        return replace(self, port=port)

    @property
    def is_secure(self) -> bool:
        """Whether browsers take a page from here for a secure context."""
        return self.certificate is not None or is_loopback(self.host)

    def hosts(self) -> list[str]:
        """Names that a request may call this server by."""
        return [self.host, "localhost", "127.0.0.1"] if is_loopback(self.host) else [self.host]

    def url(self, token: str) -> str:
        """What the phone opens. The token stands behind #, which browsers send to nobody."""
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{self.host}:{self.port}/#{token}"


def lan_address() -> str:
    """The address other machines of the local network reach this one by; 127.0.0.1 without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: the system only chooses the way there
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def show_link(url: str) -> None:
    """Print the link to stderr, with its QR code where that is a terminal."""
    if sys.stderr.isatty():
        code = io.StringIO()
        segno.make(url, micro=False).terminal(code, compact=True)
        print(code.getvalue(), file=sys.stderr)
    print(f"open on the phone: {url}", file=sys.stderr, flush=True)


def serve(
    job: Served,
    run_of: Callable[[Path], RunType],
    out: Path,
    address: Address,
    *,
    opened: Callable[[str], None],
    done: Callable[[RunType], None],
    once: bool = False,
    talk: Talk,
) -> None:
    """Serve until Ctrl-C, or with `once` until the first run is complete.

    run_of: a run of the job that keeps its files in a folder. opened: gets the link of each run, when it opens; done:
    gets each run that has results, when it is closed. The folder of a run is the first of `out`/run-1, run-2 … that is
    free; it appears with the run's first post. When a run is complete its link is dead, and the next one opens.

    Raises:
        UsageError: threads that browsers will not give over this address.
        DeviceError: the address cannot be bound.
        RuntimeMismatch: the files of onnxruntime-web are missing.
        KeyboardInterrupt: with `once`, before there was a complete run.
    """
    if job.threads > 1 and not address.is_secure:
        raise UsageError(
            f"--threads {job.threads}: browsers give one thread over plain http; "
            "pass --certificate and --key, or --host 127.0.0.1 behind `adb reverse`"
        )
    with address.listen() as listening:
        desk = _Desk(job, run_of, out, address.at(listening.getsockname()[1]), once, opened, done, talk)
        try:
            desk.announce()
            desk.server.run(sockets=[listening])
        except KeyboardInterrupt:
            if once and desk.run.is_open:
                raise
        finally:
            desk.finish()


class _Desk(Generic[RunType]):
    """The open run, and what happens around it."""

    def __init__(
        self,
        job: Served,
        run_of: Callable[[Path], RunType],
        out: Path,
        address: Address,
        once: bool,
        opened: Callable[[str], None],
        done: Callable[[RunType], None],
        talk: Talk,
    ) -> None:
        self._run_of, self._out, self._address, self._once = run_of, out, address, once
        self._opened, self._done, self._talk = opened, done, talk
        self._handed_over = False
        self.server = uvicorn_server(make_app(job, self, address.hosts()), address)
        self.run = self._next_run()

    def announce(self) -> None:
        """Give out the link of the open run."""
        self._opened(self._address.url(self.run.token))

    def fetched(self, user_agent: str) -> None:
        """Say that a phone is at it."""
        self._talk.say(f"opened by {printable(user_agent)}; measuring")

    def ended(self) -> None:
        """Hand over the run's results; end, or open the next."""
        self.finish()
        if self._once:
            self.server.should_exit = True
        else:
            self._handed_over = False
            self.run = self._next_run()
            self.announce()

    def finish(self) -> None:
        """Close the open run and hand over what it has, once."""
        self.run.close()
        if not self._handed_over and self.run.has_results:
            self._handed_over = True
            self._done(self.run)

    def _next_run(self) -> RunType:
        folders = (self._out / f"run-{number}" for number in itertools.count(1))
        return self._run_of(next(folder for folder in folders if not folder.exists()))


def uvicorn_server(app: Starlette, address: Address) -> uvicorn.Server:
    """What serves the routes, over https where the address has a certificate."""
    config = uvicorn_config(
        app,
        Connection,
        lifespan="off",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
    )
    return uvicorn.Server(config)
