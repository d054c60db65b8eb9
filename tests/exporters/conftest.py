"""Random layers, one-layer graphs, and bundles of the tiny models, each exported once."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from transformers.exporters import ExportedModel

from saten_edge.checkpoints.compress import compress, compressible_layers
from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.decomposition.recipe import Recipe
from saten_edge.methods import METHODS
from saten_edge.methods.method import Job
from saten_edge.options import CompressOptions
from saten_exporters import LayerParts, export
from saten_exporters.choice.targets import TARGETS
from saten_exporters.forms import Form
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import UsageError
from saten_runtime.records.folders import new_folder
from saten_runtime.vocabulary.operators import DOMAIN, DOMAIN_VERSION

Arrays = dict[str, np.ndarray]
Shared = Callable[[str, Callable[[Path], object]], Path]


@dataclasses.dataclass(frozen=True)
class Size:
    """A layer's size: inputs (rows of a table), outputs (its width), bond, outputs and blocks per group, n and m."""

    inputs: int
    outputs: int
    bond: int
    group: int
    kept: int
    numbers: tuple[int, int]


SIZES = {
    "usual": Size(48, 64, 7, 8, 9, (3, 5)),
    "smallest": Size(2, 2, 1, 1, 1, (1, 256)),
    "primes": Size(37, 53, 5, 53, 3, (1, 8)),
    "full": Size(16, 24, 16, 4, 16, (1, 1)),
}


def _grouped(size: Size, random: np.random.Generator) -> tuple[np.ndarray, Arrays]:
    groups = size.outputs // size.group
    indices = np.stack([np.sort(random.permutation(size.inputs)[: size.kept]) for _ in range(groups)])
    values = random.standard_normal((groups, size.group, indices.shape[1]))
    return values, {"indices": indices.astype(np.int32)}


def _rows(size: Size, random: np.random.Generator) -> tuple[np.ndarray, Arrays]:
    rows = np.sort(random.permutation(size.inputs)[: size.kept])
    return random.standard_normal((len(rows), size.outputs)), {"rows": rows.astype(np.int32)}


def _ell(size: Size, random: np.random.Generator) -> tuple[np.ndarray, Arrays]:
    kept = min(size.kept, size.outputs)
    indices = np.stack([np.sort(random.permutation(size.outputs)[:kept]) for _ in range(size.inputs)])
    return random.standard_normal(indices.shape), {"indices": indices.astype(np.uint16)}


def _csr(size: Size, random: np.random.Generator) -> tuple[np.ndarray, Arrays]:
    mask = random.random((size.outputs, size.inputs)) < 0.2
    mask[1:-1:5] = False  # rows without an entry: several, and two that are neighbours
    mask[2:4] = False
    mask[0], mask[-1] = True, False
    pointers = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    indices = np.nonzero(mask)[1]
    return random.standard_normal(len(indices)), {
        "indptr": pointers.astype(np.int32),
        "indices": indices.astype(np.uint16),
    }


def _nofm(size: Size, random: np.random.Generator) -> tuple[np.ndarray, Arrays]:
    kept, of = size.numbers
    outputs = np.delete(np.arange(size.outputs), np.s_[1:-1:5])  # some have nothing; the first and the last have
    starts = range(0, size.inputs, of)
    widths = [min(of, size.inputs - start) for start in starts]
    lines = [[np.sort(random.permutation(width)[:kept]) for width in widths] for _ in outputs]
    places = np.array([np.concatenate(line) for line in lines])
    bits = places[..., None] >> np.arange((of - 1).bit_length()) & 1
    return random.standard_normal(places.shape), {
        "outputs": outputs.astype(np.uint16),
        "codes": np.packbits(bits.astype(np.uint8), bitorder="little"),
        "numbers": np.array(size.numbers),
    }


# layout → how its random residual is made; a new layout needs a row here
RESIDUALS = {"grouped": _grouped, "csr": _csr, "n:m": _nofm, "rows": _rows, "ell": _ell}


@pytest.fixture(scope="session", autouse=True)
def _trace_once(trace_once: object) -> None:
    """For every export here."""


@pytest.fixture(scope="session")
def sizes() -> dict[str, Size]:
    return SIZES


@pytest.fixture(scope="session")
def make_parts() -> Callable[..., LayerParts]:
    """make_parts(kind, layout, size="usual", seed=…) -> random numbers of one layer; the seed is printed."""

    def make(kind: str, layout: str | None, size: str = "usual", seed: int = 1) -> LayerParts:
        print(f"{kind} layer, {layout} residual, size {size}, seed {seed}")
        chosen, random = SIZES[size], np.random.default_rng(seed)
        values, indices = RESIDUALS[layout](chosen, random) if layout else (np.zeros(0), {})
        return LayerParts(
            name="layer",
            kind=kind,
            shape=(chosen.inputs, chosen.outputs),
            ranks=[chosen.bond],
            a=random.standard_normal((chosen.inputs, chosen.bond)).astype(np.float32),
            b=(random.standard_normal((chosen.bond, chosen.outputs)) / chosen.bond).astype(np.float32),
            layout=layout or "none",
            values=values.astype(np.float32),
            indices=indices,
        )

    return make


@pytest.fixture(scope="session")
def one_form() -> Callable[[Form, LayerParts], ir.Model]:
    """one_form(form, parts, rows=128) -> the model x → form(x, weights) → y."""

    def build(form: Form, parts: LayerParts, rows: int = 128) -> ir.Model:
        opset = TARGETS["x86-64"].opset
        kind = ir.DataType.INT64 if form.kind == "embedding" else ir.DataType.FLOAT
        taken, made = parts.shape[::-1] if form.kind == "head" else parts.shape
        shape = ["batch", "sequence", *([] if form.kind == "embedding" else [taken])]
        x = ir.Value(name="x", type=ir.TensorType(kind), shape=ir.Shape(shape))
        packed = form.pack(parts)
        weights = [_constant(name, packed[name]) for name in form.inputs]
        floats = TARGETS["x86-64"].floats_at(rows)
        sizes = [ir.AttrInt64(name, size) for name, size in form.sizes(parts, floats).items()]
        node = ir.Node(DOMAIN, form.op_type, [x, *weights], sizes)
        y = node.outputs[0]
        y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
        y.shape = ir.Shape(["batch", "sequence", made])
        imports = {"": opset, "com.microsoft": 1, DOMAIN: DOMAIN_VERSION}
        graph = ir.Graph([x], [y], nodes=[node], initializers=weights, opset_imports=imports, name="g")
        return ir.Model(graph, ir_version=TARGETS["x86-64"].ir_version, functions=form.functions(opset))

    return build


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


@pytest.fixture(scope="session")
def run_ort() -> Callable[..., list[np.ndarray]]:
    """run_ort(model or file, feeds, optimized=…) -> its outputs, computed by ONNX Runtime on one thread."""

    def run(model: ir.Model | Path, feeds: Arrays, *, optimized: bool = True) -> list[np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if not optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        source = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return session.run(None, feeds)

    return run


@pytest.fixture(scope="session")
def loaded_tiny(
    tiny_bert: Path, tiny_saten: Path, tiny_saten_unstructured: Path, tiny_saten_n_of_m: Path
) -> dict[str, LoadedModel]:
    """The tiny models: dense, saten (grouped residuals), unstructured, 1:8. Read-only."""
    folders = {
        "dense": tiny_bert,
        "saten": tiny_saten,
        "unstructured": tiny_saten_unstructured,
        "1of8": tiny_saten_n_of_m,
    }
    return {name: load_model(folder) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def traced(trace_once: Callable[..., ExportedModel]) -> Callable[..., ExportedModel]:
    """traced(model) -> a fresh copy of its graph as the tracer makes it."""
    return lambda source, target=TARGETS["x86-64"]: trace_once(source, target)


@pytest.fixture(scope="session")
def bundle_of(loaded_tiny: dict[str, LoadedModel], shared: Shared, trace_once: object) -> Callable[[str, str], Bundle]:
    """bundle_of(model, precision) -> its bundle, exported once in a run. Read-only."""

    def make(out: Path, model: str, precision: str) -> None:
        lowering = None if model == "dense" else "low-rank"  # the tiny layers are cheaper dense
        export(loaded_tiny[model], out, precision=precision, lowering=lowering, max_loss=float("inf"))

    @functools.cache
    def get(model: str, precision: str) -> Bundle:
        return Bundle.open(shared(f"exported/{model}-{precision}", lambda out: make(out, model, precision)))

    return get


@pytest.fixture(scope="session")
def export_of(
    make_tiny: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    images: list[Any],
) -> Callable[[str, str, str, str], tuple[LoadedModel, Bundle]]:
    """export_of(model_type, task, form, precision) -> the model and its bundle, made once. Read-only.

    form: "dense", "flat", "ptnn", or "saten" or "flat saten", perhaps with a pattern that is not grouped, and perhaps
    "as" a lowering.
    """
    folder = tmp_path_factory.mktemp("battery")
    loaded, made = dict[tuple[str, ...], LoadedModel](), dict[tuple[str, ...], Bundle]()

    def items_for(source: LoadedModel) -> list[Any]:
        if source.processor is None:
            return texts[:32]
        files = [folder / f"{place}.png" for place in range(len(images))]
        for path, image in zip(files, images, strict=True):
            image.save(path)
        return files

    def flatten(source: LoadedModel) -> None:
        whole = source.architecture.whole_heads
        options = CompressOptions(method="flat", keep=0.5, head_keep=None if whole else 0.5)
        METHODS["flat"].run(Job(source, options, items_for(source)))

    def tensorize_in_part(source: LoadedModel) -> None:
        recipe, matrices = Recipe(rounds=1, share=0.6), len(compressible_layers(source.model))
        options = CompressOptions(method="ptnn", tolerance=0.3, group=8, recipe=recipe)
        rows = METHODS["ptnn"].run(Job(source, options, items_for(source)))
        assert 0 < len(rows) < matrices  # some layers stay dense

    def load(model_type: str, task: str, form: str) -> LoadedModel:
        source = load_model(make_tiny(model_type, task), task)
        if form.startswith("flat"):
            flatten(source)
        if form == "ptnn":
            tensorize_in_part(source)
        elif form not in ("dense", "flat"):
            recipe = Recipe(rounds=1, share=0.6)  # every layer has both parts
            pattern = form.removeprefix("flat ").partition(" ")[2] or "grouped"
            compress(source, 0.5, pattern=pattern, group=8, allocation="uniform", recipe=recipe)
        return source

    def get(model_type: str, task: str, form: str, precision: str) -> tuple[LoadedModel, Bundle]:
        model, cell = (model_type, task, form.partition(" as ")[0]), (model_type, task, form, precision)
        if model not in loaded:
            loaded[model] = load(*model)
        if cell not in made:
            asked = form.partition(" as ")[2] or "low-rank"  # the tiny layers are cheaper dense
            lowering = None if form in ("dense", "flat") else asked
            # Random weights make the most of every rounding: what it costs them says nothing.
            how = {"precision": precision, "lowering": lowering, "max_loss": float("inf")}
            made[cell] = export(loaded[model], folder / "-".join(cell), **how)
        return loaded[model], made[cell]

    return get


@pytest.fixture(scope="session")
def pixels(images: list[Any]) -> list[np.ndarray]:
    """Pictures as a device has them, (height, width, 3) uint8, of the size that the tiny models take: no resizing."""
    return [np.asarray(image)[:32, :32] for image in images[:3]]


@pytest.fixture(scope="session")
def parse_model() -> Callable[..., ir.Model]:
    """parse_model(text, name=array, …) -> the model of an ONNX text; the inputs given become weights."""
    import onnx.parser

    def parse(text: str, **weights: np.ndarray) -> ir.Model:
        proto: Any = onnx.parser.parse_model(text)
        model = ir.from_proto(proto)
        for value in [value for value in model.graph.inputs if value.name in weights]:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(weights[value.name], name=value.name)
            model.graph.register_initializer(value)
        return model

    return parse


CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saten-edge"


def fetched(what: str, *command: str) -> Path:
    """A folder in the cache that `command` fills; FOLDER stands for it. Skips where there is no network."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    target = CACHE / re.sub(r"[^\w.-]+", "-", f"{what} {python}")
    if not shutil.which(command[0]):
        pytest.skip(f"there is no {command[0]} here to fetch {what}")
    try:
        with new_folder(target) as folder:
            filled = [part.replace("FOLDER", str(folder)) for part in command]
            done = subprocess.run(filled, capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"{what} cannot be fetched: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
    except UsageError:  # it was fetched before
        pass
    return target


@pytest.fixture(scope="session")
def pip_packages() -> Callable[..., Path]:
    """pip_packages(*requirements) -> a folder for PYTHONPATH with exactly these, kept for the next session."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps")
    return lambda *wanted: fetched(" ".join(wanted), *pip, "--target", "FOLDER", *wanted)


@pytest.fixture(scope="session")
def npm_package() -> Callable[[str], Path]:
    """npm_package("name@version") -> a folder with node_modules, kept for the next session."""
    npm = ("npm", "install", "--silent", "--ignore-scripts", "--prefix", "FOLDER")
    return lambda wanted: fetched(wanted, *npm, wanted)
