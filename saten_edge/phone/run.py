"""One phone's turn: a token, what the page posted, and the files that come of it.

received.jsonl    see `saten_edge.phone.received`
samples.jsonl     raw samples, as `saten_runtime.bench.measure` writes them
bench.json        from the posted samples, by `saten_runtime.bench.summary`
eval.json         from the posted outputs, by `saten_runtime.accuracy.measures.MEASURES`
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import Any

from saten_edge import __version__
from saten_edge.phone import ort
from saten_edge.phone.job import Job, graph_files
from saten_edge.phone.questions import Outputs, validation_sha256
from saten_edge.phone.received import Mismatch, Received
from saten_edge.phone.schema import Answer, Bench, Device, End, Post
from saten_runtime.accuracy.results import EVAL_FILE, SCHEMA_VERSION, EvalData, EvalResult, EvalRow, Metrics
from saten_runtime.bench.journal import Journal
from saten_runtime.bench.plan import Key, Setup, Size
from saten_runtime.bench.results import BenchResult, LoadMemory
from saten_runtime.bench.summary import Measured, Start, summary
from saten_runtime.machine.device import State
from saten_runtime.machine.memory import Memory
from saten_runtime.records.files import write_json
from saten_runtime.run.parity import Comparison

__all__ = ["AGREEMENT", "Run"]

AGREEMENT = "agreement with torch"
"""Task of eval.json when there is no data file: the validation cases alone."""

_MEMORY_MODE = "fast"
_UNKNOWN_STATE = State(None, None, None, None, None, None)
_NO_READING = LoadMemory(Memory(), Memory(), Memory())  # a browser does not tell what a process takes


class Run(Received):
    """A benchmark and an exam; bench and evaluation are None before they came."""

    def __init__(self, job: Job, folder: Path) -> None:
        super().__init__(job.to_json(), folder)
        self.bench: BenchResult | None = None
        self.evaluation: EvalResult | None = None
        self._job = job
        self._names = list(job.bundles)
        self._answers: dict[str, dict[int, tuple[Answer, Outputs]]] = defaultdict(dict)

    @property
    def has_results(self) -> bool:
        """Whether the times came, or answers to all questions."""
        return self.bench is not None or self.evaluation is not None

    def close(self) -> None:
        """Take no more, and score the bundles that answered everything; harmless when done before."""
        if not self._open:
            return
        super().close()
        complete = [name for name in self._names if len(self._answers[name]) == len(self._job.exams[name].questions)]
        if complete:
            self.evaluation = self._evaluate(complete)
            write_json(self.folder / EVAL_FILE, self.evaluation.to_json())

    def _take(self, post: Post, user_agent: str) -> dict[str, Any]:
        if isinstance(post, Answer):
            return self._take_answer(post)
        if isinstance(post, Bench):
            return self._take_bench(post, user_agent)
        if isinstance(post, End):
            self.close()
            return {"rows": [dataclasses.asdict(row) for row in self.evaluation.rows] if self.evaluation else []}
        return super()._take(post, user_agent)

    def _take_answer(self, post: Answer) -> dict[str, Any]:
        name = self._name(post.bundle)
        self._check_loaded(name, post.loaded)
        exam = self._job.exams[name]
        if post.question >= len(exam.questions):
            raise Mismatch(f"question {post.question}: {name} was asked {len(exam.questions)}")
        outputs = {output: value.array() for output, value in post.outputs.items()}
        wanted = exam.questions[post.question].outputs
        found = {output: array.shape for output, array in outputs.items()}
        if found != wanted:
            raise Mismatch(f"question {post.question}: found outputs of the shapes {found}, expected {wanted}")
        self._answers[name][post.question] = (post, outputs)
        return {}

    def _take_bench(self, post: Bench, user_agent: str) -> dict[str, Any]:
        for index, loaded in post.loaded.items():
            self._check_loaded(self._name(int(index)), loaded)
        agreement = {name: self._compare(name) for name in self._names}
        measured = self._measured(post, self._environment(post.device, user_agent, agreement))
        reasons = [
            *(["the page was in the background during the run; keep it open and the screen on"] if post.hidden else []),
            *(reason for name, compared in agreement.items() for reason in _disagreements(name, compared)),
        ]
        with Journal(self.folder, overwrite=True) as journal:
            _write_samples(journal, measured, post)
            result = summary(measured, _UNKNOWN_STATE, reasons)
            known = {key: value for key, value in result.environment.items() if key != "after"}
            self.bench = dataclasses.replace(result, environment=known)
            journal.finish(self.bench)
        answer = self.bench.to_json()
        return {"cells": answer["cells"], "verdict": answer["verdict"]}

    def _measured(self, post: Bench, environment: dict[str, Any]) -> Measured:
        job = self._job
        measured = Measured(job.plan, job.bundles, job.sizes, job.baseline, environment, [_UNKNOWN_STATE])
        cells = set(measured.cells())
        for failure in post.failures:
            reason = f"on the page: {failure.reason}"
            setup = Setup(failure.threads, _MEMORY_MODE)
            failed = {key: reason for key in cells if (key.bundle, key.setup) == (self._name(failure.bundle), setup)}
            if not failed:
                raise Mismatch(f"failures: {setup} was not asked for")
            measured.failed.update(failed)
        for start in sorted(post.starts, key=lambda start: start.round):
            where = (self._name(start.bundle), Setup(start.threads, _MEMORY_MODE))
            self._check_round("starts", start.round, len(measured.starts[where]), where[1] in job.plan.setups)
            measured.starts[where][start.round] = Start(start.cold_load_ms, start.session_ms, start.first_run_ms)
            measured.memory[where] = _NO_READING
        for turn in sorted(post.turns, key=lambda turn: turn.round):
            size = Size(turn.batch, turn.tokens)
            key = Key(self._name(turn.bundle), Setup(turn.threads, _MEMORY_MODE), size)
            self._check_round("turns", turn.round, len(measured.samples[key]), key in cells)
            self._check_served(key.bundle, post.loaded)
            measured.samples[key][turn.round] = turn.samples_ns
        return measured

    def _check_served(self, name: str, loaded: dict[str, Any]) -> None:
        if str(self._names.index(name)) not in loaded:
            raise Mismatch(f"loaded: {name} was measured, but the page did not say which files it loaded")

    def _check_round(self, where: str, number: int, expected: int, asked: bool) -> None:
        """Each round of a cell once, none left out: ratios pair them by their place."""
        if not asked or number != expected or number >= self._job.plan.rounds:
            raise Mismatch(
                f"{where}: round {number} was not asked for, expected round {expected} of what the plan lists"
            )

    def _check_loaded(self, name: str, loaded: dict[str, str]) -> None:
        served = {file: entry.sha256 for file, entry in graph_files(self._job.bundles[name]).items()}
        if loaded != served:
            raise Mismatch(f"{name}: the page ran files of another sha256 than this run serves; load the page again")

    def _name(self, index: int) -> str:
        if index >= len(self._names):
            raise Mismatch(f"bundle {index}: this run serves {len(self._names)}")
        return self._names[index]

    def _compare(self, name: str) -> list[Comparison]:
        """Of the validation cases that were answered; empty until all were."""
        exam, answers = self._job.exams[name], self._answers[name]
        if not set(range(len(exam.cases))) <= set(answers):
            return []
        return exam.compare([answers[index][1] for index in range(len(exam.cases))])

    def _environment(self, device: Device, user_agent: str, agreement: dict[str, list[Comparison]]) -> dict[str, Any]:
        return {
            "device": "browser",
            "user_agent": user_agent,
            "run": self.id,
            "runtime": "WebAssembly with SIMD, in a fresh worker per bundle and round",
            "cores": device.cores,
            "memory_gib": device.memory_gib,
            "cross_origin_isolated": device.isolated,
            "secure_context": device.secure,
            "clock_step_ns": device.tick_ns,
            "packages": {"saten-edge": __version__, "onnxruntime-web": ort.VERSION},
            "plan": self._job.plan.to_json(),
            "models": {
                name: {file: entry.sha256 for file, entry in graph_files(bundle).items()}
                for name, bundle in self._job.bundles.items()
            },
            AGREEMENT: {name: _agreement(compared) for name, compared in agreement.items() if compared},
        }

    def _evaluate(self, names: list[str]) -> EvalResult:
        job = self._job
        exams = {name: job.exams[name] for name in names}
        answers = {
            name: [self._answers[name][index] for index in range(len(exam.questions))] for name, exam in exams.items()
        }
        measure, data = exams[names[0]].measure, exams[names[0]].data
        rows = self._agree(names) if measure is None else self._score(names)
        seconds = {name: sum(post.elapsed_ns for post, _ in given) / 1e9 for name, given in answers.items()}
        cases = sum(len(exam.cases) for exam in exams.values())
        described = EvalData("validation cases", validation_sha256(exams), cases)
        if data is not None:
            described = EvalData(data.path.name, data.sha256, data.count)
        task = AGREEMENT if measure is None else measure.name
        return EvalResult(SCHEMA_VERSION, task, described, [EvalRow(name, rows[name], seconds[name]) for name in names])

    def _agree(self, names: list[str]) -> dict[str, Metrics]:
        return {name: {**_agreement(self._compare(name))} for name in names}

    def _score(self, names: list[str]) -> dict[str, Metrics]:
        examined = {}
        for name in names:
            exam, given = self._job.exams[name], self._answers[name]
            examined[name] = exam.examine([given[index][1] for index in range(len(exam.questions))])
        reference = examined.get(self._job.reference or "")
        return {name: self._job.exams[name].score(said, reference) for name, said in examined.items()}


def _agreement(compared: list[Comparison]) -> dict[str, float]:
    """The worst of all cases; empty when an output had another shape or was not finite."""
    if not all(comparison.holds for comparison in compared if comparison.bound is None):
        return {}
    return {
        "cosine": min(comparison.cosine for comparison in compared),
        "relative_error": max(comparison.relative_error for comparison in compared),
    }


def _disagreements(name: str, compared: list[Comparison]) -> list[str]:
    if not compared:
        return [f"{name}: did not answer its validation cases"]
    failed = [comparison for comparison in compared if not comparison.holds]
    return (
        [f"{name}: {len(failed)} of {len(compared)} outputs differ from torch's beyond their bound"] if failed else []
    )


def _write_samples(journal: Journal, measured: Measured, post: Bench) -> None:
    names = list(measured.bundles)
    journal.write("environment", measured.environment)
    for kind, parts in (("start", post.starts), ("samples", post.turns)):
        for part in parts:
            journal.write(kind, {**dataclasses.asdict(part), "bundle": names[part.bundle], "memory_mode": _MEMORY_MODE})
