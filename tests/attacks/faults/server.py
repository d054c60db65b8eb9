"""Runs operations under faults, each in a process forked from one that has imported everything.

    LD_PRELOAD=SHIM python -m faults.server SOUND WORK

Each line on stdin is {"operation": name, "fault": [kind, n, errno], "work": folder}; n = 0 is no fault. Each is
answered by one line on stdout, see `Outcome`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.operations import OPERATIONS, Operation, State

__all__ = ["Outcome", "main"]


@dataclass(frozen=True)
class Outcome:
    """ended: "done", the class of an error, or "killed". fired: the fault was met. words: traceback of an error."""

    ended: str
    fired: bool
    words: str


def main() -> None:
    """Serve until stdin ends."""
    sound = {name: Path(path) for name, path in json.loads(sys.argv[1]).items()}
    state = _state(sound, Path(sys.argv[2]))
    gc.freeze()  # the forked ones need not look at all of this again
    for line in sys.stdin:
        request = json.loads(line)
        there = dataclasses.replace(state, work=Path(request["work"]))
        outcome = _in_child(OPERATIONS[request["operation"]], there, *request["fault"])
        sys.stdout.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
        sys.stdout.flush()


def _state(sound: dict[str, Path], work: Path) -> State:
    import torch
    from hostile.measurements import RESULT

    import saten_edge.devices.deploy
    import saten_edge.stages  # noqa: F401
    from saten_edge.checkpoints.models import load_model
    from saten_edge.reports import build_report, html_page
    from saten_exporters.choice.settings import DEFAULT_TARGET
    from saten_exporters.choice.targets import TARGETS
    from saten_exporters.tracing.trace import trace
    from saten_runtime.bundle.folder import Bundle

    torch.set_num_threads(1)
    loaded = load_model(sound["saten"])
    report = build_report([Bundle.open(sound["bundle"])], RESULT)
    html_page(report)  # once, for what it imports
    return State(work, loaded, trace(loaded, TARGETS[DEFAULT_TARGET]), _job(sound), report, sound["bundle"])


def _job(sound: dict[str, Path]) -> Any:
    """Two steps towards the dense model, a checkpoint after each."""
    from saten_edge.checkpoints.models import load_model
    from saten_edge.training.data import Examples
    from saten_edge.training.job import prepare
    from saten_edge.training.run import finetune
    from saten_edge.training.schedule import Schedule

    examples = Examples("here", [(text,) for text in ("a file", "the path", "of a number", "it reads")])
    schedule = Schedule(steps=2, batch_size=2, max_length=8, bf16=False, save_every=1)
    job = prepare(sound["saten"], examples, "feature-extraction", "train", sound["bert"], None, "", schedule, None)
    finetune(
        job.student, job.training, examples, dataclasses.replace(job.schedule, steps=1), teacher=job.teacher
    )  # imports
    return dataclasses.replace(job, student=load_model(sound["saten"]))


def _in_child(operation: Operation, state: State, kind: str, nth: int, error: int) -> Outcome:
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        os.close(reader)
        with open(writer, "w") as answers:
            answers.write(json.dumps(dataclasses.asdict(_run(operation, state, kind, nth, error))))
        os._exit(0)
    os.close(writer)
    with open(reader) as answers:
        content = answers.read()
    os.waitpid(process, 0)
    return Outcome(**json.loads(content)) if content else Outcome("killed", True, "")


def _run(operation: Operation, state: State, kind: str, nth: int, error: int) -> Outcome:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    shim: Any = ctypes.CDLL(None)
    if operation.child:
        os.environ["SATEN_FAULT"] = f"{kind}:{nth}:{error}:{state.work}"
    else:
        shim.fault_set(kind.encode(), nth, error, str(state.work).encode())
    try:
        operation.run(state)
        ended, words = "done", ""
    except Exception as cause:
        kinds = [cls.__name__ for cls in type(cause).__mro__]
        ended = next((name for name in ("SatenError", "OSError") if name in kinds), type(cause).__name__)
        words = traceback.format_exc()
    fired = shim.fault_seen() >= nth if not operation.child else ended != "done"
    return Outcome(ended, bool(nth) and bool(fired), words)


if __name__ == "__main__":
    main()
