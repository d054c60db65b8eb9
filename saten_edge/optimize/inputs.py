"""What a search starts from: model, data and judge, read and checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from saten_edge.checkpoints.models import task_in
from saten_edge.checkpoints.resolve import resolve_model
from saten_edge.optimize.estimate import Layers, layers_of
from saten_edge.optimize.judging import Judge, Scale, needs_head, read_judge, scale_of
from saten_edge.options import DEFAULT_BATCH, OptimizeOptions
from saten_edge.texts import read_items
from saten_edge.training.job import head_of
from saten_edge.training.objectives import TRAININGS
from saten_edge.trimming import rows_left
from saten_runtime.errors import ExportError, UsageError
from saten_runtime.records.files import digest_of, sha256_file
from saten_runtime.vocabulary.tasks import TEXT_CLASSIFICATION, TEXT_GENERATION, TEXT_REGRESSION, device_task

__all__ = ["Given", "model_hash", "read_inputs", "settled"]

# Examples of the data, at least → how many a step takes, where nobody says it. A step of 128 short texts takes 2.4
# times as long as one of 32, so that minutes pay for more texts; few of them would make few steps.
BATCHES = ((20_000, 128), (0, DEFAULT_BATCH))
# task → why its models are not trimmed
UNTRIMMED = {
    TEXT_GENERATION.name: "a perplexity is one of pieces and says nothing between models with other pieces, and what a "
    "model writes would be of the words of --data alone"
}


@dataclass(frozen=True)
class Given:
    """metric, scale: what decides. headless: the model has to learn the labels first. hashes: sha256 by role."""

    model: str
    data: Path
    judge: Judge
    metric: str
    scale: Scale
    layers: Layers
    headless: bool
    hashes: dict[str, str]


def read_inputs(model: str, data: Path, judge: Path, options: OptimizeOptions) -> Given:
    """Read them.

    Raises:
        SatenError: whatever cannot be read, or does not fit together.
    """
    if not data.is_file():
        raise UsageError(f"--data {data}: no such file; optimize reads files, so that what it was made of is known")
    folder = resolve_model(model)
    head, found = head_of(folder), read_judge(judge, data)
    task = device_task(task_in(folder), head.labels or 0).name
    headless = needs_head(found, task)
    if headless:
        task = TEXT_CLASSIFICATION.name if _are_classes(found) else TEXT_REGRESSION.name
    if task not in TRAININGS:
        raise UsageError(f"{model}: is for {task}, which cannot be fine-tuned; there are {', '.join(TRAININGS)}")
    metric, scale = scale_of(found, task, options.metric)
    hashes = {"model": model_hash(folder), "data": sha256_file(data), "judge": found.sha256}
    return Given(model, data, found, metric, scale, _layers(folder, data, task, options), headless, hashes)


def settled(options: OptimizeOptions, data: Path) -> OptimizeOptions:
    """The options with a batch size that suits the data, where none was asked for.

    Raises:
        DataError: the data cannot be read.
    """
    if options.batch_size is not None:
        return options
    count = len(read_items(data))
    return replace(options, batch_size=next(size for least, size in BATCHES if count >= least))


def _layers(folder: Path, data: Path, task: str, options: OptimizeOptions) -> Layers:
    """The layers of the model, and what trimming leaves of them, or why it does not."""
    whole = layers_of(folder)
    why = "--no-trim" if not options.trim else UNTRIMMED.get(task, "")
    if why:
        return replace(whole, untrimmed=why)
    try:
        left = rows_left(folder, data)
    except (ExportError, UsageError) as cause:
        return replace(whole, untrimmed=str(cause))
    if left.after == left.before:
        return replace(whole, untrimmed=f"{data.name} and every text need all {left.before} rows of its word table")
    return replace(whole, trimmed=layers_of(folder, left))


def model_hash(folder: Path) -> str:
    """Of all files of a model that say anything of it, or of its one file."""
    if folder.is_file():
        return sha256_file(folder)
    kinds = ("*.safetensors", "*.json", "*.txt", "*.model")
    files = sorted(path for kind in kinds for path in folder.rglob(kind) if path.is_file())
    return digest_of({path.relative_to(folder).as_posix(): sha256_file(path) for path in files})


def _are_classes(judge: Judge) -> bool:
    return all(float(label).is_integer() for label in judge.data.columns.get("label", []))
