"""torch model → verified bundle on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from saten_exporters import quantize
from saten_exporters.bundles.card import model_card
from saten_exporters.bundles.judge import Judge, answers_of, cases_of, judge_of, judged, refuse_loss
from saten_exporters.bundles.numbers import refuse_loose_json, refuse_unstorable
from saten_exporters.bundles.preparation import Preparation, generation_of, prepare, save_settings, save_steps
from saten_exporters.bundles.verify import DERIVED, approximation, measured_bound, rounding_bound, write_cases
from saten_exporters.choice.lowerings import lowerings_of
from saten_exporters.choice.prices import Prices, prices_for
from saten_exporters.choice.settings import DEFAULT_TARGET, LARGEST_LOSS, ExportSettings
from saten_exporters.choice.targets import TARGETS, Target, check_operators
from saten_exporters.exportable import Exportable
from saten_exporters.passes import run_passes
from saten_exporters.sources.check import check_settings
from saten_exporters.tracing.mixed import ALIKE, BLOCKS, Mixed, mixed_layers
from saten_exporters.tracing.signatures import kind_of, name_on_the_device, task_of
from saten_exporters.tracing.trace import forget_graphs, trace
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import MANIFEST_FILE, SCHEMA_VERSION, FileEntry, Layer, Manifest, Postprocess, sealed
from saten_runtime.bundle.recipe import OTHERWISE, Stage, options_of, versions_here
from saten_runtime.errors import ExportError, UsageError
from saten_runtime.records.files import sha256_file, write_json
from saten_runtime.records.folders import new_folder
from saten_runtime.run.parity import Arrays, Comparison, compare
from saten_runtime.run.parity import judge as refuse_beyond_bounds
from saten_runtime.run.session import refuse_older
from saten_runtime.vocabulary.files import CARD_FILE, MODEL_FILE

__all__ = ["PRECISIONS", "export"]

PRECISIONS = tuple(quantize.PRECISIONS)

# Large weights start where Windows, too, can map a file into memory; padding small ones would waste more than it gives.
ALIGNMENT_BYTES = 64 * 1024
ALIGNED_FROM_BYTES = 1024 * 1024

# What a bundle is judged by, and what torch answers to it.
Asked = tuple[Judge, list[Arrays]]


def export(
    model: Exportable | Callable[[], Exportable],
    out: str | Path,
    *,
    name: str | None = None,
    precision: str = "fp32",
    target: str = DEFAULT_TARGET,
    rows: int = 128,
    lowering: str | Path | None = None,
    prices: str | Path | None = None,
    emulated: bool = False,
    dense: Exportable | Callable[[str], Exportable] | None = None,
    judge: str | Path | None = None,
    max_loss: float = LARGEST_LOSS,
    overwrite: bool = False,
) -> Bundle:
    """Trace, lower, quantize, write and verify; the bundle appears at `out` complete or not at all.

    model: a loaded model, or a function that gives one. What a function gave is let go again before ONNX Runtime loads
    the graph, so that it takes half the memory. name: what results are reported under; the folder's own name by
    default. dense: the model that a compressed one was made of, or a function that gives it for a task of the hub;
    how far it is from that is reported apart from how far the graph is from torch. rows, lowering, prices, emulated:
    as in `ExportSettings`. judge: data file to measure on what a precision below fp32 costs, a built-in text by
    default; max_loss: what it may cost, see `saten_runtime.bundle.manifest.Judgement`; infinity allows all that is a
    number.

    Raises:
        UsageError: `out` exists, or there is no such precision or target, or `dense` is no model of the same kind, or
            the prices are of another kind of device.
        DataError: `judge` cannot be read, or does not fit the task, or `prices` is no such file.
        ExportError: the model cannot be expressed, or the target lacks an operator.
        RuntimeMismatch: the ONNX Runtime that is installed is too old for the precision.
        ParityError: ONNX Runtime's outputs differ from torch's beyond the bound, or the precision costs too much.
    """
    _known("precision", precision, PRECISIONS)
    _known("target", target, TARGETS)
    path = Path(out)
    asked_for = (None if lowering is None else str(lowering), None if prices is None else Path(prices), emulated)
    settings = ExportSettings(precision, target, rows, *asked_for)
    smallest = TARGETS[target].smallest_for(quantize.PRECISIONS[precision])
    refuse_older(f"--precision {precision}", smallest, version("onnxruntime"))
    used = prices_for(target, prices, emulated=emulated)
    with new_folder(path, overwrite=overwrite) as folder:
        manifest, asked = _write_model(
            model, folder, name or path.name, settings, used, None if judge is None else Path(judge)
        )
        forget_graphs()
        _write_manifest(folder, manifest)
        apart = [] if dense is None else _compare_dense(dense, folder)
        manifest = _judge(folder, manifest, asked, max_loss)
        comparisons = _compare(folder, manifest)
        for add in TARGETS[target].extras:
            add(folder)
        refuse_loose_json(folder)
        _write_reports(folder, manifest, comparisons, apart)
    return Bundle.open(path, check_content=False)  # as it was hashed and compared


def _write_model(
    model: Exportable | Callable[[], Exportable],
    folder: Path,
    name: str,
    settings: ExportSettings,
    prices: Prices,
    file: Path | None,
) -> tuple[Manifest, Asked]:
    """All that torch is needed for: the graph, and what torch computes of every case and of the text of the judge."""
    target = TARGETS[settings.target]
    source = model() if callable(model) else model
    parts = source.layer_parts()
    # Whatever can be refused is, before the minutes that tracing takes.
    task_of(source)
    notices = [*check_settings(source), *source.recipe.other_precision([settings.precision])]
    _refuse_half(source)
    judge = judge_of(source, file)
    lowerings_of(settings.lowering, parts)
    prepared = prepare(source, folder)
    refuse_unstorable(source, settings.precision)
    mixed = _mixed(source, settings)
    exported = trace(source, target)
    of_device = None if settings.prices is None else prices
    layers, otherwise = run_passes(exported.program, parts, settings, mixed, of_device)
    check_operators(exported.program, target)
    _save_configs(exported, folder)
    _save_graph(exported.program, folder, target)
    graph = exported.program.graph
    save_settings(source, folder)
    write_cases(source, folder, [str(value.name) for value in graph.outputs])
    save_steps(source, folder)
    manifest = replace(
        _manifest(source, prepared, name, settings, target, graph, layers, mixed),
        notices=[*notices, *([prices.notice] if prices.notice else [])],
        recipe=source.recipe.then(_stage(source, settings, prices, otherwise)),
    )
    judging = settings.precision != "fp32"
    return manifest, (judge, answers_of(source, judge, task_of(source).outputs) if judging else [])


def _compare_dense(dense: Exportable | Callable[[str], Exportable], folder: Path) -> list[Comparison]:
    """How far what torch computed of the cases in a bundle is from what it computes of them with `dense`."""
    bundle = Bundle.open(folder)
    return approximation(bundle, dense(bundle.task.hub) if callable(dense) else dense)


def _refuse_half(source: Exportable) -> None:
    """Refuse weights in another type than float32, which torch would compute another answer with."""
    odd = {str(parameter.dtype) for parameter in source.model.parameters()} - {"torch.float32"}
    if odd:
        raise ExportError(f"{source.source['model']}: has weights in {odd.pop()}; load it with dtype=torch.float32")


def _known(what: str, value: str, known: Any) -> None:
    if value not in known:
        raise UsageError(f"--{what} {value}: there are {', '.join(known)}")


def _save_configs(exported: Any, folder: Path) -> None:
    """export.json and config.json as transformers writes them, and an empty graph for `_save_graph` to write over."""
    empty = ir.Model(ir.Graph([], [], nodes=[]), ir_version=exported.program.ir_version)
    components = {name: replace(each, program=empty) for name, each in exported.components.items()}
    hollow = type(exported)(components, exported.export_format, exported.config, exported.generation_config)
    hollow.save_pretrained(folder)


def _save_graph(model: ir.Model, folder: Path, target: Target) -> None:
    """model.onnx and model.onnx.data.

    Raises:
        ExportError: the graph is not valid ONNX, such as two values of one name.
    """
    model.ir_version = target.ir_version
    model.producer_name, model.producer_version = "saten-edge", version("saten-edge")
    ir.save(
        model,
        folder / MODEL_FILE,
        external_data="model.onnx.data",
        alignment=ALIGNMENT_BYTES,
        align_threshold=ALIGNED_FROM_BYTES,
    )
    try:
        onnx.checker.check_model(str(folder / MODEL_FILE))
    except onnx.checker.ValidationError as cause:
        raise ExportError(f"the graph is not valid ONNX ({' '.join(str(cause).split())[:200]})") from None


def _manifest(
    source: Exportable,
    prepared: Preparation,
    name: str,
    settings: ExportSettings,
    target: Target,
    graph: ir.Graph,
    layers: list[Layer],
    mixed: Mixed,
) -> Manifest:
    packages = ("saten-edge", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime")
    return Manifest(
        schema_version=SCHEMA_VERSION,
        made_by={package: version(package) for package in packages},
        name=name,
        source=source.source,
        task=name_on_the_device(source),
        precision=settings.precision,
        target=settings.target,
        rows=settings.rows,
        opset=target.opset,
        ir_version=target.ir_version,
        smallest_onnxruntime=target.smallest_for(quantize.PRECISIONS[settings.precision]),
        inputs=[value.name or "" for value in graph.inputs if value.const_value is None],
        outputs=[value.name or "" for value in graph.outputs],
        tokenizer=prepared.tokenizer,
        postprocess=source.postprocess if task_of(source).pooled else Postprocess(),
        tolerance={"relative": rounding_bound(graph, settings.precision)} if settings.precision in DERIVED else {},
        layers=layers,
        mixed=dict.fromkeys(mixed.layers, BLOCKS),
        labels=prepared.labels,
        image=prepared.image,
        generation=generation_of(source, graph, prepared.choice) if prepared.choice else None,
        session_entries=dict(quantize.PRECISIONS[settings.precision].session_entries),
    )


def _mixed(source: Exportable, settings: ExportSettings) -> Mixed:
    """Layers to store more exactly, by the built-in text; none of a model that takes pictures."""
    if kind_of(source).pictures:
        return ALIKE
    texts = (case.inputs for case in cases_of(source, judge_of(source, None)))
    return mixed_layers(source, settings.precision, texts)


def _stage(source: Exportable, settings: ExportSettings, prices: Prices, otherwise: dict[str, str]) -> Stage:
    """What the recipe says of the export."""
    inputs = {"model": options_of(**source.source), "prices": prices.source}
    outcome = {} if settings.prices is None else options_of(**{OTHERWISE: otherwise})
    return Stage("export", settings.recorded(), inputs, outcome, versions_here())


def _judge(folder: Path, manifest: Manifest, asked: Asked, largest: float) -> Manifest:
    """The manifest with what its precision costs; at fp32, whose outputs are verified to rounding, as it is.

    Raises:
        ParityError: it costs more than the largest loss.
    """
    judge, answers = asked
    if not answers:
        return manifest
    found = judged(Bundle.open(folder), judge, answers)
    refuse_loss(manifest.name, manifest.precision, found, largest)
    return replace(manifest, judgement=found)


def _compare(folder: Path, manifest: Manifest) -> list[Comparison]:
    """Compare with torch; where no bound is derived, the manifest gets a measured one.

    Raises:
        ParityError: an output differs beyond the bound.
    """
    comparisons = compare(Bundle.open(folder))
    if manifest.precision not in DERIVED:
        bound = measured_bound(manifest.name, manifest.precision, comparisons)
        manifest.tolerance["relative"] = bound
        comparisons = [replace(row, bound=bound) for row in comparisons]
    refuse_beyond_bounds(manifest.name, comparisons)
    return comparisons


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put size and sha256 of every file of the bundle into its manifest, and write that; no file is written twice."""
    known = dict(manifest.files)
    manifest.files.clear()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST_FILE:
            name = path.relative_to(folder).as_posix()
            manifest.files[name] = known.get(name) or FileEntry(path.stat().st_size, sha256_file(path))
    write_json(folder / MANIFEST_FILE, sealed(manifest))


def _write_reports(folder: Path, manifest: Manifest, comparisons: list[Comparison], apart: list[Comparison]) -> None:
    """report.json and the card; apart: from the dense model, empty where that is not at hand."""
    report = {"comparisons": [row.to_json() for row in comparisons], "approximation": [row.to_json() for row in apart]}
    write_json(folder / "validation" / "report.json", report)
    (folder / CARD_FILE).write_text(model_card(manifest, comparisons, apart), encoding="utf-8")
    _write_manifest(folder, manifest)
