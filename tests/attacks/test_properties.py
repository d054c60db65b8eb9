"""What holds for every input that hypothesis comes up with. `make fuzz` tries more of them, and others each time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile.sound import LOOKUP, graph, model, safetensors, tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from saten_edge.checkpoints.checkpoint import SatenConfig
from saten_edge.checkpoints.guard import TENSOR_NAME, read_header
from saten_edge.checkpoints.modules import LayerSpec, ResidualPart
from saten_edge.decomposition import tt
from saten_edge.decomposition.residual import pattern_named
from saten_edge.decomposition.tt import TensorTrain, contraction_peak
from saten_edge.devices.transports import parse_devices
from saten_edge.phone.schema import Bench, parse_post
from saten_runtime.bundle.graph import read_graph
from saten_runtime.errors import BundleError, CheckpointError, DataError, SatenError, UsageError
from saten_runtime.records.files import parse_json, replace_file
from saten_runtime.records.folders import MARK, new_folder
from saten_runtime.records.jsonl import LineWriter, read_lines
from saten_runtime.records.plain_text import printable

EXAMPLES = int(os.environ.get("SATEN_EXAMPLES", "300"))
thorough = settings(max_examples=EXAMPLES, derandomize=EXAMPLES == 300)

NAMES = st.from_regex(TENSOR_NAME, fullmatch=True)
ENTRIES = st.tuples(st.sampled_from(["F32", "U8", "I32", "BF16"]), st.lists(st.integers(0, 4), max_size=3).map(tuple))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that examples share, in memory where there is such a place."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        yield Path(name)


@thorough
@given(st.dictionaries(NAMES, ENTRIES, max_size=5))
def test_a_header_that_was_written_is_read(folder: Path, tensors: dict[str, Any]) -> None:
    path = folder / "a.safetensors"
    path.write_bytes(safetensors(tensors))
    assert {name: (one.dtype, one.shape) for name, one in read_header(path).items()} == tensors


@thorough
@given(st.dictionaries(NAMES, ENTRIES, max_size=3), st.binary(min_size=1, max_size=12), st.integers(0, 300))
def test_a_header_with_a_hole_in_it_is_refused_or_fills_its_file(
    folder: Path, tensors: dict[str, Any], garbage: bytes, place: int
) -> None:
    path = folder / "b.safetensors"
    whole = safetensors(tensors)
    path.write_bytes(whole[:place] + garbage + whole[place + len(garbage) :])
    with contextlib.suppress(CheckpointError):
        found = read_header(path)
        size = struct.unpack("<Q", path.read_bytes()[:8])[0]
        items = {"F32": 4, "I32": 4, "BF16": 2, "U8": 1}
        assert sum(one.numel * items.get(one.dtype, 0) for one in found.values()) <= path.stat().st_size - 8 - size


@thorough
@given(JSON)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    with pytest.raises(ValueError, match="occurs twice"):
        parse_json(b'{"a": 1, "a": ' + json.dumps(value).encode() + b"}")


@thorough
@given(st.binary(max_size=40), st.integers(0, 200))
def test_a_graph_with_a_hole_in_it_raises_nothing_else(folder: Path, garbage: bytes, place: int) -> None:
    path = folder / "model.onnx"
    whole = model(graph([LOOKUP], [tensor("table", torch.zeros(2, 4).numpy())]))
    path.write_bytes(whole[:place] + garbage + whole[place + len(garbage) :])
    with contextlib.suppress(BundleError):
        read_graph(path, set())


@st.composite
def trains(draw: st.DrawFn) -> TensorTrain:
    dims = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    ranks = [1, *draw(st.lists(st.integers(1, 5), min_size=len(dims) - 1, max_size=len(dims) - 1)), 1]
    cores = tuple(torch.ones(left, n, right) for left, n, right in zip(ranks, dims, ranks[1:], strict=False))
    return TensorTrain(cores, draw(st.integers(1, len(dims) - 1)))


@thorough
@given(trains())
def test_no_product_of_cores_is_larger_than_foreseen(train: TensorTrain) -> None:
    real, made = tt.torch.tensordot, [0]

    def seen(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        made.append(result.numel())
        return result

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tt.torch, "tensordot", seen)
        factors = train.factors()
    largest = max(*made, *(factor.numel() for factor in factors))
    assert largest <= contraction_peak(train)
    if train.shape == train.padded_shape:
        assert contraction_peak(train) <= max(largest, *(core.numel() for core in train.cores))


@thorough
@given(st.dictionaries(st.text(max_size=12), JSON, max_size=3), JSON)
def test_a_spec_is_ours_or_refused(layers: dict[str, Any], value: Any) -> None:
    sound = {
        **{"kind": "linear", "shape": [4, 4], "cores": [[1, 4, 1], [1, 4, 1]], "inputs": 1, "pattern": "none"},
        **{"group": 1, "values": [0], "indices": {}, "bias": False, "padding_idx": None, "error": 0.0},
    }
    for name in sound:
        with contextlib.suppress(CheckpointError):
            SatenConfig({"a": {**sound, name: value}, **layers}, {}).specs()
    assert SatenConfig({"a": sound}, {}).specs()["a"].shape == (4, 4)


@thorough
@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4), st.integers(0, 3))
def test_the_last_that_was_written_is_there_and_nothing_else(folder: Path, contents: list[bytes], fails: int) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path, expected = Path(name) / "out", None
        for index, content in enumerate(contents):
            with contextlib.suppress(KeyboardInterrupt), new_folder(path, overwrite=True) as aside:
                replace_file(aside / "file", content)
                if index == fails:
                    raise KeyboardInterrupt
                expected = content
        assert [one.name for one in Path(name).iterdir()] == (["out"] if expected is not None else [])
        assert expected is None or {one.name: one.read_bytes() for one in path.iterdir() if one.name != MARK} == {
            "file": expected
        }


@thorough
@given(st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=2), max_size=5), st.integers(0, 400))
def test_a_journal_that_was_cut_goes_on_after_its_last_whole_line(
    folder: Path, rows: list[dict[str, Any]], place: int
) -> None:
    path = folder / "lines.jsonl"
    path.unlink(missing_ok=True)
    with LineWriter(path) as lines:
        lines.write_all(rows)
    path.write_bytes(path.read_bytes()[:place])
    kept = path.read_bytes().count(b"\n")
    assert read_lines(path) == rows[:kept]
    with LineWriter(path, keep=True) as lines:
        lines.write_all(rows[kept:])
    assert read_lines(path) == rows


@thorough
@given(st.text(max_size=80))
def test_what_is_printed_is_printable(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)


@thorough
@given(st.text(max_size=40) | st.from_regex(r"ssh://[-A-Za-z0-9@:/.$;' ]{0,30}", fullmatch=True))
def test_no_device_is_an_option(url: str) -> None:
    with contextlib.suppress(UsageError):
        for device in parse_devices([url]):
            host = getattr(device, "host", "")
            assert not host.startswith("-")
            assert not set(host) & set(" ;$`'\"\n\\")


@thorough
@given(st.data())
def test_indices_name_entries_once_or_are_refused(data: st.DataObject) -> None:
    name, shape = data.draw(st.sampled_from(["grouped", "unstructured", "2:4"])), (8, 8)
    pattern = pattern_named(name, "linear", group=2, width=8)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    matrix = torch.randn(shape, generator=generator)
    residual = pattern.extract(matrix, pattern.select(matrix.square(), 24))
    indices = {key: (str(one.dtype).removeprefix("torch."), tuple(one.shape)) for key, one in residual.indices.items()}
    spec = LayerSpec(
        *("linear", shape, ((1, 8, 1), (1, 8, 1)), 1, name, 2, tuple(residual.values.shape)), indices, False, None, 0.0
    )
    part = ResidualPart(spec, torch.float32)
    part.replace(residual)
    part.check("sound")
    key = data.draw(st.sampled_from(sorted(indices)))
    whole = part.get_buffer(key).view(torch.uint8).reshape(-1)
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CheckpointError):
        part.check("damaged")
        with torch.no_grad():
            part.values.fill_(1.0)
            dense = part.dense()
        assert dense.sum() == part.values.numel()
        assert set(dense.unique().tolist()) <= {0.0, 1.0}


@thorough
@given(JSON | st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(Bench)]), JSON))
def test_a_post_is_ours_or_refused(value: Any) -> None:
    with contextlib.suppress(DataError):
        parse_post(Bench, json.dumps(value).encode())


def test_every_property_has_its_examples() -> None:
    """The number is set once, for all of them."""
    tests: list[Callable[..., Any]] = [value for name, value in globals().items() if hasattr(value, "hypothesis")]
    assert len(tests) >= 8
    assert {test._hypothesis_internal_use_settings.max_examples for test in tests} == {EXAMPLES}
    assert issubclass(CheckpointError, SatenError)
