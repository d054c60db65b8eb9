"""Tasks: one stage each, files in, files out, in a folder named by the hash of all that goes in.

A task is done when its folder is there: it is written aside and renamed. So who is killed loses what was under way and
nothing else, and nothing is done or counted twice. What a task made may be removed to save the disk; its outcome stays,
and whoever needs the files makes them again, the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import saten_edge
from saten_edge.optimize.outcomes import ENDINGS, REFUSALS, defect_words, failure, of_machine
from saten_edge.options import CompressOptions, ExportOptions, FinetuneOptions
from saten_edge.recipes import given_by
from saten_edge.texts import read_items
from saten_runtime.bundle.recipe import versions_here
from saten_runtime.errors import CheckpointError, DefectError, ExportError, SatenError, UsageError
from saten_runtime.records.files import aside_of, key_of, read_json, remove, write_json

__all__ = ["Source", "Task", "folder_of", "forget", "made", "outcome_of", "perform"]

# What does not only take an "ed".
SPELLED = {"trim": "trimm"}
OUTCOME, TRACEBACK = "outcome.json", "traceback.txt"


@dataclass(frozen=True)
class Source:
    """A file or model that is there from the beginning. key: sha256 of its content."""

    path: str
    key: str


@dataclass(frozen=True)
class Task:
    """do: a row of `KINDS`. options: as a recipe has them. inputs: by role, what other tasks make, or sources."""

    do: str
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Input] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of everything that the outcome depends on."""
        inputs = {role: each.key for role, each in self.inputs.items()}
        return key_of([self.do, dict(self.options), inputs, versions_here()])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        inputs = {
            role: vars(each) if isinstance(each, Source) else each.to_json() for role, each in self.inputs.items()
        }
        return {"do": self.do, "options": dict(self.options), "inputs": inputs}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Task:
        """Back from `to_json`."""
        inputs: dict[str, Input] = {
            role: cls.from_json(each) if "do" in each else Source(**each) for role, each in value["inputs"].items()
        }
        return cls(value["do"], value["options"], inputs)


Input: TypeAlias = "Source | Task"


def folder_of(task: Task, work: Path) -> Path:
    """Where a task leaves what it makes."""
    return work / f"{task.do}-{task.key}"


def outcome_of(task: Task, work: Path) -> dict[str, Any]:
    """What a task found, done now where it was not done before; or one of `ENDINGS`, and why.

    Raises:
        SatenError: the machine, and not the task, stood in the way.
    """
    found = folder_of(task, work) / OUTCOME
    return read_json(found, CheckpointError) if found.is_file() else _make(task, work)


def made(task: Input, work: Path) -> Path:
    """The file or folder that a task makes.

    Raises:
        UsageError: the task cannot be done.
        DefectError: it failed by one.
    """
    if isinstance(task, Source):
        return Path(task.path)
    path = folder_of(task, work) / _made_name(task)
    if not path.exists():
        found = outcome_of(task, work)
        if "refused" not in found and not path.exists():  # it was removed to save the disk
            found = _make(task, work)
        if "refused" in found:
            raise UsageError(found["refused"])
        if why := failure(found):
            raise DefectError(why)
    return path


def forget(task: Task, work: Path) -> None:
    """Remove what a task made, and keep its outcome."""
    remove(folder_of(task, work) / _made_name(task))


def _made_name(task: Task) -> str:
    """As the card of a bundle says it: trimmed, compressed, finetuned, exported, judged."""
    return f"{SPELLED.get(task.do, task.do.removesuffix('e'))}ed"


def _make(task: Task, work: Path) -> dict[str, Any]:
    folder, started = folder_of(task, work), time.monotonic()
    if lost := _lost_input(task, work):
        return lost
    work.mkdir(parents=True, exist_ok=True)
    aside = aside_of(folder)
    try:
        inputs = {role: made(each, work) for role, each in task.inputs.items()}
        aside.mkdir()
        result = {**_done(task, aside, inputs), "seconds": round(time.monotonic() - started, 3)}
        write_json(aside / OUTCOME, result)
        _put(aside, folder, _made_name(task))
    finally:
        remove(aside)
    return result


def _lost_input(task: Task, work: Path) -> dict[str, Any]:
    """Why an input came to nothing; empty where none did."""
    outcomes = (outcome_of(each, work) for each in task.inputs.values() if isinstance(each, Task))
    lost = next(filter(failure, outcomes), {})
    return {name: lost[name] for name in ENDINGS if name in lost}


def _done(task: Task, aside: Path, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """What a stage finds, or why it comes to nothing; of a defect the traceback stays."""
    out = aside / _made_name(task)
    try:
        return KINDS[task.do](out, dict(task.options), inputs)
    except REFUSALS as cause:
        found = {"refused": str(cause)}
    except Exception as cause:
        if of_machine(cause):
            raise
        (aside / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        found = {"defect": f"{defect_words(cause)} ({folder_of(task, Path(aside.parent.name)) / TRACEBACK})"}
    remove(out)
    return found


def _put(aside: Path, folder: Path, name: str) -> None:
    """Give the folder of a task its name; where it is there, it stays, for another process may read it.

    name: of what the task made, which alone is missing where it was removed to save the disk.
    """
    try:
        os.replace(aside, folder)
    except OSError:
        if not (folder / OUTCOME).is_file():
            raise
        with contextlib.suppress(OSError):  # another process was as far
            os.replace(aside / name, folder / name)


def _trim(out: Path, options: dict[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    found = saten_edge.trim(inputs["model"], out, inputs["data"], given_by("trim", options))
    return {"table_rows": found["table_rows"], "weights_bytes": found["weights_bytes"]}


def _compress(out: Path, options: dict[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    texts = read_items(inputs["data"])[: options.pop("texts")]
    how: CompressOptions = given_by("compress", options)
    table = saten_edge.compress(inputs["model"], out, how, calibration=texts)
    errors = [row["error"] for row in table["layers"]]
    return {"layers": len(errors), "mean_error": sum(errors) / len(errors)}


def _finetune(out: Path, options: dict[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    teacher = str(inputs["teacher"]) if "teacher" in inputs else None
    how: FinetuneOptions = replace(given_by("finetune", options), teacher=teacher)
    metrics = saten_edge.finetune(inputs["model"], out, inputs["data"], how)
    return {"steps": metrics["steps"], "loss": metrics["history"][-1]["loss"], "training_s": metrics["seconds"]}


def _export(out: Path, options: dict[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    name = options.pop("name")
    how: ExportOptions = replace(given_by("export", options), name=name, prices=inputs.get("prices"))
    bundle = saten_edge.export(inputs["model"], out, how)
    return {"bytes": bundle.size_bytes, "task": bundle.manifest.task}


def _judge(out: Path, options: dict[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    try:
        result = saten_edge.evaluate([inputs["bundle"]], inputs["part"])
    except SatenError as cause:  # such as outputs that are not finite
        raise ExportError(str(cause)) from None
    write_json(out, result)
    return {"metrics": result["rows"][0]["metrics"]}


KINDS: Mapping[str, Callable[[Path, dict[str, Any], Mapping[str, Path]], dict[str, Any]]] = {
    "trim": _trim,
    "compress": _compress,
    "finetune": _finetune,
    "export": _export,
    "judge": _judge,
}


def perform(folder: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome of a task as JSON data, whose files lie in `folder`; what an engine's worker calls."""
    return outcome_of(Task.from_json(task), folder)
