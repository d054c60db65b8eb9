"""A worker process and its parent, both ends: a request is a line of JSON, and so is its answer."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any, cast

from saten_runtime.errors import DeviceError, SatenError
from saten_runtime.records.plain_text import last_line

__all__ = ["Child", "answer_requests", "how_it_ended", "python_command"]

Verbs = Mapping[str, Callable[..., Any]]


def python_command(code: str) -> list[str]:
    """The command that runs `code` in this interpreter, importing nothing from the current folder.

    `-m` and `-c` look there first, and it may be a stranger's bundle.
    """
    return [sys.executable, "-c", f"import sys; sys.path[:] = [p for p in sys.path if p]; {code}"]


_WORKER = "from saten_runtime.bench.worker import main; main()"


class Child:
    """A worker process; leaving the `with` block ends it.

    code: what it runs, to answer a line of JSON with one; our worker by default. environment: variables added to this
    process's. started_ns: the system-wide monotonic clock just before the process was started.
    """

    def __init__(self, code: str = _WORKER, environment: Mapping[str, str] | None = None) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process in __exit__
        self.started_ns = time.monotonic_ns()
        self._process = subprocess.Popen(
            python_command(code),
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
        )
        self._requests = cast(IO[str], self._process.stdin)
        self._answers = cast(IO[str], self._process.stdout)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def ask(self, verb: str, *, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for the answer.

        Raises:
            SatenError: what the worker found wrong; it goes on.
            DeviceError: the worker is gone; the message says by which signal or exit code. It is
                ended, too, when it gives no answer within `timeout_s`.
        """
        try:
            self._requests.write(json.dumps({"do": verb, **arguments}, allow_nan=False) + "\n")
            self._requests.flush()
            # An answer is one line, written at once: where there is something to read, all of it is.
            if timeout_s is not None and not select.select([self._answers], [], [], timeout_s)[0]:
                self._process.kill()
                raise DeviceError(f"worker gave no answer to {verb!r} within {timeout_s:g} s and was ended")
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            raise DeviceError(f"worker {how_it_ended(self._process.wait(), self._last_words())}")
        answer = json.loads(line)
        if "error" in answer:
            raise SatenError(answer["error"])
        result: dict[str, Any] = answer["ok"]
        return result

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # what was still to be written has no reader any more
            self._requests.close()
        self._answers.close()
        self._stderr.close()

    def _last_words(self) -> str:
        self._stderr.seek(0)
        return last_line(self._stderr.read().decode(errors="replace"))


def answer_requests(
    make: Callable[[], Verbs], refused: type[Exception] = SatenError, words: Callable[[Exception], str] = str
) -> None:
    """Answer the parent until it asks to "quit" or its end closes: {"do": verb, …} by {"ok": …} or {"error": …}.

    make: gives the verbs, called when nothing that libraries print can be taken for an answer any more. refused:
    errors that are answers; any other ends the process. words: of such an error.
    """
    # Ctrl-C reaches the whole foreground group; the parent decides, and ends us by closing stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    verbs = make()
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("do")
        answer: dict[str, Any]
        try:
            answer = {"ok": verbs[name](**request)}
        except refused as error:
            answer = {"error": words(error)}
        answers.write(json.dumps(answer, allow_nan=False) + "\n")
        answers.flush()
        if name == "quit":
            return


def how_it_ended(returncode: int, last_words: str = "") -> str:
    """An exit status as words, with the name of the signal when one ended the process."""
    if returncode < 0:
        name = signal.Signals(-returncode).name
        cause = {
            "SIGKILL": " (out of memory?)",
            "SIGILL": " (this processor lacks an instruction the package was built with)",
        }.get(name, "")
        return f"killed by {name}{cause}"
    return f"ended with exit code {returncode}" + (f": {last_words}" if last_words else "")
