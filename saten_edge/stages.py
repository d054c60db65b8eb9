"""The stages from weights to a measured report, as functions: the public API, the commands, and the demo in a row."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import saten_exporters
import saten_runtime.bench.measure
from saten_edge.checkpoints.bundle_bytes import dense_layers, reached
from saten_edge.checkpoints.compress import CompressedLayer
from saten_edge.checkpoints.gguf_header import is_gguf
from saten_edge.checkpoints.guard import read_headers
from saten_edge.checkpoints.kept import Kept, keeping
from saten_edge.checkpoints.models import LoadedModel, load_model, save_model
from saten_edge.checkpoints.resolve import resolve_model
from saten_edge.console import Progress, Talk, told
from saten_edge.decomposition.residual import VALUE_BYTES
from saten_edge.engines import ENGINES, Pool
from saten_edge.methods import METHODS, check_shared, follow
from saten_edge.methods.calibrate import described
from saten_edge.methods.method import Job
from saten_edge.options import CompressOptions, EngineOptions, ExportOptions, FinetuneOptions
from saten_edge.ranks import ranks_here
from saten_runtime.accuracy.options import EvalOptions
from saten_runtime.accuracy.results import EVAL_FILE, read_evaluation
from saten_runtime.bench.journal import SUMMARY_FILE
from saten_runtime.bench.plan import BenchFiles, Plan
from saten_runtime.bench.results import BenchResult, read_bench
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import DataError, SatenError, UsageError
from saten_runtime.machine.device import available_memory_bytes
from saten_runtime.machine.lock import output_lock
from saten_runtime.options import arguments_of
from saten_runtime.records.files import read_json, refuse_existing
from saten_runtime.records.folders import check_output
from saten_runtime.records.plain_text import last_line

if TYPE_CHECKING:
    from saten_edge.reports import Report
    from saten_edge.training.data import Examples

__all__ = ["bench", "compress", "evaluate", "export", "finetune", "import_checkpoint", "report"]

LAYERS_FILE = "saten_layers.json"
METRICS_FILE = "metrics.json"
PAGES = (".html", ".htm")


def compress(
    model: str | Path,
    out: str | Path,
    options: CompressOptions | None = None,
    *,
    calibration: Sequence[str | Path] = (),
    engine: EngineOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compress a dense model into a Saten checkpoint by one of `METHODS`, or by two of them in turn.

    model: a folder, a GGUF file, or a name on the Hugging Face hub. out: folder to write. calibration: texts, or files
    of images, by which errors are weighed and layers share the bytes. engine: where layers are decomposed; by this
    process, with all its cores, by default. resume: go on where an interrupted run of the
    same settings stopped, if there is one. progress: called with the stage, the steps done, the steps in all, and what
    comes next. Processes that torchrun started share the calibration texts; the first does all else.

    Returns:
        What `saten_layers.json` in `out` holds; nothing from the others of torchrun. "layers": for each, name, shape
        (in, out), ranks, nnz of the residual, bytes with indices, dense_bytes, and error, relative to the dense weights
        (see `Metric`); "dense": bytes of each parameter that stayed dense. With a precision the bytes are those of the
        bundle to come, and of Saten "stored" says what was asked for and reached: precision, asked, layers, bits for
        each weight of these, beside, and bytes of all.

    Raises:
        UsageError: `out` cannot be written, options contradict each other, the model is compressed already, or what was
            interrupted had other settings.
        KeyboardInterrupt: Ctrl-C; its text says what was kept.
        BudgetError: no train and residual of a layer fit into its bytes.
        CheckpointError, ExportError: the model cannot be read, or has nothing to compress.
        DeviceError: a worker or a process of torchrun was lost.
    """
    options, engine, out = options or CompressOptions(), engine or EngineOptions(), Path(out)
    if engine.name and "saten" not in options.methods:
        raise UsageError(f"--engine {engine.name}: decomposes the layers of --method saten, this is {options.method}")
    for name in options.methods:
        METHODS[name].check(options, bool(calibration))
    with ranks_here() as ranks:
        check_shared(ranks, options.methods, bool(calibration))
        with _writing(out, overwrite=overwrite, inputs=[model]) if ranks.leads else contextlib.nullcontext():
            job = Job(_calibratable(model, options, calibration), options, calibration, progress, ranks=ranks)
            if not ranks.leads:
                return follow(job)
            settings = {
                "model": job.loaded.source,
                "options": _settings(options),
                "calibration": described(calibration),
            }
            with keeping(out, settings, resume=resume) as kept:
                with _started(engine, kept) as pool:
                    job = dataclasses.replace(job, kept=kept, engine=pool)
                    for name in options.methods:
                        job = job.then(METHODS[name].run(job))
                return _save_compressed(job.loaded, list(job.before), out, options, overwrite=overwrite)


def _calibratable(model: str | Path, options: CompressOptions, calibration: Sequence[str | Path]) -> LoadedModel:
    """The model, its weights mapped from their files where no method needs them all in memory.

    Raises:
        UsageError: memory is too small for it, or it takes something else than the calibration gives.
    """
    whole = [name for name in options.methods if METHODS[name].whole(options, bool(calibration))]
    if whole:
        _refuse_too_large(model, whole[0])
    loaded = load_model(model, dtype=torch.float32 if whole else "auto")
    if calibration and (loaded.processor is None) != isinstance(calibration[0], str):
        takes, gives = ("texts", "images") if loaded.processor is None else ("images, in a column image", "texts")
        raise UsageError(f"{model}: takes {takes}, and --calibration gives {gives}")
    return loaded


def _started(engine: EngineOptions, kept: Kept) -> contextlib.AbstractContextManager[Pool | None]:
    """The engine, with one thread for each worker, so that any number of them comes to the same bytes."""
    if engine.name is None or kept.folder is None:
        return contextlib.nullcontext()
    return ENGINES[engine.name](kept.folder, engine.workers, 1, engine.address)


def _refuse_too_large(model: str | Path, method: str) -> None:
    """Refuse a model that a method holds in memory whole, where that does not hold it.

    Raises:
        UsageError: saying what does not need as much.
    """
    folder = resolve_model(str(model))
    needed = 0 if is_gguf(folder) else sum(entry.numel for entry in read_headers(folder).values()) * VALUE_BYTES
    free = available_memory_bytes()
    if free is not None and needed > free:
        how = "--allocation sensitivity" if method == "saten" else f"--method {method}"
        raise UsageError(
            f"{model}: {how} holds the weights in float32, {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory "
            "are free; --allocation uniform calibrates one block at a time, and without --calibration one layer is "
            "read at a time"
        )


def _settings(options: CompressOptions) -> dict[str, Any]:
    """What decides the numbers, as JSON."""
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(options), allow_nan=False))
    return settings


def import_checkpoint(
    src: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read a checkpoint of the Saten authors' code into a Saten checkpoint at `out`; returns what `compress` does.

    src: a state dict, or a folder with it. base: folder or hub name of a dense model of its architecture. task: as on
    the hub; None is what the heads in the checkpoint say.

    Raises:
        UsageError: `out` cannot be written.
        CheckpointError: `src` is no such checkpoint, or does not fit `base`.
    """
    from saten_edge.checkpoints import authors

    src, out = Path(src), Path(out)
    with _writing(out, overwrite=overwrite, inputs=[src, base]):
        with told(progress, f"import {src.name}"):
            loaded, rows = authors.import_checkpoint(src, base, task)
        return _save_compressed(loaded, rows, out, CompressOptions(), overwrite=overwrite)


def finetune(
    model: str | Path,
    out: str | Path,
    data: str | Path | Examples,
    options: FinetuneOptions | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fine-tune a dense or Saten model on labels, towards the dense model it was made from, or both.

    data: a JSON Lines or CSV file, NAME[:CONFIG] of a data set on the hub, or examples. resume: go on where an
    interrupted run of the same settings stopped, if there is one.

    Returns:
        What `metrics.json` in `out` holds: settings, steps, seconds, history (step, loss …), and what the judging data
        said before and after. With notices, where the model was compressed for another precision.

    Raises:
        UsageError: `out` cannot be written, or task, data, teacher and options do not fit together.
        DataError, CheckpointError: data or a model cannot be read.
        KeyboardInterrupt: Ctrl-C; its text says what was kept.
    """
    from saten_edge.training.job import prepare  # the Trainer takes seconds to import
    from saten_edge.training.rounding import precisions

    how, out = options or FinetuneOptions(), Path(out)
    read = str(data) if isinstance(data, Path) else data
    check_output(
        out, overwrite=overwrite, inputs=[model, how.teacher, how.judge, *([read] if isinstance(read, str) else [])]
    )
    judged = (how.judge, how.judge_split)
    job = prepare(model, read, how.task, how.split, how.teacher, *judged, how.schedule, how.distillation, how.columns)
    with job.keeping(out, resume=resume, overwrite=overwrite) as folder:
        try:
            with told(progress, f"fine-tune {Path(model).name} {job.described}") as advance:
                metrics = job.run(
                    folder,
                    resume=resume,
                    report=lambda step: advance(step.done, 1.0, f"step {step.step}, loss {step.loss:.3f}"),
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(job.interrupted(folder)) from None
        extra = {METRICS_FILE: metrics}
        layers = job.student.folder / LAYERS_FILE
        if layers.is_file():
            extra[LAYERS_FILE] = json.loads(layers.read_text("utf-8"))
        if job.writes:
            save_model(job.student, out, extra=extra, overwrite=overwrite)
    notices = job.student.recipe.other_precision(precisions(job.schedule.precision))
    return {**metrics, "notices": notices} if notices else metrics


def export(
    model: str | Path,
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export a dense or Saten model to a bundle at `out`, and verify it against torch.

    Raises:
        UsageError: `out` cannot be written, or there is no such precision, target, lowering or task.
        CheckpointError: the model cannot be read.
        ExportError: the model cannot be expressed, or the target lacks an operator.
        ParityError: ONNX Runtime's outputs differ from torch's beyond the bound.
    """
    options, out = options or ExportOptions(), Path(out)
    dense = None
    if options.dense is not None:
        resolve_model(options.dense)  # before the minutes that the model itself may take
        dense = partial(load_model, options.dense)
    given = {name: value for name, value in vars(options).items() if name not in ("task", "dense", "device")}
    if options.device is not None:
        given["prices"] = _prices_of(options.device, options, progress)
    inputs = [model, options.dense, options.lowering, options.prices]
    with (
        _writing(out, overwrite=overwrite, inputs=inputs),
        told(progress, f"export {options.name or out.name}"),
    ):
        # Handed over as functions, the models are let go when they are not needed.
        return saten_exporters.export(
            partial(load_model, model, options.task), out, **given, dense=dense, overwrite=overwrite
        )


def _prices_of(url: str, options: ExportOptions, progress: Progress | None) -> Path:
    from saten_edge.devices.calibrate import prices_of
    from saten_edge.devices.transports import parse_devices

    (device,) = parse_devices([url])
    with told(progress, f"prices of {device.label}"):
        return prices_of(device, options.target, Talk(quiet=True), emulated=options.emulated)


def bench(
    bundles: Sequence[str | Path],
    plan: Plan | None = None,
    *,
    baseline: str | Path | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure latency (ms), start and memory (bytes) of bundles on this machine: interleaved, each in its own process.

    plan: what is measured; baseline: the bundle that the others are compared with. output: folder for `samples.jsonl`
    and `bench.json`; with resume, what it holds is not measured again.

    Raises:
        UsageError: `output` exists, or the bundles cannot be compared.
        BundleError: a bundle that cannot be opened.
        DeviceError: another benchmark runs on this machine.
        Interrupted: Ctrl-C, after what was measured was written.
    """
    files = BenchFiles(_path(baseline), _path(output), resume, overwrite)
    with told(progress, f"measure {len(bundles)} bundles") as advance:
        return saten_runtime.bench.measure.bench(bundles, plan or Plan(), **vars(files), progress=advance)


def evaluate(
    bundles: Sequence[str | Path],
    data: str | Path,
    options: EvalOptions | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Accuracy of bundles on a data file, measured by `saten_runtime` in a process without torch.

    data: JSON Lines or CSV; its fields say what is measured, such as query and answer, or text and label.

    Returns:
        What `saten-run eval --json` prints; "rows" holds the metrics of each bundle, by name.

    Raises:
        SatenError: what `saten-run eval` refused, with its exit code.
    """
    options = options or EvalOptions()
    options.refuse_existing()
    command = [sys.executable, "-m", "saten_runtime", "eval", *map(str, bundles), "--data", str(data)]
    command += [*arguments_of(options), "--json", "--quiet"]
    with told(progress, f"evaluate {len(bundles)} bundles on {Path(data).name}"):
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise _as_error(done.returncode, done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def report(
    bundles: Sequence[str | Path],
    *,
    benches: Sequence[str | Path | BenchResult] = (),
    evaluations: Sequence[str | Path | dict[str, Any]] = (),
    profiles: Sequence[str | Path] = (),
    output: str | Path | None = None,
    overwrite: bool = False,
) -> Report:
    """Put sizes, latency, memory and accuracy of bundles side by side; the rows are in the order of the bundles.

    benches, evaluations: results, or files or folders with them, one for each device. profiles: files of
    `saten-run profile`. output: HTML page to write. `saten_edge.reports` prints a report as a table, Markdown, CSV or
    JSON.

    Raises:
        UsageError: `output` exists, or has the name of something else.
        BundleError, DataError: a bundle or a result that cannot be read.
    """
    from saten_edge import reports

    if output is not None and not overwrite:
        refuse_existing(Path(output))
    if output is not None and Path(output).suffix.lower() not in PAGES:
        raise UsageError(f"{output}: the report is an HTML page; choose a name that ends in .html")
    built = reports.build_report(
        [Bundle.open(path) for path in bundles],
        reports.join_benches([_result(each, SUMMARY_FILE, read_bench) for each in benches]),
        reports.join_evaluations([_result(each, EVAL_FILE, read_evaluation) for each in evaluations]),
        profiles=[read_json(Path(each), DataError) for each in profiles],
    )
    if output is not None:
        reports.write_html(built, Path(output))
    return built


def _result(
    given: str | Path | BenchResult | dict[str, Any], name: str, check: Callable[[object, str], object]
) -> dict[str, Any]:
    """A result as JSON data. name: of its file, where a folder is given; check: says what it is not, by its place."""
    if isinstance(given, BenchResult):
        return given.to_json()
    if isinstance(given, dict):
        return given
    path = Path(given) / name if Path(given).is_dir() else Path(given)
    data = read_json(path, DataError)
    check(data, str(path))
    return data


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _as_error(code: int, stderr: str) -> SatenError:
    """The one-line error of a `saten-run` process, with its exit code."""
    words = last_line(stderr, f"saten-run ended with code {code}")
    error = SatenError(words.removeprefix("saten-run: error: "))
    error.exit_code = code
    return error


@contextlib.contextmanager
def _writing(out: Path, *, overwrite: bool, inputs: Iterable[str | Path | None]) -> Iterator[None]:
    """While the block works on what shall be at `out`: that it can be written was seen, and nobody else writes there.

    Raises:
        UsageError: as `check_output` and `output_lock` have it.
    """
    check_output(out, overwrite=overwrite, inputs=inputs)
    with output_lock(out):
        yield


def _save_compressed(
    loaded: LoadedModel, rows: list[CompressedLayer], out: Path, options: CompressOptions, *, overwrite: bool
) -> dict[str, Any]:
    precision = options.counted
    changed = {f"{row.name}.weight" for row in rows}  # of a method that makes smaller dense layers, they are there yet
    dense = {name: size for name, size in dense_layers(loaded.model, precision).items() if name not in changed}
    table: dict[str, Any] = {"layers": [dataclasses.asdict(row) for row in rows], "dense": dense}
    if precision is not None and "saten" in options.methods:
        table["stored"] = reached(loaded, rows, precision, options.asked)
    save_model(loaded, out, extra={LAYERS_FILE: table}, overwrite=overwrite)
    return table
