"""Tries cases, each in a process of its own with limits, forked from one that has imported everything.

    python -m hostile.server SOUND

SOUND: JSON, name → path, see `Place`. Each line on stdin is {"case": id, "folder": path}; each is answered by one line
on stdout, see `Outcome`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile.case import MEBIBYTE, Case, Place

__all__ = ["Outcome", "main"]

_SLACK_BYTES = 1024 * MEBIBYTE  # address space beyond the cap on memory: stacks, arenas, mapped files
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """error: class that was raised, or None. code: exit code; -n is a signal. grown_bytes: of the largest resident size
    over that before. left: paths that were not there before.
    """

    error: str | None
    code: int | None
    stdout: str
    stderr: str
    grown_bytes: int
    left: list[str]


def main() -> None:
    """Serve until stdin ends."""
    sound = {name: Path(path) for name, path in json.loads(sys.argv[1]).items()}
    _warm(sound)
    from hostile.table import CASES

    cases = {case.id: case for case in CASES}
    for line in sys.stdin:
        request = json.loads(line)
        place = Place(Path(request["folder"]), sound)
        sys.stdout.write(json.dumps(dataclasses.asdict(_tried(cases[request["case"]], place))) + "\n")
        sys.stdout.flush()


def _warm(sound: dict[str, Path]) -> None:
    """Import, by using them once, what cases would otherwise import one by one."""
    import onnxruntime  # noqa: F401
    import torch

    from saten_edge.checkpoints.models import load_model
    from saten_runtime.bundle.folder import Bundle

    torch.set_num_threads(1)
    for name in ("bert", "saten"):
        load_model(sound[name])
    Bundle.open(sound["bundle"])


def _tried(case: Case, place: Place) -> Outcome:
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        os.close(reader)
        with open(writer, "w") as answers:
            answers.write(json.dumps(dataclasses.asdict(_try(case, place))))
        os._exit(0)
    os.close(writer)
    with open(reader) as answers:
        content = _read_all(process, answers)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    if content:
        return Outcome(**json.loads(content))
    return Outcome(None, code, "", f"the process ended with {code}", 0, [])


def _read_all(process: int, answers: Any) -> str:
    def give_up(*_: object) -> None:
        os.kill(process, signal.SIGKILL)

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)
    try:
        return answers.read()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _try(case: Case, place: Place) -> Outcome:
    """In the forked process: make the input, then run what meets it under the limits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print
    os.chdir(place.folder)
    tempfile.tempdir = os.environ["TMPDIR"] = str(place.folder)
    try:
        case.make(place)
    except BaseException:
        return Outcome("the maker failed", None, "", traceback.format_exc(), 0, [])
    before, resident = _paths(place.folder), _reset_peak()
    _limit(case)
    stdout, stderr, raised = io.StringIO(), io.StringIO(), _Raised()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), raised.watched():
        code = _code(case, place, raised)
    left = sorted(_paths(place.folder) - before)
    return Outcome(raised.kind, code, stdout.getvalue(), stderr.getvalue(), _status_bytes("VmHWM") - resident, left)


class _Raised:
    """The class of the error that a command line turned into a line, seen where it does."""

    kind: str | None = None

    @contextlib.contextmanager
    def watched(self) -> Any:
        from saten_edge.cli import commands as edge
        from saten_runtime import cli as run

        kept = edge.printable, run.printable

        def seen(text: str) -> str:
            error = sys.exc_info()[1]
            self.kind = type(error).__name__ if error is not None else self.kind
            return kept[0](text)

        edge.printable = run.printable = seen
        try:
            yield
        finally:
            edge.printable, run.printable = kept


def _code(case: Case, place: Place, raised: _Raised) -> int | None:
    from saten_runtime.errors import SatenError

    try:
        return case.run(place) or 0
    except SatenError as error:
        raised.kind = type(error).__name__
        print(error, file=sys.stderr)
        return error.exit_code
    except BaseException as error:
        raised.kind = type(error).__name__
        print(f"Traceback: {traceback.format_exc()}", file=sys.stderr)
        return 1


def _limit(case: Case) -> None:
    space = _status_bytes("VmSize") + case.most_bytes + _SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    used = int(time.process_time()) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + case.seconds, used + case.seconds))


def _reset_peak() -> int:
    """Begin the count of the largest resident size anew; the size now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _paths(folder: Path) -> set[str]:
    """Everything in a folder but the lock of benchmarks, which stays."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock"}


if __name__ == "__main__":
    main()
