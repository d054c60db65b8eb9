"""What a graph is made of, read from its file without ONNX, and the refusal of hostile ones.

ONNX Runtime trusts what it loads: it follows hard links, makes a sparse initializer of 139 bytes
dense, and runs whatever library was registered for an operator's domain. So everything is looked
at here first, in subgraphs and functions too: `read_graph` refuses

- a file that is cut off, and structures nested or expanding without end,
- weights outside the bundle: paths, links, hard links, files the manifest does not list, and
  offsets and lengths that do not fit the file or the tensor,
- sparse tensors, training information, and operators of a domain not in `DOMAINS`.

Field numbers: onnx/onnx.proto (ONNX 1.23).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from saten_runtime.bundle.protobuf import BYTES, VARINT, Field, fields, numbers
from saten_runtime.errors import BundleError
from saten_runtime.records.files import open_regular
from saten_runtime.vocabulary.operators import DOMAIN

__all__ = ["DOMAINS", "Graph", "Node", "Tensor", "read_graph"]

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft", DOMAIN})

_LARGEST_FILE_BYTES = 2**31  # what protobuf can hold
_DEEPEST = 32  # subgraphs in subgraphs
_MOST_AXES = 64
_MOST_NODES = 1_000_000  # after functions are inlined
_LOCATION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}
_BITS = {  # TensorProto.DataType: bits per element; strings (8) have none
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
    15: 128,
}

_MODEL = {"ir_version": 1, "graph": 7, "opset_import": 8, "training_info": 20, "functions": 25}
_GRAPH = {"node": 1, "initializer": 5, "sparse_initializer": 15}
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE = {"name": 1, "i": 3}
_TENSOR_ATTRIBUTES, _GRAPH_ATTRIBUTES, _SPARSE_ATTRIBUTES = (5, 10), (6, 11), (22, 23)
_TENSOR = {"dims": 1, "data_type": 2, "name": 8, "external_data": 13, "data_location": 14}
_ENTRY = {"key": 1, "value": 2}
_OPSET = {"domain": 1, "version": 2}
_FUNCTION = {"name": 1, "node": 7, "domain": 10}


@dataclass(frozen=True)
class Node:
    """One node of the main graph: its operator, the names of itself, its inputs and its outputs, its whole numbers."""

    name: str
    domain: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Tensor:
    """Shape of an initializer, and the bytes its values take."""

    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Graph:
    """opsets: version by domain; nodes, initializers: of the main graph, the latter by name."""

    ir_version: int
    opsets: dict[str, int]
    nodes: list[Node]
    initializers: dict[str, Tensor]


@dataclass
class _Body:
    """What the nodes of a function or graph call, subgraphs included: (domain, op_type), once per call."""

    calls: list[tuple[str, str]] = field(default_factory=list)


def read_graph(model: Path, listed: Collection[str], domains: Collection[str] = DOMAINS) -> Graph:
    """Read and check `model`; weights may lie beside it in files that are `listed`, operators be of `domains`.

    Raises:
        BundleError: see the module.
    """
    content = _read(model)
    try:
        return _Reader(model, content, listed, domains).read()
    except ValueError as cause:
        raise BundleError(f"{model}: is not a sound ONNX file ({cause}); copy or export the bundle again") from None


def _read(model: Path) -> bytes:
    with open_regular(model, BundleError) as file:
        if os.fstat(file.fileno()).st_size >= _LARGEST_FILE_BYTES:
            raise BundleError(f"{model}: is larger than the 2 GiB that protobuf can hold; export the bundle again")
        return file.read()


class _Reader:
    def __init__(self, model: Path, content: bytes, listed: Collection[str], domains: Collection[str]) -> None:
        self._model, self._content, self._listed, self._domains = model, content, listed, domains
        self._sizes: dict[str, int] = {}

    def read(self) -> Graph:
        end = len(self._content)
        if not end:
            raise ValueError("it is empty")
        found = fields(self._content, 0, end)
        if any(True for _ in _named(found, _MODEL["training_info"])):
            raise self._refusal("holds training information")
        functions = {}
        for part in _named(found, _MODEL["functions"]):
            name, body = self._function(part)
            if name in functions:
                raise self._refusal(f"defines the function {name[1]!r} twice")
            functions[name] = body
        main, nodes, initializers = _Body(), [], {}
        for part in _named(found, _MODEL["graph"]):
            more_nodes, more_initializers = self._graph(part, main, depth=0)
            nodes += more_nodes
            initializers.update(more_initializers)
        if not nodes:
            raise ValueError("it has no graph")
        self._check_expansion(main, functions)
        opsets = dict(self._opset(part) for part in _named(found, _MODEL["opset_import"]))
        return Graph(max(_numbers(found, _MODEL["ir_version"]), default=0), opsets, nodes, initializers)

    def _refusal(self, what: str) -> BundleError:
        return BundleError(f"{self._model}: {what}, which no saten-edge bundle does; do not run it")

    def _text(self, part: tuple[int, int]) -> str:
        return self._content[part[0] : part[1]].decode()

    def _fields(self, part: tuple[int, int]) -> list[Field]:
        return fields(self._content, *part)

    def _opset(self, part: tuple[int, int]) -> tuple[str, int]:
        found = self._fields(part)
        domain = "".join(self._text(text) for text in _named(found, _OPSET["domain"]))
        return domain, max(_numbers(found, _OPSET["version"]), default=0)

    def _function(self, part: tuple[int, int]) -> tuple[tuple[str, str], _Body]:
        found, body = self._fields(part), _Body()
        names = ["".join(self._text(text) for text in _named(found, _FUNCTION[key])) for key in ("domain", "name")]
        for node in _named(found, _FUNCTION["node"]):
            self._node(node, body, depth=0)
        return (names[0], names[1]), body

    def _graph(self, part: tuple[int, int], body: _Body, depth: int) -> tuple[list[Node], dict[str, Tensor]]:
        if depth > _DEEPEST:
            raise self._refusal(f"nests graphs more than {_DEEPEST} deep")
        found = self._fields(part)
        if any(True for _ in _named(found, _GRAPH["sparse_initializer"])):
            raise self._refusal("holds a sparse initializer")
        nodes = [self._node(node, body, depth) for node in _named(found, _GRAPH["node"])]
        return nodes, dict(self._tensor(tensor) for tensor in _named(found, _GRAPH["initializer"]))

    def _node(self, part: tuple[int, int], body: _Body, depth: int) -> Node:
        content = self._content
        inputs, outputs, name, op_type, domain = [], [], "", "", ""
        integers: dict[str, int] = {}
        for number, wire, start, end in fields(content, *part):
            if wire != BYTES:
                continue
            if number == _NODE_INPUT:
                inputs.append(content[start:end].decode())
            elif number == _NODE_OUTPUT:
                outputs.append(content[start:end].decode())
            elif number == _NODE_NAME:
                name = content[start:end].decode()
            elif number == _NODE_OP_TYPE:
                op_type = content[start:end].decode()
            elif number == _NODE_ATTRIBUTE:
                integers.update(self._attribute((start, end), body, depth))
            elif number == _NODE_DOMAIN:
                domain = content[start:end].decode()
        if domain not in self._domains:
            known = ", ".join(repr(one) for one in sorted(self._domains))
            raise BundleError(
                f"{self._model}: operator {op_type!r:.80} is of the domain {domain!r:.80}, expected one of {known}; "
                "an operator of another domain runs a stranger's library"
            )
        body.calls.append((domain, op_type))
        return Node(name, domain, op_type, tuple(inputs), tuple(outputs), integers)

    def _attribute(self, part: tuple[int, int], body: _Body, depth: int) -> dict[str, int]:
        """Check what it holds; its name and number, where it is a whole one that is not negative."""
        found = self._fields(part)
        for number, wire, start, end in found:
            if wire != BYTES:
                continue
            if number in _TENSOR_ATTRIBUTES:
                self._tensor((start, end))
            elif number in _GRAPH_ATTRIBUTES:
                self._graph((start, end), body, depth + 1)
            elif number in _SPARSE_ATTRIBUTES:
                raise self._refusal("holds a sparse tensor")
        name = "".join(self._text(text) for text in _named(found, _ATTRIBUTE["name"]))
        whole = list(_numbers(found, _ATTRIBUTE["i"]))
        return {name: whole[-1]} if whole else {}

    def _tensor(self, part: tuple[int, int]) -> tuple[str, Tensor]:
        name, data_type, dims, external, is_external = "", 0, [], [], False
        for number, wire, start, end in fields(self._content, *part):
            if number == _TENSOR["dims"]:
                dims += [start] if wire == VARINT else numbers(self._content, start, end)
            elif (number, wire) == (_TENSOR["data_type"], VARINT):
                data_type = start
            elif (number, wire) == (_TENSOR["name"], BYTES):
                name = self._text((start, end))
            elif (number, wire) == (_TENSOR["external_data"], BYTES):
                external.append((start, end))
            elif (number, wire) == (_TENSOR["data_location"], VARINT):
                is_external |= start != 0
        if len(dims) > _MOST_AXES:
            raise self._refusal(f"tensor {name!r:.80} has {len(dims)} axes")
        size = (math.prod(dims) * _BITS.get(data_type, 0) + 7) // 8
        if external or is_external:
            self._check_external(name, [self._entry(entry) for entry in external], data_type, size)
        return name, Tensor(tuple(dims), size)

    def _entry(self, part: tuple[int, int]) -> tuple[str, str]:
        found = self._fields(part)
        key, value = ("".join(self._text(text) for text in _named(found, _ENTRY[name])) for name in ("key", "value"))
        return key, value

    def _check_external(self, name: str, entries: list[tuple[str, str]], data_type: int, size: int) -> None:
        known = dict(entries)
        if len(known) != len(entries) or not set(known) <= _EXTERNAL_KEYS or "location" not in known:
            raise self._refusal(f"tensor {name!r:.80} describes its file with {sorted(key for key, _ in entries)}")
        if data_type not in _BITS:
            raise self._refusal(f"tensor {name!r:.80} of data type {data_type} lies in another file")
        length = _natural(known.get("length", str(size)))
        end = _natural(known.get("offset", "0")) + length
        if length != size:
            raise self._refusal(f"tensor {name!r:.80} has {size} bytes of values and claims {length}")
        there = self._file_bytes(known["location"])
        if end > there:
            raise BundleError(
                f"{self._model}: tensor {name!r:.80} ends at byte {end} of {known['location']}, which has {there}; "
                "copy the bundle again"
            )

    def _file_bytes(self, location: str) -> int:
        """Size of a file beside the model that the manifest lists and nobody else holds."""
        if location not in self._sizes:
            if not _LOCATION.fullmatch(location) or location not in self._listed:
                raise self._refusal(f"takes weights from {location!r:.80}, which the manifest does not list")
            with open_regular(self._model.parent / location, BundleError) as file:
                status = os.fstat(file.fileno())
            if status.st_nlink != 1:
                raise BundleError(
                    f"{self._model.parent / location}: has {status.st_nlink} names, expected a file of its own; copy "
                    "the bundle without hard links (`cp -r`)"
                )
            self._sizes[location] = status.st_size
        return self._sizes[location]

    def _check_expansion(self, main: _Body, functions: dict[tuple[str, str], _Body]) -> None:
        """Refuse functions that call themselves, and graphs that inlining would make too large."""
        sizes: dict[tuple[str, str], int] = {}
        expand = partial(_expanded, functions=functions, sizes=sizes)
        try:
            total = sum(expand(call) for call in main.calls)
        except RecursionError:
            raise self._refusal("has functions that call themselves") from None
        if total > _MOST_NODES:
            raise self._refusal(f"grows to {total} nodes when its functions are inlined")


def _expanded(
    call: tuple[str, str], functions: dict[tuple[str, str], _Body], sizes: dict[tuple[str, str], int], depth: int = 0
) -> int:
    """Nodes that one call becomes; RecursionError beyond `_DEEPEST` functions in each other."""
    if call not in functions:
        return 1
    if depth > _DEEPEST:
        raise RecursionError
    if call not in sizes:
        sizes[call] = sum(_expanded(inner, functions, sizes, depth + 1) for inner in functions[call].calls)
    return sizes[call]


def _named(found: list[Field], number: int) -> Iterator[tuple[int, int]]:
    """Where the strings and messages of one field lie."""
    return ((start, end) for other, wire, start, end in found if other == number and wire == BYTES)


def _numbers(found: list[Field], number: int) -> Iterator[int]:
    return (value for other, wire, value, _ in found if other == number and wire == VARINT)


def _natural(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ValueError(f"an offset or length is {text!r:.40}")
    return int(text)
