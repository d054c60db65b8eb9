"""The time no program on this machine could beat: what it multiplies and moves, at the measured rates.

The floor of a run is the larger of FLOPs / GEMM rate and bytes / copy rate, over the layers of
the model; attention, normalizations and everything else is left out, so it is a lower bound.
The GEMM rate is that of a large MatMul in ONNX Runtime; the copy rate that of numpy, for as many
bytes as the model's weights have, so that weights which fit a cache are held to the cache's speed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.bench.plan import Plan, Size
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.layers import layers_of
from saten_runtime.bundle.manifest import Layer
from saten_runtime.records.plain_text import align
from saten_runtime.records.reader import Positive
from saten_runtime.run.products import exact_entries, product_model

__all__ = ["Floor", "Rates", "floor_of", "floor_of_work", "floor_report", "floor_table", "measure_rates", "moved_bytes"]

_SHAPE = (256, 1024, 1024)  # rows, in, out: large enough for the peak, small enough for a board
_TIME_S = 0.06
_LEAST_COPY_BYTES, _MOST_COPY_BYTES = 1 << 20, 256 << 20
# int4 weights are multiplied as one or the other, whatever is faster.
_RATES_OF = {"fp32": ("fp32",), "fp16": ("fp32",), "int8": ("int8", "fp32")}


@dataclass(frozen=True)
class Rates:
    """flops_per_s: by kind of product, "fp32" and "int8", two per multiply-accumulate.

    copy_bytes_per_s: [bytes held, rate], reads and writes both counted.
    """

    threads: int
    flops_per_s: dict[str, float]
    copy_bytes_per_s: list[tuple[int, float]]

    def faster(self, other: Rates) -> Rates:
        """The larger of each rate; both measured on one machine for the same sizes."""
        flops = {name: max(rate, other.flops_per_s[name]) for name, rate in self.flops_per_s.items()}
        pairs = zip(self.copy_bytes_per_s, other.copy_bytes_per_s, strict=True)
        return Rates(self.threads, flops, [(size, max(rate, again)) for (size, rate), (_, again) in pairs])


@dataclass(frozen=True)
class Floor:
    """ms: of one sample; bound: "compute" or "memory", which of the two it is."""

    ms: Positive
    bound: str


def measure_rates(threads: int, sizes: Sequence[int]) -> Rates:
    """Rates of this machine now; sizes: bytes to be copied, see `moved_bytes`."""
    flops = 2.0 * math.prod(_SHAPE)
    gemm = {name: flops / _best_s(_product(name, threads)) for name in ("fp32", "int8")}
    return Rates(threads, gemm, [(size, _copy_rate(size, threads)) for size in sizes])


def moved_bytes(bundle: Bundle, size: Size) -> int:
    """Bytes of weights that one run of the graph reads: of a table, the rows that are looked up."""
    return sum(_read_bytes(layer, _rows(size)) for layer in layers_of(bundle))


def floor_of(bundle: Bundle, size: Size, rates: Rates) -> Floor | None:
    """The floor of one sample; None for a bundle without layers."""
    layers = layers_of(bundle)
    if not layers:
        return None
    flops = 2.0 * _rows(size) * sum(layer.macs_per_row for layer in layers)
    floor = floor_of_work(flops, moved_bytes(bundle, size), bundle.manifest.precision, rates)
    runs = size.tokens if size.phase == "generate" else 1
    return replace(floor, ms=runs * floor.ms)


def floor_of_work(flops: float, moved: int, precision: str, rates: Rates) -> Floor:
    """The floor of so many operations on so many bytes of weights."""
    kinds = _RATES_OF.get(precision, tuple(rates.flops_per_s))
    copied = min(rates.copy_bytes_per_s, key=lambda pair: abs(pair[0] - moved))[1]
    seconds = {"compute": flops / max(rates.flops_per_s[kind] for kind in kinds), "memory": moved / copied}
    bound = max(seconds, key=lambda name: seconds[name])
    return Floor(1000 * seconds[bound], bound)


def floor_report(bundles: dict[str, Bundle], plan: Plan) -> dict[str, Any]:
    """Rates of this machine, and the floor of each bundle at each size of the plan, as plain JSON data."""
    sizes = [(name, size) for name, bundle in bundles.items() for size in plan.sizes(bundle.items)]
    rates = measure_rates(plan.threads[0], sorted({moved_bytes(bundles[name], size) for name, size in sizes}))
    floors = [(name, size, floor_of(bundles[name], size, rates)) for name, size in sizes]
    rows = [{"bundle": name, "size": size.name, **asdict(floor)} for name, size, floor in floors if floor]
    return {"rates": asdict(rates), "floors": rows}


def floor_table(report: dict[str, Any]) -> str:
    """What `floor_report` found as aligned text."""
    rates = report["rates"]
    lines = [("rate", "measured")]
    lines += [(f"{name} product", f"{rate / 1e9:.1f} GFLOP/s") for name, rate in rates["flops_per_s"].items()]
    lines += [(f"copy of {size / 1e6:.1f} MB", f"{rate / 1e9:.1f} GB/s") for size, rate in rates["copy_bytes_per_s"]]
    floors = [(row["bundle"], row["size"], f"{row['ms']:.3f}", row["bound"]) for row in report["floors"]]
    return "\n\n".join([align(lines), *([align([("bundle", "size", "floor ms", "bound"), *floors])] if floors else [])])


def _rows(size: Size) -> int:
    """Rows that one run of the graph multiplies: generating reads a token at a time."""
    return size.batch * (1 if size.phase == "generate" else size.tokens)


def _read_bytes(layer: Layer, rows: int) -> int:
    return min(layer.bytes, layer.bytes * rows // layer.shape[0]) if layer.kind == "embedding" else layer.bytes


def _best_s(run: Callable[[], Any]) -> float:
    """The fastest of the runs that fit into `_TIME_S`, at least three."""
    samples: list[float] = []
    end = time.perf_counter() + _TIME_S
    while len(samples) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return min(samples)


def _copy_rate(size: int, threads: int) -> float:
    half = min(max(size, _LEAST_COPY_BYTES), _MOST_COPY_BYTES) // 2
    source, target = np.ones(half, np.uint8), np.zeros(half, np.uint8)
    pairs = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        return 2 * half / _best_s(lambda: list(pool.map(_copy, pairs)))


def _copy(pair: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]) -> None:
    np.copyto(pair[1], pair[0])


def _product(kind: str, threads: int) -> Callable[[], Any]:
    import onnxruntime

    rows, inner, columns = _SHAPE
    chance = np.random.default_rng(0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for entry in exact_entries().items():
        options.add_session_config_entry(*entry)
    if kind == "fp32":
        x = chance.standard_normal((rows, inner), np.float32)
        model = product_model("MatMul", {"w": chance.standard_normal((inner, columns), np.float32)})
    else:
        x = chance.integers(0, 255, (rows, inner), np.uint8)
        weight = chance.integers(-127, 127, (inner, columns), np.int8)
        model = product_model("MatMulInteger", {"w": weight}, x="uint8", y="int32")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["y"], {"x": x})
