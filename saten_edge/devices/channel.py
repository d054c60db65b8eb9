"""A connection to a board: a process at this end, the agent at the other, frames between them.

Nothing that arrives is trusted: how much may come before the first frame, how large a frame may be and
how long it may take are bounded, and everything is checked before it is used.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import secrets
import selectors
import subprocess
import time
from types import TracebackType
from typing import Any, cast

from saten_edge.devices import agent
from saten_runtime.errors import DeviceError
from saten_runtime.records.files import parse_object
from saten_runtime.records.plain_text import last_line, printable

__all__ = ["BOOTSTRAP", "Channel", "Disconnected"]

# The only thing that a shell on the board ever reads of us. It takes the agent from standard input.
BOOTSTRAP = (
    'exec python3 -c \'import sys; i = sys.stdin.buffer; exec(i.read(int(i.readline())), {"__name__": "agent"})\''
)

_HELLO_S = 60.0
_REPLY_S = 120.0
_MOST_NOISE_BYTES = 64 << 10
_MOST_HEADER_BYTES = 1 << 20
_MOST_LINE_BYTES = 64
_LAST_WORDS_BYTES = 4096
_PIECE_BYTES = 1 << 16


class Disconnected(DeviceError):
    """The connection ended or fell silent; a new one may go on where it stopped.

    ending: exit code of the process at this end, and the last lines it wrote to stderr.
    """

    def __init__(self, message: str, ending: tuple[int | None, str]) -> None:
        super().__init__(message)
        self.ending = ending


class Channel:
    """An agent to talk to; leaving the `with` block ends the connection.

    label: what errors call the device. hello: what the agent said of the board, unchecked.

    Raises:
        DeviceError: the command ended or stayed silent before the agent spoke.
    """

    def __init__(self, label: str, command: list[str], *, hello_s: float = _HELLO_S) -> None:
        self._label = label
        self._inbox, self._outbox, self._last_words = bytearray(), bytearray(), bytearray()
        self._mark = secrets.token_hex(16)
        # In a session of its own, or Ctrl-C would end it before the board could be told to stop.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._selector = selectors.DefaultSelector()
        for pipe, read in ((self._process.stdout, self._on_output), (self._process.stderr, self._on_errors)):
            self._selector.register(cast(Any, pipe), selectors.EVENT_READ, read)
        self._ended = False
        try:
            source = f"{inspect.getsource(agent)}\nmain({self._mark!r})\n".encode()
            self._write(b"%d\n" % len(source) + source, time.monotonic() + hello_s)
            self.hello = self._first_frame(time.monotonic() + hello_s)
        except BaseException:
            self.close()
            raise

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send one frame. If the connection ends meanwhile, `receive` says so, after what the board said before.

        Raises:
            Disconnected: the board took nothing for two minutes.
        """
        self._write(agent.pack(self._mark, header, body), time.monotonic() + _REPLY_S)

    def receive(self, timeout_s: float = _REPLY_S) -> tuple[dict[str, Any], bytes]:
        """The next frame: its header, and the raw data after it.

        Raises:
            Disconnected: the connection ended, or no whole frame came in time.
            DeviceError: what came is no frame of ours.
        """
        deadline = time.monotonic() + timeout_s
        self._await(lambda: b"\n" in self._inbox or len(self._inbox) > _MOST_LINE_BYTES, deadline)
        line, _, _ = bytes(self._inbox[:_MOST_LINE_BYTES]).partition(b"\n")
        size, extra = self._sizes(line)
        start = len(line) + 1
        self._await(lambda: len(self._inbox) >= start + size + extra, deadline)
        content = bytes(self._inbox[start : start + size])
        body = bytes(self._inbox[start + size : start + size + extra])
        del self._inbox[: start + size + extra]
        return self._header(content), body

    def close(self) -> None:
        """End the connection."""
        self._selector.close()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(BrokenPipeError):
                cast(Any, pipe).close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _disconnected(self, what: str) -> Disconnected:
        if self._ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1.0)
            self._drain_errors()
        words = self._last_words.decode(errors="replace").strip()
        last = f" ({last_line(words)[:200]})" if words else ""
        return Disconnected(f"{self._label}: {what}{last}", (self._process.poll(), words))

    def _drain_errors(self) -> None:
        handle = cast(Any, self._process.stderr).fileno()
        os.set_blocking(handle, False)
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(handle, _PIECE_BYTES):
                self._last_words = (self._last_words + piece)[-_LAST_WORDS_BYTES:]

    def _first_frame(self, deadline: float) -> dict[str, Any]:
        """Pass over what a login script printed before the agent spoke."""
        mark = self._mark.encode()
        self._await(lambda: mark in self._inbox or len(self._inbox) > _MOST_NOISE_BYTES, deadline)
        start = self._inbox.find(mark)
        if start < 0:
            raise DeviceError(f"{self._label}: printed {len(self._inbox)} bytes instead of an answer")
        del self._inbox[:start]
        header, _ = self.receive(deadline - time.monotonic())
        return header

    def _sizes(self, line: bytes) -> tuple[int, int]:
        parts = line.split(b" ")
        if len(parts) != 3 or parts[0].decode(errors="replace") != self._mark or not all(map(bytes.isdigit, parts[1:])):
            raise DeviceError(
                f"{self._label}: expected an answer, found {printable(line[:40].decode(errors='replace'))!r}"
            )
        size, extra = int(parts[1]), int(parts[2])
        if size > _MOST_HEADER_BYTES or extra > agent.CHUNK_BYTES:
            raise DeviceError(
                f"{self._label}: an answer of {size + extra} bytes, more than the "
                f"{_MOST_HEADER_BYTES} + {agent.CHUNK_BYTES} that one may have"
            )
        return size, extra

    def _header(self, content: bytes) -> dict[str, Any]:
        return parse_object(content, f"{self._label}: an answer", DeviceError, "is its Python the board's own?")

    def _write(self, content: bytes, deadline: float) -> None:
        self._outbox += content
        pipe = cast(Any, self._process.stdin)
        os.set_blocking(pipe.fileno(), False)
        self._selector.register(pipe, selectors.EVENT_WRITE, self._on_input)
        try:
            self._await(lambda: not self._outbox, deadline)
        finally:
            self._selector.unregister(pipe)

    def _await(self, done: Any, deadline: float) -> None:
        """Let bytes flow until `done()`.

        Raises:
            Disconnected: it did not come to that.
        """
        while not done():
            if self._ended:
                raise self._disconnected("the connection ended")
            left = deadline - time.monotonic()
            ready = self._selector.select(left) if left > 0 else []
            if not ready:
                raise self._disconnected("no answer in time")
            for key, _ in ready:
                key.data()

    def _on_output(self) -> None:
        piece = os.read(cast(Any, self._process.stdout).fileno(), _PIECE_BYTES)
        self._inbox += piece
        if not piece:
            self._ended = True
            self._outbox.clear()
        if len(self._inbox) > _MOST_HEADER_BYTES + agent.CHUNK_BYTES + _MOST_NOISE_BYTES + _PIECE_BYTES:
            raise DeviceError(f"{self._label}: sends more than it was asked for")

    def _on_errors(self) -> None:
        piece = os.read(cast(Any, self._process.stderr).fileno(), _PIECE_BYTES)
        self._last_words = (self._last_words + piece)[-_LAST_WORDS_BYTES:]
        if not piece:
            self._selector.unregister(cast(Any, self._process.stderr))

    def _on_input(self) -> None:
        try:
            written = os.write(cast(Any, self._process.stdin).fileno(), self._outbox[:_PIECE_BYTES])
        except BrokenPipeError:
            self._outbox.clear()  # nobody listens any more; why may stand in what was said before
            return
        del self._outbox[:written]
