"""Stages of a search that only pretend, and an engine without processes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from saten_edge.engines.pool import Request
from saten_edge.optimize import tasks
from saten_edge.optimize.chains import Chains
from saten_edge.optimize.decay import promising
from saten_edge.optimize.estimate import Layers
from saten_edge.optimize.judging import Scale
from saten_edge.optimize.pricing import pricing_of
from saten_edge.optimize.search import Search
from saten_edge.optimize.study import Study, Trial
from saten_edge.optimize.tasks import Source
from saten_edge.options import OptimizeOptions
from saten_exporters.quantize import PRECISIONS
from saten_runtime.errors import ExportError
from saten_runtime.records.files import write_json

MATRICES = {f"layer.{k}.dense": ("linear", 256, 256) for k in range(4)}
# Trimming leaves half of one matrix.
LAYERS = Layers(MATRICES, 1000, Layers({**MATRICES, "layer.0.dense": ("linear", 256, 128)}, 1000))
# What stages write of a dense model.
DENSE = {"budget": 1.0, "steps": 1000, "values": LAYERS.values}
BESIDE = 50_000  # bytes of graph and tokenizer
OPTIONS = OptimizeOptions(trials=6)
STEP_S = 0.5  # what a step is said to take


class Killed(BaseException):
    """As a kill -9 of the driver: nothing is tidied up."""


class Stages:
    """Stages that write what they were told, and count how often they were done; the `dies`-th ends with `fault`.

    broken: whether a stage has a defect that it meets with these options.
    """

    def __init__(
        self,
        dies: int = -1,
        refused: str = "",
        fault: BaseException | None = None,
        broken: Callable[[str, Mapping[str, Any]], bool] = lambda stage, options: False,
    ) -> None:
        self.done: Counter[str] = Counter()
        self.dies, self.refused, self.fault, self.broken = dies, refused, fault or Killed(), broken

    def kinds(self) -> dict[str, Callable[..., dict[str, Any]]]:
        return {name: getattr(self, name) for name in ("trim", "compress", "finetune", "export", "judge")}

    def trim(self, out: Path, options: dict[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
        self._break("trim", options)
        return self._write(out, "trim", {**_read(inputs["model"]), "values": LAYERS.trimmed.values})

    def compress(self, out: Path, options: dict[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
        self._break("compress", options)
        dense_bits = PRECISIONS[options["precision"]].bits
        model = {**_read(inputs["model"]), "budget": options["budget"] * 32 / dense_bits, "steps": 0}
        return self._write(out, "compress", model)

    def finetune(self, out: Path, options: dict[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
        steps = options["steps"]
        self._write(out, "finetune", {**_read(inputs["model"]), "steps": steps})
        return {"training_s": steps * STEP_S}

    def export(self, out: Path, options: dict[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
        self._break("export", options)
        if options["precision"] == self.refused:
            raise ExportError("too much is lost")
        model = _read(inputs["model"])
        self._write(out, f"export {options['name']}", model)
        bits = PRECISIONS[options["precision"]].bits
        return {"bytes": int(model["budget"] * model["values"] * bits / 8) + BESIDE, "task": "toy"}

    def judge(self, out: Path, options: dict[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
        model = json.loads(inputs["bundle"].read_text())
        self._write(out, "judge", model)
        return {"metrics": {"accuracy": 0.9 - 0.3 * (1 - model["budget"]) / (1 + model["steps"])}}

    def _break(self, stage: str, options: Mapping[str, Any]) -> None:
        if self.broken(stage, options):
            raise ValueError("axes don't match\n  array")

    def _write(self, out: Path, what: str, content: dict[str, Any]) -> dict[str, Any]:
        if sum(self.done.values()) == self.dies:
            out.write_text("half")
            raise self.fault
        self.done[what] += 1
        write_json(out, content)
        return {}


def _read(model: Path) -> dict[str, Any]:
    """What a stage wrote of a model; the one that was given is dense."""
    return {**DENSE, **(json.loads(model.read_text()) if model.is_file() else {})}


class InThisProcess:
    """An engine without processes."""

    threads = workers = 1

    def __init__(self, work: Path) -> None:
        self.work = work

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, some: Iterable[Request], done: Callable[[int], None]) -> list[dict[str, Any]]:
        found = []
        for request in some:
            found.append(tasks.perform(self.work, json.loads(json.dumps(request["task"]))))
            done(len(found))
        return found


def search_in(folder: Path, stages: Stages, monkeypatch, options: OptimizeOptions = OPTIONS) -> Search:
    """A search in a folder, or what a killed one left of it."""
    monkeypatch.setattr(tasks, "KINDS", stages.kinds())
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    sources = {name: Source(str(folder / name), name * 8) for name in ("data", "steer", "confirm")}
    model = Source(str(folder / "model.dense"), "m" * 8)
    chains = Chains(model, sources["data"], {part: sources[part] for part in ("steer", "confirm")}, options, False)
    study = Study(folder / "study.journal", options.seed, trims=LAYERS.trims, promising=promising(options))
    engine = InThisProcess(work)
    began, pricing = time.monotonic(), pricing_of(options, ())
    return Search(chains, LAYERS, options, work, "accuracy", Scale(), engine, study, None, began, pricing)


def searched(folder: Path, stages: Stages, monkeypatch, options: OptimizeOptions = OPTIONS) -> list[Trial]:
    """The trials that there are in the end."""
    search = search_in(folder, stages, monkeypatch, options)
    return search.run(search.rivals())
