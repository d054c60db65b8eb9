"""From a goal to a folder with the answer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saten_edge.checkpoints.resolve import resolve_model
from saten_edge.console import Progress
from saten_edge.engines import ENGINES
from saten_edge.optimize.chains import Chains
from saten_edge.optimize.decay import promising
from saten_edge.optimize.finals import Finals, Measured
from saten_edge.optimize.goal import Row, answer, missed
from saten_edge.optimize.inputs import Given, read_inputs, settled
from saten_edge.optimize.lengths import training_of
from saten_edge.optimize.measuring import reach
from saten_edge.optimize.output import (
    BASELINES,
    CHOSEN,
    RECIPE_FILE,
    REPORT_FILE,
    RESULT_FILE,
    STUDY_FILE,
    WORK,
    claim,
    put,
)
from saten_edge.optimize.planning import Planned, planned, refuse_impossible
from saten_edge.optimize.pricing import Pricing, prices_in, pricing_of
from saten_edge.optimize.replay import recipe_of
from saten_edge.optimize.search import Search, refuse_failures
from saten_edge.optimize.showing import defects_of, sentence, trials_of, write_report
from saten_edge.optimize.study import Study, optuna_here
from saten_edge.optimize.tasks import Source
from saten_edge.options import OptimizeOptions
from saten_edge.recipes import write_recipe
from saten_runtime.bundle.folder import Bundle
from saten_runtime.machine.lock import output_lock
from saten_runtime.records.files import sha256_file, write_json

__all__ = ["Found", "optimize", "plan", "searching"]


@dataclass(frozen=True)
class Found:
    """What a search came to.

    answer: in one sentence. best: the chosen bundle's row; None where nothing met the goal, and then `missed` says what
    would have to give. rows: all that was measured. invalid: why the times must not be believed, or nothing. defects:
    what failed as nobody expected, which says nothing of how good it is, each in a line.
    """

    out: Path
    answer: str
    best: Row | None
    missed: list[str]
    rows: list[Row]
    invalid: list[str]
    defects: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        rows = [row.to_json() for row in self.rows]
        best = None if self.best is None else self.best.name
        return {
            "output": str(self.out),
            "answer": self.answer,
            "best": best,
            "missed": self.missed,
            "rows": rows,
            "invalid": self.invalid,
            "defects": self.defects,
        }


def optimize(
    model: str | Path,
    out: str | Path,
    data: str | Path,
    judge: str | Path,
    options: OptimizeOptions | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Found:
    """Search for the best bundle of a model within a goal, and write it with all that it was compared with.

    model: a dense one, a folder or a name on the hub. data: file to train and calibrate on. judge: file that decides,
    in the form of `eval`; see `read_judge`. resume: go on with the search in `out`, if there is one.

    Raises:
        UsageError: the options or inputs do not fit together, or `out` is taken.
        DataError, CheckpointError, ExportError: an input cannot be read or expressed.
        DeviceError: a worker died twice on the same task, or a device cannot be used.
        DefectError: the dense model or the first trials failed by one.
    """
    began, options, out = time.monotonic(), options or OptimizeOptions(), Path(out)
    optuna_here()
    given = read_inputs(str(model), Path(data), Path(judge), options)
    options = settled(options, given.data)
    refuse_impossible(given.layers, options)
    devices = reach(options.device, progress)
    pricing = pricing_of(options, devices)
    with output_lock(out):
        read = [model, data, judge, *filter(None, [options.prices])]
        claim(out, options, given.hashes, read, resume=resume, overwrite=overwrite)
        with searching(given, out, options, prices_in(out, pricing, options), progress, began) as search:
            rivals = search.rivals()
            refuse_impossible(given.layers, options, rivals)
            trials = search.run(rivals)
            refuse_failures(trials)
            measured = Finals(search, rivals, training_of(search), devices).run(trials)
            return _conclude(search, given, measured, out)


def plan(model: str | Path, data: str | Path, judge: str | Path, options: OptimizeOptions | None = None) -> Planned:
    """What `optimize` would do, and about how long it would take, and the disk it would need.

    Raises:
        SatenError: as `optimize`.
    """
    options = options or OptimizeOptions()
    given = read_inputs(str(model), Path(data), Path(judge), options)
    options = settled(options, given.data)
    refuse_impossible(given.layers, options)
    return planned(given.layers, given.judge, options, headless=given.headless)


@contextmanager
def searching(
    given: Given, out: Path, options: OptimizeOptions, pricing: Pricing, progress: Progress | None, began: float
) -> Iterator[Search]:
    """A search in a folder that was claimed, with its engine, while the block runs."""
    work = (out / WORK).resolve()
    work.mkdir(exist_ok=True)
    parts = given.judge.write(work, options.confirm, options.seed)
    sources = {part: Source(str(path), sha256_file(path)) for part, path in parts.items()}
    folder = resolve_model(given.model)
    model, data = (
        Source(str(folder.resolve()), given.hashes["model"]),
        Source(str(given.data.resolve()), given.hashes["data"]),
    )
    prices = None if pricing.path is None else Source(str(pricing.path.resolve()), sha256_file(pricing.path))
    chains = Chains(model, data, sources, options, given.headless, prices)
    study = Study(out / STUDY_FILE, options.seed, trims=given.layers.trims, promising=promising(options))
    study.describe("prices", pricing.prices.source)
    with ENGINES[options.engine](work, options.workers, 0, options.address) as engine:
        decides = given.metric, given.scale
        yield Search(chains, given.layers, options, work, *decides, engine, study, progress, began, pricing)


def _conclude(search: Search, given: Given, measured: Measured, out: Path) -> Found:
    options, rows = search.options, measured.rows
    best = answer(rows, options)
    ways = [] if best else missed(rows, options)
    said = sentence(best, rows, options, given.metric, ways)
    timed = options.max_ms is not None or options.objective == "time"
    invalid = measured.times.reasons if timed else []
    found = Found(out, said, best, ways, rows, invalid, defects_of(search, measured.trials))
    shown = best or min(rows, key=lambda row: row.drop)
    _write_bundles(out, rows, measured, best)
    bundle = Bundle.open(measured.bundles[shown.name])
    write_recipe(out / RECIPE_FILE, recipe_of(search.chains, shown.candidate, bundle, search.engine.threads))
    write_report(out / REPORT_FILE, search, given.judge, measured, best, said)
    about = {"overlap": given.judge.overlap, "prices": dict(search.pricing.prices.source)}
    about |= {"reasons": measured.times.reasons}  # why times must not be believed, whether or not they decide
    write_json(out / RESULT_FILE, {**found.to_json(), "output": out.name, **about, **trials_of(measured.trials)})
    return found


def _write_bundles(out: Path, rows: list[Row], measured: Measured, best: Row | None) -> None:
    """The chosen bundle, and of the dense ones float32, int8, also trimmed, and the fastest."""
    if best is not None:
        put(out, CHOSEN, measured.bundles[best.name])
    else:
        shutil.rmtree(out / CHOSEN, ignore_errors=True)
    dense = [row for row in rows if row.dense]
    fastest = min(dense, key=lambda row: float("inf") if row.ms is None else row.ms)
    for row in dense:
        if row.candidate.precision in ("fp32", "int8") or row is fastest:
            put(out, f"{BASELINES}/{row.name}", measured.bundles[row.name])
