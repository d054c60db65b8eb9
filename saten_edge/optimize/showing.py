"""What a search found, in words and as a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saten_edge.optimize.finals import Measured
from saten_edge.optimize.goal import Row
from saten_edge.optimize.judging import Judge
from saten_edge.optimize.outcomes import is_defect
from saten_edge.optimize.search import Search
from saten_edge.optimize.space import STARTS, Candidate
from saten_edge.optimize.study import Trial
from saten_edge.options import OptimizeOptions
from saten_edge.reports import build_report, write_html
from saten_edge.reports.model import Point
from saten_edge.reports.text import metric_title, plural
from saten_runtime.bundle.folder import Bundle

# What a trimmed bundle is not for.
TRIMMED = "It knows the words of the training texts; other texts cost it more pieces."

__all__ = ["defects_of", "goal_words", "sentence", "table_rows", "trials_of", "write_report"]


def sentence(best: Row | None, rows: Sequence[Row], options: OptimizeOptions, metric: str, ways: Sequence[str]) -> str:
    """The answer."""
    if best is None:
        return f"Nothing meets {goal_words(options)}; nearest: {'; '.join(ways)}."
    title = metric_title(metric)
    numbers = [f"{best.bytes / 1e6:.2f} MB", *([f"{best.ms:.2f} ms"] if best.ms else [])]
    lost = f"{_points(best.drop)} on the part that steered, {_points(best.confirm_drop)} on the one that confirms"
    start = f"{best.name} is the answer to {goal_words(options)}: {', '.join(numbers)}, {title} {lost}"
    known = f" {TRIMMED}" if best.candidate.trim else ""
    if best.dense:
        return f"{start}. It is dense: no compression that was tried is better.{known}"
    int8 = next((row for row in rows if row.candidate == Candidate("dense", "int8")), None)
    of_dense = "" if int8 is None else f"; {best.bytes / int8.bytes:.2f} of dense-int8's bytes"
    return f"{start}{of_dense}.{known}"


def goal_words(options: OptimizeOptions) -> str:
    """The goal, as the options have it."""
    said = {"--max-drop": options.max_drop, "--max-mb": options.max_mb, "--max-ms": options.max_ms}
    return ", ".join(f"{name} {value:g}" for name, value in said.items() if value is not None)


def table_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Every measured bundle, for a terminal."""
    devices = list(rows[0].ms_on) if rows else []
    head = ("bundle", "MB", *([f"ms, {device}" for device in devices] or ["ms"]), "points lost, steering", "confirming")
    lines = [
        (
            row.name,
            f"{row.bytes / 1e6:.2f}",
            *map(_ms, row.ms_on.values() if devices else [row.ms]),
            f"{row.drop:.2f}",
            f"{row.confirm_drop:.2f}",
        )
        for row in rows
    ]
    return [head, *lines]


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def trials_of(trials: Sequence[Trial]) -> dict[str, Any]:
    """Every trial, as JSON data."""
    return {"trials": [trial.to_json() for trial in trials]}


def defects_of(search: Search, trials: Sequence[Trial]) -> list[str]:
    """What failed by a defect, dense models and trials of earlier runs included."""
    known = {trial.candidate.label: trial.why for trial in trials if is_defect(trial.why)} | search.defects
    return [f"{label}: {why}" for label, why in known.items()]


def write_report(path: Path, search: Search, judge: Judge, measured: Measured, best: Row | None, said: str) -> None:
    """The page: the answer, what was measured, and every trial a point with what it was made of."""
    bundles = [Bundle.open(measured.bundles[row.name]) for row in measured.rows]
    report = build_report(
        bundles,
        measured.times.joined,
        measured.evaluation,
        notes=[("How it was found", _notes(search, judge, measured))],
        answer=said,
        trials=_points_of(measured, best),
    )
    write_html(report, path)


def _points_of(measured: Measured, best: Row | None) -> list[Point]:
    rows = [
        Point(row.name, row.bytes, row.drop, "measured", "", row.name == (best.name if best else ""))
        for row in measured.rows
    ]
    known = {row.trial for row in measured.rows}
    trials = [
        Point(f"{trial.number}: {trial.candidate.label}", trial.bytes, trial.drop, trial.level, trial.why)
        for trial in measured.trials
        if trial.number not in known
    ]
    return [*rows, *trials]


def _notes(search: Search, judge: Judge, measured: Measured) -> str:
    options, looked = search.options, search.looked_at(measured.trials)
    steer = judge.data.count - round(options.confirm * judge.data.count)
    paragraphs = [
        f"Of {plural(len(measured.trials), 'candidate')}, {looked} were computed; the first {len(STARTS)} of a search "
        "are usual good ones, Optuna draws all others. The cost model dropped those that could not win by their bytes "
        "and time. The rest was compressed and judged before any training. Those that others beat were dropped, and "
        f"what was left was ranked by {plural(options.short_steps, 'step')} of fine-tuning. The most promising were "
        f"fine-tuned for {plural(measured.steps, 'step')} and measured in turns with the dense models.",
        f"{steer} examples of {judge.path.name} steered these choices; the metrics of the table are of the other "
        f"{judge.data.count - steer}, which no choice saw but the last: the best bundle by the first part that meets "
        "the goal on the second, too.",
    ]
    whole = f"No vocabulary was trimmed: {search.layers.untrimmed}."
    paragraphs.append(f"Of a bundle that is called trimmed: {TRIMMED}" if search.layers.trims else whole)
    paragraphs.append(f"Prices by which times were predicted and forms chosen: {search.pricing.words}.")
    if judge.overlap:
        paragraphs.append(
            f"{judge.overlap} of {judge.data.count} examples of the judge are in the training data, too; accuracy is "
            "better here than on new examples."
        )
    if defects := defects_of(search, measured.trials):
        paragraphs.append(
            f"{plural(len(defects), 'candidate')} failed by a defect of saten-edge or of a library, which says nothing "
            f"of how good they are: {'; '.join(defects)}."
        )
    return "\n\n".join(paragraphs)


def _points(drop: float) -> str:
    words = f"{abs(drop):.2f} points"
    return f"{words} lower" if drop > 0 else f"{words} higher" if drop < 0 else "the same"
