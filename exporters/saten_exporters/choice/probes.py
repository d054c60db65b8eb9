"""What prices are fitted to: forms of random layers, one node each, in an archive that a device times.

The archive is read by `saten_runtime.bench.probing`. It is the same for every device of a target, and small: the
numbers in it repeat, which no product is faster or slower for.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saten_exporters.choice.fitting import Sample, Steps
from saten_exporters.choice.random_layers import idle_model, node_model, random_layer
from saten_exporters.choice.settings import DEFAULT_TARGET
from saten_exporters.choice.targets import TARGETS, Target
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import DENSE_FORMS, LOWERINGS, RESIDUAL_FORMS, TRAIN_FORMS, Form, head_of
from saten_exporters.forms.form import NATIVE
from saten_exporters.quantize import PRECISIONS
from saten_runtime.bench.probing import IDLE, PROBES_FILE, SCHEMA_VERSION, Probe, Probes, ProbingResult

__all__ = ["QUICK", "Sizes", "Subject", "samples_of", "write_probes"]

GROUPS = (4, 8, 16, 32, 64, 128)
DENSITY = 0.1
ENTRY_DENSITY = 0.02  # of a table
RANK_SHARE = 0.12  # of the smaller side
# Numbers after which those of a layer repeat: few enough for a zip archive to notice.
_PERIOD = 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time a zip can hold, so that equal probes give equal bytes
_NOISE = 0.1  # of an idle run's time; a difference below it is noise, whose relative error must not lead the fit


@dataclass(frozen=True)
class Sizes:
    """shapes: of linear layers, (in, out); table: (rows, width); rows: the numbers of rows of x."""

    shapes: tuple[tuple[int, int], ...]
    table: tuple[int, int]
    rows: tuple[int, ...]


# Of small models, so that a small board is done within three minutes.
QUICK = Sizes(((384, 384), (384, 1536), (1536, 384), (768, 768)), (4_000, 384), (1, 8, 32, 128))


@dataclass(frozen=True)
class Subject:
    """One form of one layer. steps: what the model takes it for, (precision, step)."""

    name: str
    shape: tuple[int, int]
    native: bool
    steps: Steps


def write_probes(path: Path, sizes: Sizes = QUICK, target: Target = TARGETS[DEFAULT_TARGET]) -> dict[str, Subject]:
    """Write the archive, for devices of a target; what each of its probes is, by name."""
    subjects: dict[str, Subject] = {}
    listed = [Probe(IDLE, 1)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, IDLE, idle_model())
        for name, form, parts, native in _everything(sizes):
            key = f"probe-{len(listed):04d}"
            subjects[key] = Subject(f"{name} {form.precision}", parts.shape, native, form.steps(parts, native=native))
            _add(archive, key, node_model(form, parts, max(sizes.rows), target))
            listed.append(_probe(key, form, parts, native))
        listing = dataclasses.asdict(Probes(SCHEMA_VERSION, list(sizes.rows), listed))
        _add(archive, PROBES_FILE, json.dumps(listing, allow_nan=False).encode())
    return subjects


def samples_of(subjects: dict[str, Subject], result: ProbingResult) -> list[tuple[Subject, Sample]]:
    """What was measured of each: its median, less that of a run that computes nothing."""
    least = _NOISE * result.idle_ns
    return [
        (subject, Sample(subject.steps, each.rows, max(each.p50_ns - result.idle_ns, least)))
        for each in result.times
        if (subject := subjects.get(each.probe)) is not None
    ]


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)


def _probe(name: str, form: Form, parts: LayerParts, native: bool) -> Probe:
    if form.kind == "embedding":
        return Probe(name, 0, parts.shape[0], native)
    return Probe(name, parts.shape[1] if form.kind == "head" else parts.shape[0], 0, native)


Found = Iterator[tuple[str, Form, LayerParts, bool]]  # name, form, layer, whether the native kernel runs it


def _everything(sizes: Sizes) -> Found:
    rng = np.random.default_rng(0)
    for shape in sizes.shapes:
        yield from _linear_forms(shape, rng)
    yield from _table_forms(sizes.table, rng)


def _linear_forms(shape: tuple[int, int], rng: np.random.Generator) -> Found:
    bare, entries = _layer(shape, "none", rng), _layer(shape, "csr", rng)
    blocks = {group: _layer(shape, "grouped", rng, group) for group in GROUPS}
    for precision in PRECISIONS:
        yield "dense", DENSE_FORMS["linear", precision], bare, False
        yield "low rank", TRAIN_FORMS["linear", precision], bare, False
        yield "tt chain", LOWERINGS["tt-chain"].form(bare, precision), bare, False
        for group, parts in blocks.items():
            yield f"blocks of {group}", RESIDUAL_FORMS["grouped", "linear", precision], parts, False
        yield "low rank + blocks of 32", LOWERINGS["low-rank"].form(blocks[32], precision), blocks[32], False
    for precision in NATIVE:
        yield "kernel: low rank", TRAIN_FORMS["linear", precision], bare, True
        yield "kernel: CSR", RESIDUAL_FORMS["csr", "linear", precision], entries, True
        for group, parts in blocks.items():
            yield f"kernel: blocks of {group}", RESIDUAL_FORMS["grouped", "linear", precision], parts, True
        yield "kernel: low rank + blocks of 16", LOWERINGS["low-rank"].form(blocks[16], precision), blocks[16], True


def _table_forms(table: tuple[int, int], rng: np.random.Generator) -> Found:
    """Forms of a table, and of a head that shares one."""
    parts, entries = (_layer(table, layout, rng, kind="embedding") for layout in ("none", "ell"))
    for precision in PRECISIONS:
        yield "dense table", DENSE_FORMS["embedding", precision], parts, False
        yield "low rank table", TRAIN_FORMS["embedding", precision], parts, False
        yield "low rank head", head_of(TRAIN_FORMS["embedding", precision]), parts, False
        yield "entries head", head_of(RESIDUAL_FORMS["ell", "embedding", precision]), entries, False


def _layer(
    shape: tuple[int, int], layout: str, rng: np.random.Generator, group: int = 1, kind: str = "linear"
) -> LayerParts:
    rank = max(8, int(RANK_SHARE * min(shape)) // 8 * 8)
    kept = int(ENTRY_DENSITY * shape[1]) if layout == "ell" else int(DENSITY * shape[0])
    parts = random_layer(shape, rank, layout, kept, rng, group=group, kind=kind)
    first, last = (tuple(map(_repeating, side)) for side in parts.cores)
    a, b, values = map(_repeating, (parts.a, parts.b, parts.values))
    return dataclasses.replace(parts, a=a, b=b, values=values, cores=(first, last))


def _repeating(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.resize(numbers.ravel()[:_PERIOD], numbers.shape)
