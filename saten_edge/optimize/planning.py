"""What a search would do, about how long that takes, the disk it needs, and what it cannot reach."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from saten_edge.devices.transports import parse_devices
from saten_edge.engines import default_workers
from saten_edge.optimize.estimate import Layers, estimate
from saten_edge.optimize.judging import Judge
from saten_edge.optimize.lengths import measuring_minutes
from saten_edge.optimize.pricing import planned_words
from saten_edge.optimize.search import BATCH, SEARCH_SHARE, Rival, beside
from saten_edge.optimize.space import BUDGETS, FAMILIES, RIVALS, Candidate, offered
from saten_edge.options import DEFAULT_BATCH, OptimizeOptions
from saten_exporters.quantize import PRECISIONS
from saten_runtime.errors import UsageError

__all__ = ["Planned", "planned", "refuse_impossible"]

USUAL_TOKENS = 32  # of an example, where nobody says more
STARTING_S = 15.0  # of a stage: reading the model, tracing, verifying
COMPRESSING = 60.0  # products as large as a matrix that a decomposition takes, for each of its smaller side
MEASURED_PRODUCT = 512
# Candidates, one of which is the smallest of the space.
SMALLEST = tuple(
    Candidate(family, precision, BUDGETS[0], "grouped") for precision in PRECISIONS for family in ("svd", "sparse")
)


@dataclass(frozen=True)
class Planned:
    """steps: what is done, in words, each with its minutes. disk_bytes: at the most."""

    steps: list[tuple[str, float]]
    disk_bytes: int
    notes: list[str]

    @property
    def minutes(self) -> float:
        """In all."""
        return sum(minutes for _, minutes in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        steps = [{"step": step, "minutes": round(minutes, 1)} for step, minutes in self.steps]
        return {"steps": steps, "minutes": round(self.minutes, 1), "disk_bytes": self.disk_bytes, "notes": self.notes}


def planned(layers: Layers, judge: Judge, options: OptimizeOptions, *, headless: bool) -> Planned:
    """The plan of a search."""
    workers = options.workers or default_workers()
    rate = _products_per_s()
    multiplied = sum(inputs * outputs for kind, inputs, outputs in layers.matrices.values() if kind == "linear")
    batch = multiplied * (options.batch_size or DEFAULT_BATCH) * (options.max_length or USUAL_TOKENS)
    step_s = 4 * batch / rate  # forward, backward twice that, and the teacher
    judged_s = multiplied * USUAL_TOKENS * judge.data.count / 2 / rate + STARTING_S
    smaller = sum(i * o * min(i, o) for _, i, o in layers.matrices.values())
    compressed_s = COMPRESSING * smaller / rate + STARTING_S
    short_s = options.short_steps * step_s + 2 * STARTING_S + judged_s
    full_s = options.usual_steps * step_s + 2 * STARTING_S + judged_s
    search_s = (compressed_s + judged_s + STARTING_S) + short_s / 2
    count = options.most_trials
    by_trials = count * search_s / workers / 60
    searching = min(by_trials, SEARCH_SHARE * options.minutes)
    trials = f"{count:.0f} trials" if count < float("inf") else f"trials for {searching:g} min"
    rivals = offered(RIVALS, trims=layers.trims)
    steps = [
        *([("fine-tune the dense model on the labels", full_s / 60)] if headless else []),
        *([("trim the vocabulary to the words of --data", STARTING_S / 60)] if layers.trims else []),
        (f"export and judge {_dense_models(rivals)}", len(rivals) * judged_s / workers / 60),
        (f"{trials} in batches of {BATCH}: {', '.join(name for name in FAMILIES if name != 'dense')}", searching),
        _training(options, options.finalists * full_s / workers / 60),
        (
            "measure them and the dense models in turns, and confirm",
            measuring_minutes(options, options.finalists),
        ),
    ]
    whole = layers.values * 4
    disk = whole * (2 * BATCH + 2 * options.finalists + len(rivals) + 2 * headless + layers.trims)
    return Planned(steps, disk, [*_notes(judge, options), _trimming(layers)])


def _dense_models(rivals: Sequence[Candidate]) -> str:
    trimmed = sum(each.trim for each in rivals)
    also = f", and trimmed at {trimmed}" if trimmed else ""
    return f"the dense model at {len(rivals) - trimmed} precisions{also}"


def _trimming(layers: Layers) -> str:
    """What is to be known of trimmed candidates, or why there are none."""
    if layers.trimmed is None:
        return f"no vocabulary is trimmed: {layers.untrimmed}"
    mb = [4 * each.values / 1e6 for each in (layers.trimmed, layers)]
    return (
        f"some candidates know the words of --data alone, {mb[0]:.2f} of {mb[1]:.2f} MB of weights in float32; other "
        "texts cost these more pieces, and --no-trim leaves them out"
    )


def _training(options: OptimizeOptions, minutes: float) -> tuple[str, float]:
    """minutes: that the usual steps take."""
    what = f"fine-tune {options.finalists} finalists"
    if options.steps is None and options.minutes < float("inf"):
        left = (1 - SEARCH_SHARE) * options.minutes - measuring_minutes(options, options.finalists)
        return f"{what} for as many steps as the minutes that are left pay for", max(left, 0.0)
    return f"{what}, {options.usual_steps} steps each", minutes


def refuse_impossible(layers: Layers, options: OptimizeOptions, rivals: Sequence[Rival] = ()) -> None:
    """Refuse a size that nothing in the space can have.

    rivals: the dense bundles, once they are there: what these take beside their weights, every bundle takes.

    Raises:
        UsageError: naming the least that is possible.
    """
    if options.max_mb is None:
        return
    tried = offered([replace(each, trim=trim) for each in SMALLEST for trim in (False, True)], trims=layers.trims)
    more = {trim: beside(rivals, trim=trim) if rivals else 0 for trim in (False, True)}
    sizes = {each: estimate(each, layers, options.target, 1).bytes + more[each.trim] for each in tried}
    least, size = min(sizes.items(), key=lambda pair: pair[1])
    if options.max_mb * 1e6 < size:
        raise UsageError(
            f"--max-mb {options.max_mb:g}: the smallest bundle that is tried takes about {size / 1e6:.2g} MB, "
            f"{(layers.of(least).others * 4 + more[least.trim]) / 1e6:.2g} MB of it beside the matrices; allow more"
        )


def _notes(judge: Judge, options: OptimizeOptions) -> list[str]:
    held = round(options.confirm * judge.data.count)
    notes = [f"{judge.data.count - held} examples of the judge steer, {held} confirm"]
    labels = [device.label for device in parse_devices(options.device)]
    if labels:
        notes.append(f"the finalists and the dense models are timed on {', '.join(labels)}")
    priced = planned_words(options, next(iter(labels), None))
    notes.append(f"prices by which times are predicted and forms chosen: {priced}")
    if judge.overlap:
        notes.append(f"{judge.overlap} of {judge.data.count} examples of the judge are in the training data, too")
    return notes


def _products_per_s() -> float:
    """Multiply-accumulates a second of a product of this size, on one thread's share of this machine."""
    side = MEASURED_PRODUCT
    left, right = torch.ones(side, side), torch.ones(side, side)
    torch.mm(left, right)
    started = time.perf_counter()
    torch.mm(left, right)
    return side**3 / max(time.perf_counter() - started, 1e-9)
