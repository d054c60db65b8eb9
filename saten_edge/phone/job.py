"""What the page is asked to do: bundles, sizes, and who runs in which order."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saten_edge.phone import ort
from saten_edge.phone.questions import Exam, first_examples, make_exam
from saten_edge.phone.schema import MOST_SAMPLES
from saten_runtime.bench.plan import Plan, Size, turns
from saten_runtime.bench.verdict import MIN_SAMPLES
from saten_runtime.bundle.folder import Bundle, open_bundles
from saten_runtime.bundle.manifest import FileEntry
from saten_runtime.errors import UsageError
from saten_runtime.run.text import Encoder, random_feeds
from saten_runtime.vocabulary.files import MODEL_FILE
from saten_runtime.vocabulary.tasks import FEATURE_EXTRACTION, TASKS, TEXT_CLASSIFICATION, TEXTS

__all__ = ["Job", "graph_files", "make_job"]

PAGE_TASKS = (FEATURE_EXTRACTION, TEXT_CLASSIFICATION)
WARMUP_RUNS = 3  # as `saten_runtime.bench.measure`
WARMUP_MS = 200  # and so long at least: browsers compile what runs often once more, in the background


@dataclass(frozen=True)
class Job:
    """The same for every phone. bundles, exams: by name, in the order of the command line.

    sizes: what is timed. baseline, reference: names among them, or None. vocabulary: ids below it are valid for all.
    sheets: by name, the questions of the exam as JSON, which the page downloads like a file.
    """

    bundles: dict[str, Bundle]
    exams: dict[str, Exam]
    sheets: dict[str, bytes]
    plan: Plan
    sizes: list[Size]
    baseline: str | None
    reference: str | None
    vocabulary: int

    def to_json(self) -> dict[str, Any]:
        """For the page; everything it loops over is spelled out, in order."""
        plan = self.plan
        cells = len(plan.setups) * len(self.sizes) * len(self.bundles) * plan.rounds
        indices = [str(index) for index in range(len(self.bundles))]
        return {
            "ort": {"version": ort.VERSION, "module": ort.MODULE, "wasm": ort.WASM},
            "baseline": self.baseline,
            "bundles": [self._bundle(name, bundle) for name, bundle in self.bundles.items()],
            "threads": list(plan.threads),
            "sizes": [self._size(size.batch, size.tokens) for size in self.sizes],
            "rounds": [[int(index) for index in turns(indices, number)] for number in range(plan.rounds)],
            "warmup": WARMUP_RUNS,
            "warmup_ms": WARMUP_MS,
            "iterations": math.ceil(MIN_SAMPLES / plan.rounds),
            "min_ms": plan.min_time_s * 1e3 / plan.rounds,
            "most_samples": MOST_SAMPLES // cells,
        }

    @property
    def threads(self) -> int:
        """The most that it is asked to run with."""
        return max(self.plan.threads)

    def files(self) -> dict[str, Path | bytes]:
        """Everything the page may download, by sha256: where it lies, or its content."""
        graphs: dict[str, Path | bytes] = {
            entry.sha256: bundle.path / name
            for bundle in self.bundles.values()
            for name, entry in graph_files(bundle).items()
        }
        return graphs | {_sha256(sheet): sheet for sheet in self.sheets.values()}

    def _bundle(self, name: str, bundle: Bundle) -> dict[str, Any]:
        exam = self.exams[name]
        files = [
            {"name": file, "bytes": entry.bytes, "sha256": entry.sha256} for file, entry in graph_files(bundle).items()
        ]
        return {
            "name": name,
            "dense": bundle.manifest.is_dense,
            "inputs": bundle.manifest.inputs,
            "files": files,
            "sheet": {"name": "questions", "bytes": len(self.sheets[name]), "sha256": _sha256(self.sheets[name])},
            "cases": len(exam.cases),
            "questions": len(exam.questions),
        }

    def _size(self, batch: int, tokens: int) -> dict[str, Any]:
        names = ("input_ids", "attention_mask", "token_type_ids")
        feeds = random_feeds(names, vocabulary=self.vocabulary, batch=batch, tokens=tokens)
        return {
            "batch": batch,
            "tokens": tokens,
            "feeds": {name: array.ravel().tolist() for name, array in feeds.items()},
        }


def make_job(
    bundles: Sequence[str | Path],
    plan: Plan,
    *,
    baseline: Path | None = None,
    reference: Path | None = None,
    data: Path | None = None,
    examples: int = 200,
) -> Job:
    """Open and check everything that will be served.

    examples: how many of the data file are asked.

    Raises:
        BundleError: a bundle that cannot be opened, or carries no validation cases.
        DataError: the data file cannot be read, or fits no measure of a bundle's task.
        UsageError: bundles, plan and options that do not fit together.
    """
    named = open_bundles(bundles)
    base, target = _among(named, "--baseline", baseline), _among(named, "--reference", reference)
    sizes = _sizes(named, plan)
    chosen = first_examples(data, examples) if data else None
    exams = {name: make_exam(bundle, chosen) for name, bundle in named.items()}
    measures = {exam.measure for exam in exams.values()}
    if len(measures) > 1:
        raise UsageError(f"{', '.join(named)}: have different tasks; serve them separately")
    (measure,) = measures
    if target is not None and (measure is None or not TASKS[measure.bundle_task].pooled):
        raise UsageError("--reference: needs --data on which the bundles give embeddings")
    vocabulary = min(Encoder(bundle).vocabulary for bundle in named.values())
    sheets = {name: _sheet(exam) for name, exam in exams.items()}
    return Job(named, exams, sheets, plan, sizes, base, target, vocabulary)


def graph_files(bundle: Bundle) -> dict[str, FileEntry]:
    """What the page downloads of a bundle: the graph and its weights."""
    return {name: entry for name, entry in bundle.manifest.files.items() if name.startswith(MODEL_FILE)}


def _sheet(exam: Exam) -> bytes:
    return json.dumps([question.to_json() for question in exam.questions], allow_nan=False).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _among(named: dict[str, Bundle], option: str, path: Path | None) -> str | None:
    if path is None:
        return None
    for name, bundle in named.items():
        if bundle.path.resolve() == path.resolve():
            return name
    raise UsageError(f"{option} {path}: is not among the bundles; add it to them")


def _sizes(named: dict[str, Bundle], plan: Plan) -> list[Size]:
    """What is timed, the same for all bundles.

    Raises:
        UsageError: a bundle of a task the page has no questions for, or a plan that does not fit it or one post.
    """
    for name, bundle in named.items():
        if bundle.task not in PAGE_TASKS or bundle.items != TEXTS:
            measured = ", ".join(task.name for task in PAGE_TASKS)
            raise UsageError(
                f"{name}: is for {bundle.manifest.task} of {bundle.items}; the page measures {measured} of {TEXTS}"
            )
        longest = bundle.tokenizer.max_length
        if max(plan.tokens) > longest:
            raise UsageError(f"{name}: takes at most {longest} tokens, found {max(plan.tokens)}; lower --tokens")
    sizes = plan.sizes(TEXTS)
    needed = len(plan.setups) * len(sizes) * len(named) * plan.rounds * math.ceil(MIN_SAMPLES / plan.rounds)
    if needed > MOST_SAMPLES:
        raise UsageError(
            f"the plan takes at least {needed} samples, one post holds {MOST_SAMPLES}; measure less at once"
        )
    return sizes
