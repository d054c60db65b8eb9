"""Every form, every precision and every operator of the table runs in the oldest ONNX Runtime that targets name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from saten_exporters import TARGETS
from saten_exporters.choice.ort_format import ORT_FILE, add_ort_format
from saten_exporters.choice.targets import ORT_OPERATORS, Target
from saten_exporters.forms import RESIDUAL_FORMS, TRAIN_FORMS
from saten_exporters.quantize import PRECISIONS
from saten_runtime.bundle.folder import Bundle
from saten_runtime.run.parity import compare_outputs
from saten_runtime.vocabulary.operators import DOMAIN

HERE = Path(__file__).parent
MODELS = ("dense", "saten", "unstructured", "1of8")
# Precisions that need a newer one than the targets.
NEWER = [name for name, precision in PRECISIONS.items() if precision.smallest_onnxruntime != "0.0"]
BUNDLES = [(model, precision) for model in MODELS for precision in PRECISIONS if precision not in NEWER]
NEWER_BUNDLES = [(model, precision) for model in MODELS for precision in NEWER]
# Two orders of float32 sums; a hundred times less than what one wrong weight makes.
ROUNDING = 1e-5
# How 8-bit activations are cut into blocks is each build's own affair: a product's input is off by up to half a step of
# 1 / 127 of its largest, in either of two builds; products one after the other add up.
STEP = 1 / 127
IN_BLOCKS = tuple(f"-{name}" for name, precision in PRECISIONS.items() if precision.block)
# An activation in the middle between two codes of 8 bits goes to one in one build and to the other in the next, whose
# layer norms differ in the last bit. What then becomes of the outputs is seen here, where such bits are drawn: what
# norms give is below 8, where two neighbours of float32 are 2^-21 = 4.8e-7 apart, and either build may be off by one.
LAST_BIT, DRAWS = 1e-6, 8
# What every version reads in ORT format; of MatMulNBits, it keeps attributes that older ones do not know.
ORT_PRECISION = "int8"

Arrays = dict[str, np.ndarray]
Outputs = dict[str, np.ndarray | str]
BundleOf = Callable[[str, str], Bundle]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def codes(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 127, shape).astype(dtype)


def blockwise(bits: int) -> tuple[list[np.ndarray], dict[str, Any]]:
    inputs = [normal(3, 64), codes(32, 2, 32 * bits // 8), normal(64) ** 2]
    return inputs, {"K": 64, "N": 32, "bits": bits, "block_size": 32}


def lookup(bits: int) -> tuple[list[np.ndarray], dict[str, Any]]:
    inputs = [codes(10, 64 * bits // 8), np.array([3, 0, 9]), normal(10, 2)]
    return inputs, {"block_size": 32, "gather_axis": 0, "quantize_axis": 1, "bits": bits}


POSITIONS = np.arange(4)[None]
HEADS = {"num_heads": 2}
# case → inputs (arrays of 8 bits and those after the first float are weights) and attributes
OPERATORS: dict[str, tuple[list[np.ndarray | None], dict[str, Any]]] = {
    "SimplifiedLayerNormalization": ([normal(2, 8), normal(8)], {"axis": -1, "epsilon": 1e-6, "stash_type": 1}),
    "BiasGelu": ([normal(2, 8), normal(8)], {}),
    "DynamicQuantizeMatMul": ([normal(2, 8), codes(8, 4, dtype=np.int8), normal(4) ** 2], {}),
    "FastGelu": ([normal(2, 8), normal(8)], {}),
    "FusedMatMul": ([normal(2, 8), normal(4, 8)], {"transB": 1, "alpha": 0.5}),
    "GatherBlockQuantized": lookup(8),
    "Gelu": ([normal(2, 8)], {}),
    "GroupQueryAttention": (
        [
            *(normal(1, 4, 16), normal(1, 4, 8), normal(1, 4, 8), normal(1, 1, 3, 8), normal(1, 1, 3, 8)),
            *(np.int32([6]), np.array(7, np.int32), None, None, None, normal(1, 1, 4, 7)),
        ],
        {**HEADS, "kv_num_heads": 1},
    ),
    "MatMulNBits 4": blockwise(4),
    "MatMulNBits 8": blockwise(8),
    "MultiHeadAttention": ([normal(1, 4, 8), normal(1, 4, 8), normal(1, 4, 8)], HEADS),
    "QuickGelu": ([normal(2, 8)], {"alpha": 1.702}),
    "RotaryEmbedding": ([normal(1, 4, 8), POSITIONS, normal(16, 2), normal(16, 2)], HEADS),
    "SkipLayerNormalization": ([normal(1, 4, 8), normal(1, 4, 8), normal(8), normal(8)], {"epsilon": 1e-6}),
    "SkipSimplifiedLayerNormalization": ([normal(1, 4, 8), normal(1, 4, 8), normal(8)], {"epsilon": 1e-6}),
}

# Of `NEWER`.
NEWER_OPERATORS = {"GatherBlockQuantized 2": lookup(2), "MatMulNBits 2": blockwise(2)}

OUTPUTS = {"GroupQueryAttention": 3}  # 1.23.0 wants the outputs of the cache, too


def one_operator(case: str) -> tuple[ir.Model, Arrays]:
    """The model of one node, and what it is fed."""
    arrays, attributes = {**OPERATORS, **NEWER_OPERATORS}[case]
    op_type = case.partition(" ")[0]
    domain = next(domain for domain, names in ORT_OPERATORS.items() if op_type in names)
    values = [None if array is None else a_value(f"i{k}", array) for k, array in enumerate(arrays)]
    present = [value for value in values if value is not None]
    node = ir.node(op_type, values, attributes=attributes, domain=domain, num_outputs=OUTPUTS.get(op_type, 1))
    for extra in node.outputs[1:]:
        extra.name = f"unread.{extra.index()}"
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    fed = [value for value in present if value.const_value.dtype.itemsize > 1]
    stored = [value for value in present if value not in fed]
    row = TARGETS["x86-64"]
    feeds = {value.name: value.const_value.numpy() for value in fed}
    for value in fed:
        value.const_value = None
    imports = {"": row.opset, "com.microsoft": 1}
    graph = ir.Graph(fed, node.outputs[:1], nodes=[node], initializers=stored, opset_imports=imports, name="g")
    return ir.Model(graph, ir_version=row.ir_version), feeds


def a_value(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


@pytest.fixture(scope="module")
def cases(bundle_of: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per bundle and per operator: the model, and its inputs as arrays."""
    return written(tmp_path_factory.mktemp("cases"), BUNDLES, OPERATORS, bundle_of)


@pytest.fixture(scope="module")
def newer_cases(bundle_of: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of `NEWER`."""
    return written(tmp_path_factory.mktemp("newer-cases"), NEWER_BUNDLES, NEWER_OPERATORS, bundle_of)


def written(folder: Path, bundles: Iterable[tuple[str, str]], operators: Iterable[str], bundle_of: BundleOf) -> Path:
    for model, precision in bundles:
        bundle, case = bundle_of(model, precision), folder / f"{model}-{precision}"
        case.mkdir()
        for file in (bundle.model, bundle.path / "model.onnx.data"):
            shutil.copy(file, case)
        for name in bundle.manifest.inputs:
            shutil.copy(bundle.path / "validation" / f"ragged.{name}.npy", case / f"{name}.npy")
    for name in operators:
        model, feeds = one_operator(name)
        (folder / name).mkdir()
        ir.save(model, folder / name / "model.onnx")
        for each, array in feeds.items():
            np.save(folder / name / f"{each}.npy", array)
    return folder


@pytest.fixture(scope="module")
def ort_cases(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundles in ORT format, as a phone gets them."""
    folder = tmp_path_factory.mktemp("ort-cases")
    for case in (cases / f"{model}-{ORT_PRECISION}" for model in MODELS):
        shutil.copytree(case, folder / case.name)
        (folder / case.name / "validation").mkdir()
        add_ort_format(folder / case.name)
        shutil.move(folder / case.name / ORT_FILE, folder / case.name / "model.ort")
        (folder / case.name / "model.onnx").unlink()
    return folder


def native(version: str, pip_packages: Callable[..., Path], npm_package: Callable[[str], Path]) -> list[str]:
    folder = pip_packages(f"onnxruntime=={version}", "numpy>=2,<3")
    # Without site-packages, so that what is installed here cannot be what runs.
    return ["env", f"PYTHONPATH={folder}", sys.executable, "-S", str(HERE / "plain_ort.py")]


def web(version: str, pip_packages: Callable[..., Path], npm_package: Callable[[str], Path]) -> list[str]:
    folder = npm_package(f"onnxruntime-web@{version}")
    return ["env", f"MODULES={folder}", "node", str(HERE / "plain_ort.mjs")]


# target → the command that runs its graphs; a target without a row fails. A board runs the same sources as x86-64;
# `make test-arm` runs bundles on an emulated one.
RUNTIMES = dict.fromkeys(("x86-64", "x86-64+kernels", "arm64", "arm64+kernels", "mobile"), native) | {"web": web}


@pytest.fixture(scope="module")
def run_all(
    pip_packages: Callable[..., Path], npm_package: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Outputs]:
    """run_all(target, cases) -> the first output of each case, or the error, in the target's oldest runtime.

    With a precision, in the oldest that runs it.
    """
    made: dict[Any, Outputs] = {}

    def run(target: Target, cases: Path, precision: str = "fp32") -> Outputs:
        runtime, version = RUNTIMES[target.name], f"{target.smallest_for(PRECISIONS[precision])}.0"
        if (runtime, version, cases) not in made:
            out = tmp_path_factory.mktemp("outputs")
            command = [*runtime(version, pip_packages, npm_package), str(cases), str(out)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.stdout.strip() == version, done.stderr
            made[runtime, version, cases] = dict(read(out))
        return made[runtime, version, cases]

    return run


def read(out: Path) -> Iterator[tuple[str, np.ndarray | str]]:
    for file in out.iterdir():
        yield file.stem, np.load(file) if file.suffix == ".npy" else file.read_text()


def products(model: ir.Model, nodes: Iterable[ir.Node]) -> int:
    """Products with 8-bit activations in blocks, those of functions once for each call."""
    called = {key[:2]: function for key, function in model.functions.items()}
    return sum(
        products(model, called[node.domain, node.op_type])
        if (node.domain, node.op_type) in called
        else node.op_type == "MatMulNBits"
        for node in nodes
    )


def what_last_bits_make(
    case: Path, feeds: Arrays, wanted: np.ndarray, run_ort: Callable[..., list[np.ndarray]]
) -> float:
    """How far outputs of 8-bit activations go where the last bits of layer norms are others; 0 for the rest."""
    if not case.name.endswith("-int8"):
        return 0.0
    model = ir.load(case / "model.onnx")
    ir.external_data.load_to_model(model)
    biases = {node.inputs[2] for node in model.graph if node.op_type == "LayerNormalization"}
    original = {bias: bias.const_value.numpy() for bias in biases}
    found = []
    for seed in range(DRAWS):
        random = np.random.default_rng(seed)
        for bias in sorted(biases, key=lambda value: value.name):
            moved = original[bias] + random.choice([-LAST_BIT, LAST_BIT], original[bias].shape)
            bias.const_value = ir.tensor(moved.astype(np.float32), name=bias.name)
        found.append(compare_outputs(run_ort(model, feeds)[0], wanted, feeds["attention_mask"])[0])
    return max(found)


def agree(
    case: Path, got: np.ndarray | str, wanted: np.ndarray, mask: np.ndarray | None, allowed: float = ROUNDING
) -> bool:
    assert isinstance(got, np.ndarray), got
    model = ir.load(case / "model.onnx")
    blocks = products(model, model.graph) if case.name.endswith(IN_BLOCKS) else 0
    return compare_outputs(got, wanted, mask)[0] <= allowed + blocks * STEP


def test_every_form_and_every_operator_is_tried(bundle_of: BundleOf) -> None:
    forms = {form.op_type for form in (*TRAIN_FORMS.values(), *RESIDUAL_FORMS.values())}
    models = [ir.load(bundle_of(*kind).model) for kind in (*BUNDLES, *NEWER_BUNDLES)]
    assert forms <= {name for model in models for domain, name, _ in model.functions if domain == DOMAIN}
    assert {case.partition(" ")[0] for case in OPERATORS} == set().union(*ORT_OPERATORS.values())
    assert set(RUNTIMES) == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_bundles_and_operators(
    target: Target, cases: Path, run_all: Callable[..., Outputs], run_ort: Callable[..., list[np.ndarray]]
) -> None:
    outputs = run_all(target, cases)
    assert set(outputs) == {case.name for case in cases.iterdir()}
    for name, got in outputs.items():
        feeds = {file.stem: np.load(file) for file in (cases / name).glob("*.npy")}
        wanted, mask = run_ort(cases / name / "model.onnx", feeds)[0], feeds.get("attention_mask")
        allowed = ROUNDING + what_last_bits_make(cases / name, feeds, wanted, run_ort)
        assert agree(cases / name, got, wanted, mask, allowed), name
        assert not agree(cases / name, np.roll(got, 1, axis=-1), wanted, mask, allowed), name


@pytest.mark.parametrize("precision", NEWER)
@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_what_needs_a_newer_one(
    target: Target,
    precision: str,
    newer_cases: Path,
    run_all: Callable[..., Outputs],
    run_ort: Callable[..., list[np.ndarray]],
) -> None:
    outputs = run_all(target, newer_cases, precision)
    assert set(outputs) == {case.name for case in newer_cases.iterdir()}
    for name, got in outputs.items():
        feeds = {file.stem: np.load(file) for file in (newer_cases / name).glob("*.npy")}
        wanted, mask = run_ort(newer_cases / name / "model.onnx", feeds)[0], feeds.get("attention_mask")
        assert agree(newer_cases / name, got, wanted, mask), name
        assert not agree(newer_cases / name, np.roll(got, 1, axis=-1), wanted, mask), name


@pytest.mark.parametrize("precision", ["fp32"])
@pytest.mark.parametrize("model", MODELS)
def test_bundles_agree_with_torch(
    model: str, precision: str, bundle_of: BundleOf, cases: Path, run_all: Callable[..., Outputs]
) -> None:
    bundle = bundle_of(model, precision)
    for target in TARGETS.values():
        got = run_all(target, cases)[f"{model}-{precision}"]
        folder = bundle.path / "validation"
        wanted, mask = np.load(folder / "ragged.last_hidden_state.npy"), np.load(folder / "ragged.attention_mask.npy")
        assert compare_outputs(got, wanted, mask)[0] <= bundle.manifest.tolerance["relative"]


def test_ort_format(
    ort_cases: Path, cases: Path, run_all: Callable[..., Outputs], run_ort: Callable[..., list[np.ndarray]]
) -> None:
    outputs = run_all(TARGETS["mobile"], ort_cases)
    assert set(outputs) == {f"{model}-{ORT_PRECISION}" for model in MODELS}
    for name, got in outputs.items():
        feeds = {file.stem: np.load(file) for file in (cases / name).glob("*.npy")}
        wanted = run_ort(cases / name / "model.onnx", feeds)[0]
        assert agree(cases / name, got, wanted, feeds["attention_mask"]), name


def test_an_operator_that_a_runtime_lacks_is_noticed(
    cases: Path, tmp_path: Path, run_all: Callable[..., Outputs]
) -> None:
    shutil.copytree(cases / "Gelu", tmp_path / "cases" / "Gelu")
    model = ir.load(tmp_path / "cases" / "Gelu" / "model.onnx")
    model.graph[0].op_type = "Unheard"
    ir.save(model, tmp_path / "cases" / "Gelu" / "model.onnx")
    for target in ("x86-64", "web"):
        said = run_all(TARGETS[target], tmp_path / "cases")["Gelu"]
        assert isinstance(said, str)
        assert said
