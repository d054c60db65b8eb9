"""A board with a connection to it: the verbs of the agent as methods, every answer checked."""

from __future__ import annotations

import getpass
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from saten_edge.devices import agent
from saten_edge.devices.channel import BOOTSTRAP, Channel, Disconnected
from saten_edge.devices.device import Device
from saten_runtime.errors import DeviceError
from saten_runtime.records.files import sha256_file

__all__ = ["Board", "Hello", "Item", "Sent"]

OLDEST_PYTHON = (3, 10)
OLDEST_GLIBC = (2, 28)
MACHINES = ("aarch64", "x86_64")

# A follower hears at least this often whether the process still runs.
_SILENCE_S = 30.0
Sent = Callable[[int], None]  # bytes that are now on the board and were not before


@dataclass(frozen=True)
class Item:
    """A file here, and the path it shall have in the board's folder."""

    source: Path
    path: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, source: Path, path: str) -> Item:
        """With the size and hash that the file has now."""
        return cls(source, path, source.stat().st_size, sha256_file(source))


@dataclass(frozen=True)
class Hello:
    """What the board's Python says of itself. glibc: (major, minor), None is another C library."""

    python: tuple[int, int]
    machine: str
    bits: int
    glibc: tuple[int, int] | None
    implementation: str

    @classmethod
    def read(cls, label: str, value: Any) -> Hello:
        """Check the agent's first words.

        Raises:
            DeviceError: they are not what an agent says.
        """
        try:
            if value["protocol"] != agent.PROTOCOL:
                raise ValueError
            name, version = map(str, value["libc"])
            major, minor = (int(part) for part in value["python"][:2])
            glibc = tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else None
            libc = None if glibc is None else (glibc[0], glibc[1])
            return cls((major, minor), str(value["machine"]), int(value["bits"]), libc, str(value["implementation"]))
        except (KeyError, TypeError, ValueError, IndexError):
            raise DeviceError(f"{label}: expected the agent to describe the board, found {value!r:.80}") from None

    def refuse_unfit(self, label: str) -> None:
        """Say early what no wheel of ONNX Runtime would run on.

        Raises:
            DeviceError: its Python, C library or processor.
        """
        if self.python < OLDEST_PYTHON or self.implementation != "CPython":
            found = f"{self.implementation} {self.python[0]}.{self.python[1]}"
            raise DeviceError(f"{label}: has {found}, CPython 3.10 or newer is needed")
        if self.bits != 64 or self.machine not in MACHINES:
            raise DeviceError(
                f"{label}: a {self.bits}-bit Python on {self.machine}, expected 64 bits and {' or '.join(MACHINES)}; "
                "onnxruntime has no other wheels, so install a 64-bit system"
            )
        if self.glibc is None or self.glibc < OLDEST_GLIBC:
            found = "another C library" if self.glibc is None else f"glibc {self.glibc[0]}.{self.glibc[1]}"
            raise DeviceError(f"{label}: has {found}, onnxruntime needs glibc 2.28 or newer, such as Debian 10's")


class Board:
    """A connected board whose folder is open and locked; leaving the `with` block disconnects.

    token: of this job; a board that was left under the same token is joined again. free_bytes: in the
    folder's file system.

    Raises:
        DeviceError: it cannot be reached, has no Python, is in use, or has no usable folder.
        Disconnected: the connection was lost on the way.
    """

    def __init__(self, device: Device, token: str) -> None:
        self.label = device.label
        command = device.command(BOOTSTRAP)
        try:
            self._channel = Channel(self.label, command)
        except Disconnected as lost:
            raise DeviceError(f"{self.label}: {device.explain(*lost.ending)}") from None
        try:
            self.hello = Hello.read(self.label, _result(self.label, self._channel.hello))
            self.free_bytes = int(self._ask("open", folder=device.folder)["free_bytes"])
            self._ask("lock", token=token, owner=_owner())
        except BaseException:
            self._channel.close()
            raise
        self._token = token

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def begin(self, item: Item) -> int | None:
        """How many bytes of a file are there already; None is all of them, with the right hash.

        Raises:
            DeviceError: the board cannot store it.
        """
        answer = self._ask("begin", path=item.path, size=item.bytes, sha256=item.sha256)
        offset = _natural(self.label, answer.get("offset"), most=item.bytes)
        return None if answer.get("done") is True else offset

    def put(self, item: Item, offset: int, sent: Sent) -> None:
        """Send a file from `offset` on; from its beginning once more when it arrived damaged.

        Raises:
            DeviceError: it arrived damaged twice, or the board cannot store it.
        """
        for start in (offset, 0):
            self._send(item, start, sent)
            if self._ask("finish", path=item.path, sha256=item.sha256).get("done") is True:
                return
            self.begin(item)
        raise DeviceError(f"{self.label}: {item.source.name} arrived damaged twice; check the board's storage")

    def free(self, keep: list[str]) -> None:
        """Remove what is not to be kept: paths such as bundles/ID."""
        answer = self._ask("free", keep=keep)
        self.free_bytes = _natural(self.label, answer.get("free_bytes"))

    def make_env(self, name: str, wheels: list[str]) -> bool:
        """Whether the environment of that name is there, made of `wheels` if there are any."""
        return self._ask("env", name=name, wheels=wheels).get("there") is True

    def start(self, name: str, env: str | None, arguments: list[str], *, again: bool = False) -> str:
        """Start `saten-run` there, once: "started", or how it stands: "running", "ended" or "died"."""
        answer = self._ask("start", run=self._run(name), env=env, arguments=arguments, again=again)
        return str(answer.get("state"))

    def follow(self, name: str, offset: int) -> Iterator[bytes]:
        """The journal of a run from `offset` on as it grows, with b"" as a sign of life, until the run ends.

        Raises:
            Disconnected: no sign of life for half a minute.
        """
        self._channel.send({"do": "follow", "run": self._run(name), "offset": offset})
        return self._heard()

    def stop(self) -> Iterator[bytes]:
        """Ask the run that is being followed to end, as Ctrl-C would; the rest of its journal."""
        self._channel.send({"do": "stop"})
        return self._heard()

    def rc(self, name: str) -> int | None:
        """The exit code of a run that ended; None is one that died with the board."""
        text = self.get(name, "rc", most=16)
        return int(text) if text.lstrip(b"-").isdigit() else None

    def get(self, name: str, path: str, *, most: int) -> bytes:
        """A file of a run; nothing where there is none.

        Raises:
            DeviceError: it is larger than `most`.
        """
        content = b""
        while piece := self._ask_raw("get", path=f"runs/{self._run(name)}/{path}", offset=len(content)):
            content += piece
            if len(content) > most:
                raise DeviceError(f"{self.label}: {path} holds more than {most} bytes")
        return content

    def forget(self) -> None:
        """Remove the runs of this job."""
        self._ask("forget", token=self._token)

    def clean(self) -> None:
        """Remove everything we ever put there."""
        self._ask("clean")

    def _heard(self) -> Iterator[bytes]:
        while True:
            header, body = self._channel.receive(_SILENCE_S)
            if "beat" not in header and "journal" not in header:
                _result(self.label, header)
                return
            yield body

    def _run(self, name: str) -> str:
        return f"{self._token}/{name}"

    def _send(self, item: Item, offset: int, sent: Sent) -> None:
        with item.source.open("rb") as file:
            file.seek(offset)
            while piece := file.read(agent.CHUNK_BYTES):
                self._ask("write", piece, path=item.path, offset=offset)
                offset += len(piece)
                sent(len(piece))

    def _ask(self, verb: str, body: bytes = b"", **arguments: Any) -> dict[str, Any]:
        return self._reply(verb, body, arguments)[0]

    def _ask_raw(self, verb: str, **arguments: Any) -> bytes:
        return self._reply(verb, b"", arguments)[1]

    def _reply(self, verb: str, body: bytes, arguments: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        self._channel.send({"do": verb, **arguments}, body)
        header, content = self._channel.receive()
        while "beat" in header:
            header, content = self._channel.receive()
        return _result(self.label, header), content


def _result(label: str, header: dict[str, Any]) -> dict[str, Any]:
    """What an answer holds.

    Raises:
        DeviceError: what the board found wrong.
    """
    if "error" in header:
        raise DeviceError(f"{label}: {header['error']!s:.500}")
    result = header.get("ok")
    if not isinstance(result, dict):
        raise DeviceError(f"{label}: expected an answer, found {header!r:.80}")
    return result


def _natural(label: str, value: Any, most: int | None = None) -> int:
    if type(value) is not int or value < 0 or (most is not None and value > most):
        raise DeviceError(f"{label}: expected a number of bytes, found {value!r:.40}")
    return value


def _owner() -> str:
    return f"{getpass.getuser()}@{platform.node()}"
