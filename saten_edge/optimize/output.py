"""The folder that a search writes: who claimed it, and what is put there in the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from saten_edge.recipes import recorded
from saten_runtime.errors import UsageError
from saten_runtime.options import spelled
from saten_runtime.records.files import read_json, refuse_existing, remove, write_json
from saten_runtime.records.folders import new_folder

__all__ = [
    "BASELINES",
    "CHOSEN",
    "PRICES_FILE",
    "RECIPE_FILE",
    "REPORT_FILE",
    "RESULT_FILE",
    "STUDY_FILE",
    "WORK",
    "claim",
    "put",
]

MARKER_FILE = "optimize.json"
STUDY_FILE, REPORT_FILE, RECIPE_FILE, RESULT_FILE = "study.journal", "report.html", "recipe.yaml", "result.json"
WORK, CHOSEN, BASELINES = "work", "chosen", "baselines"
PRICES_FILE = "prices.json"
OURS = (STUDY_FILE, REPORT_FILE, RECIPE_FILE, RESULT_FILE, PRICES_FILE, WORK, CHOSEN, BASELINES)
# What may change when a search goes on: its goal, how long it takes, and how many trials are finalists.
MAY_CHANGE = ("max_drop", "max_mb", "max_ms", "objective", "minutes", "trials", "finalists", "rounds", "device")


def claim(
    out: Path,
    options: Any,
    inputs: Mapping[str, str],
    reads: Iterable[str | Path],
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Make a folder the one of this search, or go on in it.

    inputs: sha256 by role. reads: the paths of what is read; names of the hub among them are passed over.

    Raises:
        UsageError: there is something else at `out`, it holds what is read, or a search of other options or inputs.
    """
    for path in reads:
        if os.path.exists(path) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(out)):
            raise UsageError(f"{out}: holds {path}, which is read; choose another output path")
    marker, settings = out / MARKER_FILE, {"options": recorded("optimize", options), "inputs": dict(inputs)}
    if resume and marker.is_file():
        _refuse_other(out, read_json(marker, UsageError), settings)
    elif marker.is_file() and overwrite:
        for name in OURS:
            remove(out / name)
    else:
        refuse_existing(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(marker, settings)


def put(out: Path, name: str, bundle: Path) -> None:
    """Copy a bundle into the folder, whole or not at all."""
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out / name, overwrite=True) as folder:
        shutil.copytree(bundle, folder, dirs_exist_ok=True)


def _refuse_other(out: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for group in ("inputs", "options"):
        before, now = found.get(group, {}), wanted[group]
        for name in now:
            if before.get(name) != now[name] and name not in MAY_CHANGE:
                what = "data or model of another content" if group == "inputs" else spelled(before.get(name))
                raise UsageError(
                    f"{out}: holds a search with another {name} ({what}); repeat its options, choose another output "
                    "path, or pass --overwrite without --resume"
                )
