"""The program a board runs for us. It travels over the connection; nothing has to be installed for it.

Standard library only, and syntax of Python 3.7, so that an old board can say that it is too old.

Both directions carry frames: a line `MARK JSON-BYTES BODY-BYTES`, then that many bytes of a JSON
object, then of raw data. MARK is random and new for each connection, so nothing that a login script
prints can be taken for a frame. Requests are `{"do": VERB, …}`, a method of `_Agent` without its
underscore; replies are `{"ok": …}` or `{"error": …}`, and `{"beat": true}` while there is nothing to say.

Everything lives in one private folder of the board:

    lock                  held while a workstation uses the board; says which
    wheels/, envs/ID/     packages as they came, and unpacked in a virtual environment
    bundles/ID/, data/ID/ what was uploaded
    runs/TOKEN/NAME/      one process: stdout, stderr, rc, and what it wrote below out/
    tmp/                  its TMPDIR

A process is started by a supervisor that outlives the connection, so that a cut connection does not
disturb a measurement. A supervisor that nobody followed for `GRACE_S` ends its process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # a workstation with Windows sends this program, and runs none of it
    fcntl = None  # type: ignore[assignment]

__all__ = ["CHUNK_BYTES", "GRACE_S", "PERIOD_S", "PROTOCOL", "main", "pack"]

PROTOCOL = 1
CHUNK_BYTES = 1 << 20
PERIOD_S = 1.0
GRACE_S = 180.0
_STOP_S = 30.0
_JOURNAL = "out/samples.jsonl"


def pack(mark: str, header: dict[str, Any], body: bytes = b"") -> bytes:
    """One frame."""
    content = json.dumps(header, allow_nan=False).encode()
    return f"{mark} {len(content)} {len(body)}\n".encode() + content + body


def main(mark: str) -> None:
    """Serve requests until the connection ends."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    output = os.dup(1)
    os.dup2(2, 1)  # what else is printed must not reach the protocol
    os.umask(0o077)
    _Agent(_Frames(mark, output)).serve()


class _Refusal(Exception):
    """What a reply says is wrong."""


class _Frames:
    def __init__(self, mark: str, output: int) -> None:
        self._mark, self._output = mark, output
        self._inbox = b""

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        frame = memoryview(pack(self._mark, header, body))
        while frame:
            frame = frame[os.write(self._output, frame) :]

    def waiting(self, seconds: float) -> bool:
        """Whether something of a request came within that time."""
        return bool(self._inbox or select.select([0], [], [], seconds)[0])

    def read(self) -> tuple[dict[str, Any], bytes]:
        while b"\n" not in self._inbox:
            self._more()
        line, _, self._inbox = self._inbox.partition(b"\n")
        mark, size, extra = line.split()
        if mark.decode() != self._mark:
            raise EOFError
        while len(self._inbox) < int(size) + int(extra):
            self._more()
        content, rest = self._inbox[: int(size)], self._inbox[int(size) :]
        body, self._inbox = rest[: int(extra)], rest[int(extra) :]
        return json.loads(content), body

    def _more(self) -> None:
        piece = os.read(0, CHUNK_BYTES)
        if not piece:
            raise EOFError
        self._inbox += piece


class _Agent:
    def __init__(self, frames: _Frames) -> None:
        self._frames = frames
        self._root = Path()
        self._lock = -1

    def serve(self) -> None:
        self._frames.send({"ok": _describe()})
        verbs = {name[4:]: getattr(self, name) for name in dir(self) if name.startswith("_do_")}
        with contextlib.suppress(EOFError):
            while True:
                request, body = self._frames.read()
                self._answer(verbs[request.pop("do")], request, body)

    def _answer(self, verb: Any, request: dict[str, Any], body: bytes) -> None:
        try:
            result = verb(body=body, **request) if body else verb(**request)
        except _Refusal as refusal:
            self._frames.send({"error": str(refusal)})
        except OSError as error:
            free = f", {_free_bytes(self._root) // 2**20} MiB free" if self._root.is_dir() else ""
            self._frames.send({"error": f"{error.filename or self._root}: {error.strerror or error}{free}"})
        else:
            header, data = ({}, result) if isinstance(result, bytes) else (result, b"")
            self._frames.send({"ok": header}, data)

    def _do_open(self, folder: str | None) -> dict[str, Any]:
        """Make the private folder, or check that it still is private."""
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self._root = Path(folder or os.path.join(cache, "saten-edge", "board"))
        self._root.mkdir(0o700, parents=True, exist_ok=True)
        found = os.lstat(str(self._root))
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise _Refusal(f"{self._root}: expected a folder of this user that nobody else may enter; remove it")
        if os.statvfs(str(self._root)).f_flag & getattr(os, "ST_NOEXEC", 0):
            raise _Refusal(f"{self._root}: its file system is mounted noexec; name another folder after the host")
        (self._root / "tmp").mkdir(exist_ok=True)
        return {"free_bytes": _free_bytes(self._root)}

    def _do_lock(self, token: str, owner: str) -> dict[str, Any]:
        """Keep others out, as long as this process or one that it supervises lives."""
        handle = os.open(str(self._root / "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        if not _flock(handle):
            holder = json.loads(os.pread(handle, 4096, 0) or b"{}")
            if holder.get("token") != token:
                raise _Refusal(
                    f"busy: {holder.get('owner', 'another run')} has used it since {holder.get('since', 'just now')}"
                    f" (process {holder.get('pid', '?')}); wait for it, two runs would disturb each other"
                )
            _end_half_open(holder["pid"], self._root / "lock")
            if not _flock(handle, patience_s=5.0):
                return {}  # a supervisor of this very job holds it
        self._lock = handle
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        holder = {"token": token, "owner": owner, "pid": os.getpid(), "boot_id": _boot_id(), "since": since}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder, allow_nan=False).encode(), 0)
        for stale in (self._root / "runs").glob("*"):
            if stale.name != token:
                shutil.rmtree(str(stale), ignore_errors=True)
        return {}

    def _do_begin(self, path: str, size: int, sha256: str) -> dict[str, Any]:
        """How much of a file is here: all of it with the right hash, or the first bytes of a `.partial`."""
        target = self._path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(target)
        if target.is_file():
            if target.stat().st_size == size and self._sha256(target) == sha256:
                return {"offset": size, "done": True}
            target.unlink()
        if partial.is_file() and partial.stat().st_size > size:
            partial.unlink()
        with partial.open("ab"):
            return {"offset": partial.stat().st_size, "done": False}

    def _do_write(self, path: str, offset: int, body: bytes) -> dict[str, Any]:
        with _partial(self._path(path)).open("r+b") as file:
            file.seek(offset)
            file.write(body)
        return {}

    def _do_finish(self, path: str, sha256: str) -> dict[str, Any]:
        """Move a `.partial` into place when its hash is right; else remove it."""
        target = self._path(path)
        partial = _partial(target)
        if self._sha256(partial) != sha256:
            partial.unlink()
            return {"done": False}
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(str(partial), str(target))
        return {"done": True}

    def _do_free(self, keep: list[str]) -> dict[str, Any]:
        """Remove environments, bundles and data that are not to be kept; what is free then."""
        for kind in ("envs", "bundles", "data", "wheels"):
            for path in (self._root / kind).glob("*"):
                if f"{kind}/{path.name}" not in keep:
                    shutil.rmtree(str(path)) if path.is_dir() else path.unlink()
        return {"free_bytes": _free_bytes(self._root)}

    def _do_env(self, name: str, wheels: list[str]) -> dict[str, Any]:
        """A virtual environment of unpacked wheels, complete or not at all; the wheels go."""
        import venv

        target = self._path(f"envs/{name}")
        if target.is_dir() or not wheels:
            return {"there": target.is_dir()}
        aside = _partial(target)
        shutil.rmtree(str(aside), ignore_errors=True)
        venv.EnvBuilder(symlinks=True, with_pip=False).create(str(aside))
        packages = next(aside.glob("lib/python3*/site-packages"))
        for wheel in wheels:
            with zipfile.ZipFile(str(self._path(wheel))) as archive:
                archive.extractall(str(packages))
            self._beat()
        os.replace(str(aside), str(target))
        for wheel in wheels:
            self._path(wheel).unlink()
        return {"there": True}

    def _do_start(self, run: str, env: str | None, arguments: list[str], again: bool) -> dict[str, Any]:
        """Start `saten-run`, or say how the run of that name stands: running, ended or died.

        env: the environment; None is this very Python. again: start anew what died.
        """
        folder = self._path(f"runs/{run}")
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(str(folder / "alive"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _flock(handle):
                return {"state": "running"}
            if (folder / "rc").is_file():
                return {"state": "ended"}
            if (folder / "attached").is_file() and not again:
                return {"state": "died"}
            (folder / "attached").write_bytes(b"")
            python = sys.executable if env is None else str(self._path(f"envs/{env}/bin/python"))
            _supervise(folder, [python, "-m", "saten_runtime", *arguments], self._environment(env), handle, self._lock)
            return {"state": "started"}
        finally:
            os.close(handle)

    def _do_follow(self, run: str, offset: int) -> dict[str, Any]:
        """Send the journal from `offset` on, as frames, until the process has ended; how it did."""
        folder = self._path(f"runs/{run}")
        pause_s = 0.02
        while True:
            ended = not _is_locked(folder / "alive")
            os.utime(str(folder / "attached"))
            while True:  # all there is
                piece = _read(folder / _JOURNAL, offset)
                if not piece:
                    break
                self._frames.send({"journal": offset}, piece)
                offset += len(piece)
            if ended:
                rc = _read(folder / "rc", 0)
                return {"rc": int(rc) if rc else None}
            if self._frames.waiting(pause_s):
                self._frames.read()  # only one request may come now: to stop
                (folder / "stop").write_bytes(b"")
            self._beat()
            pause_s = min(2 * pause_s, PERIOD_S)

    def _do_get(self, path: str, offset: int) -> bytes:
        return _read(self._path(path), offset)

    def _do_forget(self, token: str) -> dict[str, Any]:
        shutil.rmtree(str(self._path(f"runs/{token}")), ignore_errors=True)
        return {}

    def _do_clean(self) -> dict[str, Any]:
        shutil.rmtree(str(self._root))
        return {}

    def _path(self, relative: str) -> Path:
        parts = Path(relative).parts
        if not parts or os.path.isabs(relative) or ".." in parts:
            raise _Refusal(f"{relative!r}: no path inside the folder")
        return self._root.joinpath(*parts)

    def _environment(self, env: str | None) -> dict[str, str]:
        """Temporary files in our folder; nothing of the user's Python in a virtual environment of ours."""
        kept = {key: value for key, value in os.environ.items() if env is None or not key.startswith("PYTHON")}
        return {**kept, "TMPDIR": str(self._root / "tmp"), "PYTHONUTF8": "1"}

    def _sha256(self, path: Path) -> str:
        digest = hashlib.sha256()
        told = time.monotonic()
        with path.open("rb") as file:
            for piece in iter(lambda: file.read(CHUNK_BYTES), b""):
                digest.update(piece)
                if time.monotonic() - told > PERIOD_S:
                    self._beat()
                    told = time.monotonic()
        return digest.hexdigest()

    def _beat(self) -> None:
        self._frames.send({"beat": True})


def _describe() -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "python": list(sys.version_info[:3]),
        "implementation": platform.python_implementation(),
        "machine": platform.machine(),
        "bits": 8 * struct.calcsize("P"),
        "libc": list(platform.libc_ver()),
        "host": socket.gethostname(),
    }


def _supervise(folder: Path, command: list[str], environment: dict[str, str], alive: int, lock: int) -> None:
    """Run `command` from a process of its own that has left this one's session, pipes and parent.

    alive, lock: open locked files; whoever holds them, the locks last until the last of them has gone.
    """
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        with open(os.devnull, "r+b") as null:
            for handle in range(3):
                os.dup2(null.fileno(), handle)
        kept = sorted(handle for handle in (alive, lock) if handle >= 0)
        for low, high in zip([2, *kept], [*kept, 256]):  # noqa: B905  strict= came with Python 3.10
            os.closerange(low + 1, high)
        ends, held = os.pipe()  # `held` is closed when the process has gone, which wakes whoever waits at `ends`
        with (folder / "stdout").open("wb") as output, (folder / "stderr").open("wb") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                cwd=str(folder),
                env=environment,
                pass_fds=[*kept, held],
                start_new_session=True,
            )
            os.close(held)
            _write(folder / "rc", str(_attend(process, ends, folder)).encode())
    finally:
        os._exit(0)


def _attend(process: subprocess.Popen[bytes], ends: int, folder: Path) -> int:
    """Wait for the end; ask for it when told to stop or when nobody has followed for `GRACE_S`."""
    seen, seen_at, asked_at = 0, time.monotonic(), 0.0
    while not select.select([ends], [], [], PERIOD_S)[0]:
        now, attached = time.monotonic(), _changed_ns(folder / "attached")
        if attached != seen:  # compared, not subtracted from the time: a board's clock may jump
            seen, seen_at = attached, now
        if not asked_at and ((folder / "stop").exists() or not attached or now - seen_at > GRACE_S):
            os.killpg(process.pid, signal.SIGINT)
            asked_at = now
        if asked_at and now - asked_at > _STOP_S:
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _end_half_open(pid: int, lock: Path) -> None:
    """End the agent whose workstation is gone without a word; it still has our lock file open."""
    handles = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):
        if any(os.readlink(str(handle)) == str(lock.resolve()) for handle in handles.iterdir()):
            os.kill(pid, signal.SIGKILL)


def _flock(handle: int, patience_s: float = 0.0) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)


def _is_locked(path: Path) -> bool:
    handle = os.open(str(path), os.O_RDWR)
    try:
        return not _flock(handle)
    finally:
        os.close(handle)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _write(path: Path, content: bytes) -> None:
    _partial(path).write_bytes(content)
    os.replace(str(_partial(path)), str(path))


def _read(path: Path, offset: int) -> bytes:
    """At most a chunk; nothing where there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return b""


def _changed_ns(path: Path) -> int:
    """When a file was last touched; 0 when it is gone."""
    try:
        return os.stat(str(path)).st_mtime_ns
    except FileNotFoundError:
        return 0


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(str(folder))
    return found.f_bavail * found.f_frsize


def _boot_id() -> str:
    return _read(Path("/proc/sys/kernel/random/boot_id"), 0).decode().strip()
