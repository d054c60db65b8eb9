"""Hostile graphs, each built byte by byte, and the sound one they differ from by one thing."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.wire import bytes_field, packed, varint_field
from hypothesis import given, settings
from hypothesis import strategies as st

from saten_runtime.bundle.graph import Graph, read_graph
from saten_runtime.bundle.protobuf import fields
from saten_runtime.errors import BundleError

FLOAT = 1
WEIGHT_BYTES = 4 * 2 * 3


def entry(key: str, value: str) -> bytes:
    return bytes_field(13, bytes_field(1, key) + bytes_field(2, value))


def tensor(*external: bytes, dims: tuple[int, ...] = (2, 3), kind: int = FLOAT, located: bool = True) -> bytes:
    where = varint_field(14, 1) if located else b""
    return packed(1, dims) + varint_field(2, kind) + bytes_field(8, "w") + b"".join(external) + where


SOUND_TENSOR = tensor(entry("location", "w.data"), entry("offset", "8"), entry("length", str(WEIGHT_BYTES)))


def node(op: str = "MatMul", *attributes: bytes, domain: str = "") -> bytes:
    parts = bytes_field(1, "x") + bytes_field(1, "w") + bytes_field(2, "y") + bytes_field(4, op)
    return parts + b"".join(bytes_field(5, one) for one in attributes) + bytes_field(7, domain)


def graph(*nodes: bytes, weights: bytes = SOUND_TENSOR, rest: bytes = b"") -> bytes:
    return b"".join(bytes_field(1, one) for one in nodes) + bytes_field(2, "g") + bytes_field(5, weights) + rest


def function(name: str, *nodes: bytes, domain: str = "saten") -> bytes:
    body = b"".join(bytes_field(7, one) for one in nodes)
    return bytes_field(25, bytes_field(1, name) + body + bytes_field(10, domain))


def model(main: bytes | None = None, rest: bytes = b"") -> bytes:
    opset = bytes_field(8, bytes_field(1, "") + varint_field(2, 18))
    return varint_field(1, 10) + bytes_field(7, graph(node()) if main is None else main) + opset + rest


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Graph]:
    def run(content: bytes) -> Graph:
        (tmp_path / "w.data").write_bytes(bytes(8 + WEIGHT_BYTES))
        (tmp_path / "model.onnx").write_bytes(content)
        return read_graph(tmp_path / "model.onnx", {"w.data", "link.data", "hard.data", "folder.data", "gone.data"})

    return run


def subgraph(inner: bytes) -> bytes:
    return graph(node("If", bytes_field(6, graph(inner, weights=tensor(located=False)))))


def nested(depth: int) -> bytes:
    inner = graph(node(), weights=tensor(located=False))
    for _ in range(depth):
        inner = graph(node("If", bytes_field(6, inner)), weights=tensor(located=False))
    return inner


def located(location: str, *more: bytes) -> bytes:
    return model(graph(node(), weights=tensor(entry("location", location), *more)))


CHAIN = b"".join(function(f"f{k}", *[node(f"f{k + 1}", domain="saten")] * 10) for k in range(9))
HOSTILE = {
    "foreign domain": (model(graph(node(domain="evil"))), "of the domain 'evil'"),
    "foreign domain in a subgraph": (model(subgraph(node(domain="evil"))), "of the domain 'evil'"),
    "foreign domain in a list of graphs": (
        model(graph(node("If", bytes_field(11, graph(node(domain="evil")))))),
        "of the domain 'evil'",
    ),
    "foreign domain in a function": (model(rest=function("f", node(domain="evil"))), "of the domain 'evil'"),
    "foreign domain in a second graph": (model(rest=bytes_field(7, graph(node(domain="evil")))), "'evil'"),
    "sparse initializer": (model(graph(node(), rest=bytes_field(15, b""))), "sparse initializer"),
    "sparse value": (model(graph(node("Constant", bytes_field(22, b"")))), "sparse tensor"),
    "training": (model(rest=bytes_field(20, b"")), "training information"),
    "parent folder": (located("../w.data"), "not list"),
    "absolute": (located("/etc/passwd"), "not list"),
    "memory marker": (located("*/_ORT_MEM_ADDR_/*"), "not list"),
    "not in the manifest": (located("other.data"), "not list"),
    "a link": (located("link.data"), r"is no regular file \(a link\)"),
    "a hard link": (located("hard.data"), "2 names"),
    "missing": (located("gone.data"), "is no regular file"),
    "a folder": (located("folder.data"), "is no regular file"),
    "offset beyond the file": (located("w.data", entry("offset", "9")), "ends at byte 33"),
    "negative offset": (located("w.data", entry("offset", "-1")), "'-1'"),
    "offset of no number": (located("w.data", entry("offset", "1e3")), "'1e3'"),
    "false length": (located("w.data", entry("length", str(2**60))), "claims"),
    "unknown key": (located("w.data", entry("hook", "x")), "describes its file"),
    "key twice": (located("w.data", entry("location", "w.data")), "describes its file"),
    "external, nowhere": (model(graph(node(), weights=tensor())), "describes its file"),
    "external by its entries alone": (
        model(graph(node(), weights=tensor(entry("location", "/x"), located=False))),
        "not list",
    ),
    "shape of a bomb": (
        model(graph(node(), weights=tensor(entry("location", "w.data"), dims=(2**40, 2**40)))),
        "offset or length",
    ),
    "strings elsewhere": (model(graph(node(), weights=tensor(entry("location", "w.data"), kind=8))), "data type 8"),
    "weights in an attribute": (
        model(graph(node("Constant", bytes_field(5, tensor(entry("location", "/x")))))),
        "not list",
    ),
    "function that calls itself": (
        model(graph(node("f", domain="saten")), function("f", node("f", domain="saten"))),
        "call themselves",
    ),
    "functions without end": (model(graph(node("f0", domain="saten")), CHAIN), "grows to 1000000000 nodes"),
    "function twice": (model(rest=function("f", node()) * 2), "twice"),
    "deep graphs": (model(nested(40)), "nests graphs"),
    "no graph": (varint_field(1, 10), "no graph"),
    "empty": (b"", "empty"),
    "random": (os.urandom(64) + b"\xff" * 16, "not a sound ONNX|no graph"),
}


def test_the_sound_one_is_read(read: Callable[[bytes], Graph]) -> None:
    found = read(model())
    assert found.opsets == {"": 18}
    assert found.ir_version == 10
    assert [(one.op_type, one.inputs, one.outputs) for one in found.nodes] == [("MatMul", ("x", "w"), ("y",))]
    assert (found.initializers["w"].shape, found.initializers["w"].bytes) == ((2, 3), WEIGHT_BYTES)
    read(model(subgraph(node()), function("f", node("g", domain="saten")) + function("g", node())))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_graphs_are_refused(read: Callable[[bytes], Graph], tmp_path: Path, name: str) -> None:
    (tmp_path / "link.data").symlink_to("w.data")
    (tmp_path / "other").write_bytes(bytes(100))
    os.link(tmp_path / "other", tmp_path / "hard.data")
    (tmp_path / "folder.data").mkdir()
    content, words = HOSTILE[name]
    with pytest.raises(BundleError, match=words) as caught:
        read(content)
    assert "\n" not in str(caught.value)


def test_every_cut_is_refused(read: Callable[[bytes], Graph]) -> None:
    whole = (
        varint_field(1, 10) + bytes_field(8, bytes_field(1, "") + varint_field(2, 18)) + bytes_field(7, graph(node()))
    )
    read(whole)
    for end in range(len(whole)):
        with pytest.raises(BundleError):
            read(whole[:end])


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_garbage_raises_nothing_else(tmp_path_factory: pytest.TempPathFactory, garbage: bytes, place: int) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.onnx"
    sound = model(graph(node(), weights=tensor(located=False)))
    path.write_bytes(sound[:place] + garbage + sound[place + len(garbage) :])
    with contextlib.suppress(BundleError):
        read_graph(path, set())


def test_a_model_that_is_a_link_is_refused(read: Callable[[bytes], Graph], tmp_path: Path) -> None:
    read(model())
    (tmp_path / "other.onnx").symlink_to("model.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in ("other.onnx", "pipe.onnx", "missing.onnx"):
        with pytest.raises(BundleError):
            read_graph(tmp_path / name, set())


def test_two_megabytes_are_read_in_a_moment(read: Callable[[bytes], Graph]) -> None:
    """In less than 0.3 s where counting to two million takes 0.03 s; a busy machine slows both."""
    name = bytes_field(3, "encoder.layer.0.attention.self.node_Transpose_123/a")
    one = bytes_field(1, node("Transpose", bytes_field(1, "perm") + varint_field(8, 1) + varint_field(20, 7)) + name)
    content = model(one * (2_000_000 // len(one)))
    reading, counting = (
        min(seconds(work) for _ in range(3))
        for work in (lambda: read(content), lambda: sum(1 for _ in range(2_000_000)))
    )
    assert reading < 10 * counting


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@given(st.lists(st.tuples(st.integers(1, 1000), st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=300)))))
def test_what_is_written_is_read(values: list[tuple[int, int | bytes]]) -> None:
    content = b"".join(
        varint_field(number, value) if isinstance(value, int) else bytes_field(number, value)
        for number, value in values
    )
    found = fields(content, 0, len(content))
    assert [(n, start if wire == 0 else content[start:end]) for n, wire, start, end in found] == values
