"""Nodes of the domain `saten` on the native kernels, inside ONNX Runtime: the numbers of the function bodies."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from function_bodies import without_meaning

from saten_exporters import LayerParts
from saten_exporters.forms import EPILOGUES, RESIDUAL_FORMS, TRAIN_FORMS, Form, followed_by, form_of, head_of
from saten_exporters.forms.form import NATIVE

MakeParts = Callable[..., LayerParts]
OneForm = Callable[[Form, LayerParts], ir.Model]
Array = np.ndarray

PARTS = [row for row in (*((None, *row) for row in TRAIN_FORMS), *RESIDUAL_FORMS) if row[-1] in NATIVE]
NODES = [(row, whole) for row in PARTS for whole in ((False, True) if row[0] else (False,))]
LINEAR = [(row, whole) for row, whole in NODES if row[1] == "linear"]
UNIT = float(np.finfo(np.float32).eps) / 2
ISAS = ("scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "neon", "neondot", "neoni8mm")
SHAPES = ((1, 1), (2, 7), (1, 33), (0, 3))


def named(nodes: list[tuple[tuple[str | None, str, str], bool]]) -> list[str]:
    return ["-".join(map(str, row)) + ("-whole" if whole else "") for row, whole in nodes]


every_node = pytest.mark.parametrize(("row", "whole"), NODES, ids=named(NODES))


Session = Callable[..., onnxruntime.InferenceSession]


def form_at(row: tuple[str | None, str, str], whole: bool, parts: LayerParts) -> Form:
    pattern, kind, precision = row
    if whole:
        return form_of(parts, precision)
    return TRAIN_FORMS[kind, precision] if pattern is None else RESIDUAL_FORMS[row]


def use(monkeypatch: pytest.MonkeyPatch, isa: str, make: Callable[[], object]) -> object:
    """What `make` makes on an instruction set, skipping those that this processor has not."""
    monkeypatch.setenv("SATEN_KERNELS_ISA", isa)
    try:
        return make()
    except Exception as cause:
        if "this processor has" not in str(cause):
            raise
        pytest.skip(str(cause))


@pytest.mark.parametrize("isa", ISAS)
@every_node
def test_a_native_node_computes_what_its_matrices_do(
    row: tuple[str | None, str, str],
    whole: bool,
    isa: str,
    forms: ModuleType,
    make_parts: MakeParts,
    one_form: OneForm,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pattern, kind, precision = row
    for size in forms.SIZES:
        parts = make_parts(kind, pattern, size)
        model = without_meaning(one_form(form_at(row, whole, parts), parts))
        run = use(monkeypatch, isa, lambda model=model: session(model, threads=2))
        for shape in SHAPES:
            x = forms.make_x(parts, shape)
            (got,) = run.run(None, {"x": x})
            expected = forms.wanted(x, parts, train=whole or pattern is None, residual=pattern is not None)
            if x.size == 0:
                assert got.shape == expected.shape
                continue
            bound = forms.allowed(x, parts, forms.forms_at(pattern, kind, precision, whole=whole))
            assert forms.same(got, expected, bound), (size, shape, np.abs(got - expected).max())


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("precision", ["int4", "int4-128", "int2"])
def test_values_below_8_bits_are_widened_before_the_kernel_reads_them(
    precision: str, whole: bool, forms: ModuleType, make_parts: MakeParts, one_form: OneForm, session: Session
) -> None:
    """The kernel wants constants; they are some when the optimizer has computed them, and not before."""
    row = ("n:m", "linear", precision)
    parts = make_parts("linear", "n:m")
    form = form_at(row, whole, parts)
    x = forms.make_x(parts, (2, 7))
    native = without_meaning(one_form(form, parts), "NOfMLinearInt8")
    (got,) = session(native, threads=1).run(None, {"x": x})
    body = onnxruntime.InferenceSession(ir.to_proto(one_form(form, parts)).SerializeToString())
    (expected,) = body.run(None, {"x": x})
    # The kernel rounds activations row by row, the body all alike: each is within the bound of int8's own form.
    bound = 2 * forms.allowed(x, parts, (RESIDUAL_FORMS["n:m", "linear", "int4"],))
    assert forms.same(got, expected, bound), np.abs(got - expected).max()
    assert not forms.same(got, np.roll(expected, 1, axis=-1), bound)
    with pytest.raises(Exception, match="NOfMLinearInt8: stored is not constant"):
        session(native, optimized=False)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(("row", "whole"), LINEAR, ids=named(LINEAR))
def test_a_node_with_its_ending(
    row: tuple[str | None, str, str],
    whole: bool,
    epilogue: str,
    isa: str,
    forms: ModuleType,
    make_parts: MakeParts,
    one_form: OneForm,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pattern, kind, _ = row
    parts = make_parts(kind, pattern)
    bias = np.random.default_rng(3).standard_normal(parts.shape[1]).astype(np.float32)
    layer = form_at(row, whole, parts)
    form = dataclasses.replace(followed_by(layer, epilogue), pack=lambda parts: {**layer.pack(parts), "bias": bias})
    x = forms.make_x(parts, (2, 7))
    plain = forms.wanted(x, parts, train=whole or pattern is None, residual=pattern is not None)
    expected, bound = ended(plain, bias, forms.allowed(x, parts, forms.forms_at(*row, whole=whole)), epilogue)
    native = without_meaning(one_form(form, parts))
    (got,) = use(monkeypatch, isa, lambda: session(native, threads=2)).run(None, {"x": x})
    assert forms.same(got, expected, bound), np.abs(got - expected).max()
    body = onnxruntime.InferenceSession(ir.to_proto(one_form(form, parts)).SerializeToString())
    assert forms.same(body.run(None, {"x": x})[0], expected, bound)
    assert not forms.same(got, ended(plain, np.roll(bias, 1), bound, epilogue)[0], bound)


def ended(y: Array, bias: Array, bound: Array, epilogue: str) -> tuple[Array, Array]:
    """What an epilogue makes of y in float64, and of its bound: gelu' is at most 1.13, its error 8 units of its x."""
    y = y + bias.astype(np.float64)
    bound = bound + UNIT * (np.abs(y) + bound)
    if epilogue == "Bias":
        return y, bound
    erf = np.vectorize(math.erf)
    return y * (1 + erf(y / math.sqrt(2))) / 2, 1.13 * bound + 8 * UNIT * (np.abs(y) + bound)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", NATIVE)
@pytest.mark.parametrize("part", ["train", "residual", "whole"])
def test_a_native_head_computes_what_its_table_does(
    part: str,
    precision: str,
    isa: str,
    heads: ModuleType,
    make_parts: MakeParts,
    one_form: OneForm,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = make_parts("embedding", None if part == "train" else "ell")
    if part == "residual":
        parts = dataclasses.replace(parts, a=parts.a[:, :0], b=parts.b[:0])
    table = form_of(parts, precision)
    model = without_meaning(one_form(dataclasses.replace(head_of(table), pack=table.pack), parts))
    run = use(monkeypatch, isa, lambda: session(model, threads=2))
    for shape in ((1, 1), (2, 7), (1, 33)):
        x = heads.inputs(shape)["x"]
        (got,) = run.run(None, {"x": x})
        expected, bound = heads.wanted(x, parts), allowed_of_head(heads, x, parts, precision)
        assert same(got, expected, bound), np.abs(got - expected).max()
        assert not same(np.roll(got, 1, axis=-1), expected, bound)


def allowed_of_head(heads: ModuleType, x: Array, parts: LayerParts, precision: str) -> Array:
    """As a function body is allowed, whose activations are quantized by tensor, and so more coarsely than by row."""
    if parts.a.shape[1]:
        return heads.allowed(x, parts, precision)
    s = np.abs(heads.residual(parts))
    moved = heads.HALF * s.max(axis=1, keepdims=True) / 127 * (s > 0) * (precision == "int8")
    return np.abs(x) @ moved.T + (parts.shape[1] + 4) * UNIT * (np.abs(x) @ (s + moved).T)


def same(got: Array, expected: Array, bound: Array) -> bool:
    return got.shape == expected.shape and bool((np.abs(got - expected) <= bound).all())


def test_a_bias_of_another_size_is_refused(make_parts: MakeParts, one_form: OneForm, session: Session) -> None:
    parts = make_parts("linear", "grouped")
    layer = form_of(parts, "fp32")
    short = np.zeros(parts.shape[1] - 1, np.float32)
    form = dataclasses.replace(followed_by(layer, "Bias"), pack=lambda parts: {**layer.pack(parts), "bias": short})
    with pytest.raises(
        Exception, match=rf"LowRankGroupedLinearBias: bias has {len(short)} elements, expected {len(short) + 1}"
    ):
        session(without_meaning(one_form(form, parts)))


def test_without_a_kernel_the_emptied_body_would_show(
    forms: ModuleType, make_parts: MakeParts, one_form: OneForm
) -> None:
    parts = make_parts("linear", "grouped")
    model = without_meaning(one_form(form_of(parts, "fp32"), parts))
    run = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = run.run(None, {"x": forms.make_x(parts, (2, 7))})
    assert got.shape == ()


@every_node
def test_damaged_weights_are_seen(
    row: tuple[str | None, str, str],
    whole: bool,
    forms: ModuleType,
    make_parts: MakeParts,
    one_form: OneForm,
    session: Session,
) -> None:
    pattern, kind, _ = row
    parts = make_parts(kind, pattern)
    x = forms.make_x(parts, (2, 7))
    damage = forms.drop_one_value if pattern else forms.lose_a_rank
    (got,) = session(one_form(form_at(row, whole, parts), damage(parts, x))).run(None, {"x": x})
    expected = forms.wanted(x, parts, train=whole or pattern is None, residual=pattern is not None)
    assert not forms.same(got, expected, forms.allowed(x, parts, forms.forms_at(*row, whole=whole)))


@pytest.mark.parametrize("group", [1, 2, 4, 8, 12, 16, 32, 64])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_group_of_any_size(
    group: int, precision: str, forms: ModuleType, make_parts: MakeParts, one_form: OneForm, session: Session
) -> None:
    random = np.random.default_rng(group)
    groups = max(1, 96 // group)
    indices = np.stack([np.sort(random.permutation(48)[:9]) for _ in range(groups)]).astype(np.int32)
    values = random.standard_normal((groups, group, 9)).astype(np.float32)
    parts = make_parts("linear", "grouped")
    parts = dataclasses.replace(
        parts,
        shape=(48, groups * group),
        b=random.standard_normal((parts.b.shape[0], groups * group)).astype(np.float32),
        values=values,
        indices={"indices": indices},
    )
    x = forms.make_x(parts, (3, 11))
    forms_used = forms.forms_at("grouped", "linear", precision, whole=True)
    (got,) = session(one_form(form_of(parts, precision), parts)).run(None, {"x": x})
    expected = forms.wanted(x, parts, train=True, residual=True)
    assert forms.same(got, expected, forms.allowed(x, parts, forms_used))


@pytest.mark.parametrize("layout", ["grouped", "csr", "n:m"])
def test_values_stored_as_fp16(
    layout: str, forms: ModuleType, make_parts: MakeParts, one_form: OneForm, session: Session
) -> None:
    parts = make_parts("linear", layout)
    parts = dataclasses.replace(parts, values=parts.values.astype(np.float16).astype(np.float32))
    form = RESIDUAL_FORMS[layout, "linear", "fp32"]
    model = one_form(form, parts)
    stored = model.graph.initializers["blocks" if layout == "grouped" else "stored"]
    stored.const_value = ir.tensor(stored.const_value.numpy().astype(np.float16), name=stored.name)
    stored.type = ir.TensorType(ir.DataType.FLOAT16)
    x = forms.make_x(parts, (2, 7))
    (got,) = session(without_meaning(model)).run(None, {"x": x})
    assert forms.same(got, forms.wanted(x, parts, train=False, residual=True), forms.allowed(x, parts, (form,)))


def test_indices_beyond_two_bytes(
    forms: ModuleType, make_parts: MakeParts, one_form: OneForm, session: Session
) -> None:
    inputs = 70_000
    parts = dataclasses.replace(
        make_parts("linear", "grouped", "smallest"),
        shape=(inputs, 8),
        a=np.zeros((inputs, 1), np.float32),
        b=np.zeros((1, 8), np.float32),
        values=np.arange(1, 17, dtype=np.float32).reshape(1, 8, 2),
        indices={"indices": np.array([[7, inputs - 1]], np.int32)},
    )
    form = RESIDUAL_FORMS["grouped", "linear", "fp32"]
    run = session(one_form(form, parts))
    for shape in ((1, 1), (1, 9)):
        x = forms.make_x(parts, shape)
        (got,) = run.run(None, {"x": x})
        assert forms.same(got, forms.wanted(x, parts, train=False, residual=True), forms.allowed(x, parts, (form,)))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_result_does_not_depend_on_threads(
    threads: int, make_parts: MakeParts, one_form: OneForm, session: Session
) -> None:
    parts = large_layer(make_parts("linear", "grouped"))
    x = np.random.default_rng(3).standard_normal((1, 130, parts.shape[0])).astype(np.float32)
    model = one_form(form_of(parts, "int8"), parts)
    (one,), (several,) = session(model).run(None, {"x": x}), session(model, threads).run(None, {"x": x})
    assert (one == several).all()


def test_sessions_run_at_once(make_parts: MakeParts, one_form: OneForm, session: Session) -> None:
    parts = large_layer(make_parts("linear", "grouped"))
    model = one_form(form_of(parts, "int8"), parts)
    runs = [session(model, threads=2) for _ in range(2)]
    x = np.random.default_rng(3).standard_normal((1, 65, parts.shape[0])).astype(np.float32)
    (expected,) = runs[0].run(None, {"x": x})
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda k: runs[k % 2].run(None, {"x": x})[0], range(40)))
    assert all((result == expected).all() for result in results)


def large_layer(parts: LayerParts) -> LayerParts:
    """Large enough for several tasks."""
    random = np.random.default_rng(5)
    indices = np.stack([np.sort(random.permutation(200)[:40]) for _ in range(48)]).astype(np.int32)
    return dataclasses.replace(
        parts,
        shape=(200, 768),
        a=random.standard_normal((200, 20)).astype(np.float32),
        b=random.standard_normal((20, 768)).astype(np.float32),
        values=random.standard_normal((48, 16, 40)).astype(np.float32),
        indices={"indices": indices},
    )


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_in_its_row(
    bad: float, precision: str, make_parts: MakeParts, one_form: OneForm, session: Session
) -> None:
    parts = make_parts("linear", "grouped")
    x = np.ones((1, 20, parts.shape[0]), np.float32)
    x[0, 11, parts.indices["indices"][0, 0]] = bad
    (got,) = session(one_form(form_of(parts, precision), parts)).run(None, {"x": x})
    assert not np.isfinite(got[0, 11, :8]).any()
    assert np.isfinite(np.delete(got[0], 11, axis=0)).all()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("layout", [None, "rows", "ell"])
def test_ids_count_from_the_end_and_stay_inside(
    layout: str | None, precision: str, make_parts: MakeParts, one_form: OneForm, session: Session
) -> None:
    parts = make_parts("embedding", layout)
    rows = parts.shape[0]
    run = session(one_form(form_at((layout, "embedding", precision), True, parts), parts))
    ids = np.array([[0, rows - 1]])
    assert (run.run(None, {"x": ids - rows})[0] == run.run(None, {"x": ids})[0]).all()
    for outside in (rows, -rows - 1):
        with pytest.raises(Exception, match=f"id {outside} at position 1 is outside a table of {rows} rows"):
            run.run(None, {"x": np.array([[0, outside]])})
