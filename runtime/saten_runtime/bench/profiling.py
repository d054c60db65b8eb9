"""Where the time of a run goes: ONNX Runtime's own profile, summed per layer of the manifest.

ONNX Runtime inlines the functions of the domain `saten`, so the profile names their parts
"MatMul_400". The graph it made is therefore saved beside the profile: it lists the same nodes in
the same order, with the values they read. A node belongs to the layer whose weights it reads;
what lies between such nodes inside an inlined function, and the product before a layer's bias,
belong to it too.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saten_runtime.bench.plan import Setup, Size
from saten_runtime.bench.workload import make_workload
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.graph import DOMAINS, Node, read_graph
from saten_runtime.bundle.layers import layers_of
from saten_runtime.bundle.manifest import Layer
from saten_runtime.errors import InvalidRun
from saten_runtime.records.plain_text import align
from saten_runtime.records.reader import Natural, read_result
from saten_runtime.run.session import OPTIMIZED_FILE, make_session
from saten_runtime.run.text import Encoder

__all__ = ["Profile", "ProfileRow", "owners", "profile", "profile_table", "read_profile"]

_SCHEMA_VERSION = 1
_WARMUP_RUNS = 3
_OWN_DOMAINS = DOMAINS | {"com.microsoft.nchwc", "com.ms.internal.nhwc"}  # of the graphs ONNX Runtime writes
_INLINED = "_inlfunc_"  # what ONNX Runtime puts before the names of values inside an inlined function


@dataclass(frozen=True)
class ProfileRow:
    """A layer of the manifest, or the nodes of one operator outside of all layers (form None).

    ms: per run; time_share: of the run; bytes_share, macs_share: of all layers listed.
    """

    name: str
    form: str | None
    ms: float
    time_share: float
    bytes_share: float | None
    macs_share: float | None


@dataclass(frozen=True)
class Profile:
    """rows: layers in the order of the manifest, then operators, slowest first. ms: the nodes of one run, profiled."""

    schema_version: int
    bundle: str
    setup: Setup
    size: Size
    runs: Natural
    ms: float
    rows: list[ProfileRow]

    def to_json(self) -> dict[str, Any]:
        """The profile as plain JSON data."""
        return dataclasses.asdict(self)


def profile(bundle: Bundle, setup: Setup, size: Size, *, runs: int = 20) -> Profile:
    """Profile `runs` runs after a warm-up.

    Raises:
        InvalidRun: the profile does not fit the graph.
        BundleError, RuntimeMismatch: the bundle cannot be run.
    """
    vocabulary = Encoder(bundle).vocabulary if bundle.manifest.tokenizer else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        session = make_session(bundle, threads=setup.threads, memory=setup.memory_mode, profile_folder=folder)
        work = make_workload(bundle, session, size, vocabulary)
        for _ in range(_WARMUP_RUNS + runs):
            work.begin()
            work.run()
        events = json.loads(Path(session.end_profiling()).read_bytes())
        nodes = read_graph(folder / OPTIMIZED_FILE, {f"{OPTIMIZED_FILE}.data"}, _OWN_DOMAINS).nodes
    milliseconds = _milliseconds(bundle.name, events, nodes, runs)
    rows = _rows(layers_of(bundle), nodes, milliseconds)
    return Profile(_SCHEMA_VERSION, bundle.name, setup, size, runs, sum(milliseconds), rows)


def read_profile(value: object) -> Profile:
    """The content of a profile, its strings made printable.

    Raises:
        DataError: another schema version, or a field missing, of a wrong type or out of range.
    """
    return read_result(Profile, value, "profile", _SCHEMA_VERSION)


def profile_table(result: Profile) -> str:
    """The profile as aligned text."""
    head = ("layer or operator", "form", "ms", "time %", "bytes %", "MACs %")
    rows = [
        (row.name, row.form or "", f"{row.ms:.3f}", *map(_percent, (row.time_share, row.bytes_share, row.macs_share)))
        for row in result.rows
    ]
    return align([head, *rows, ("all", "", f"{result.ms:.3f}", "", "", "")])


def owners(layers: Iterable[Layer], nodes: Sequence[Node]) -> list[str | None]:
    """The layer each node belongs to, or None."""
    names = sorted((layer.name for layer in layers), key=len, reverse=True)
    found = [_reads(node, names) for node in nodes]
    makers = {value: index for index, node in enumerate(nodes) for value in node.outputs}
    users: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(nodes):
        for value in node.inputs:
            users[value].append(index)
    # Forwards through inlined values, then backwards through them and from a bias to its product.
    for index, node in enumerate(nodes):
        inside = (makers[value] for value in node.inputs if value.startswith(_INLINED) and value in makers)
        found[index] = found[index] or next((found[maker] for maker in inside if found[maker]), None)
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        after = [user for value in node.outputs for user in users[value]]
        leads_on = len(after) == 1 and "MatMul" in node.op_type
        if leads_on or any(value.startswith(_INLINED) for value in node.outputs):
            found[index] = found[index] or next((found[user] for user in after if found[user]), None)
    return found


def _reads(node: Node, names: Sequence[str]) -> str | None:
    """The layer whose weights the node reads: named as the layer, or "<layer>.<part>"; longer names come first."""
    return next((name for name in names if any(f"{value}.".startswith(f"{name}.") for value in node.inputs)), None)


def _milliseconds(name: str, events: Sequence[dict[str, Any]], nodes: Sequence[Node], runs: int) -> list[float]:
    """Mean time of each node over the last `runs` runs."""
    timed = [event for event in events if event.get("cat") == "Node"]
    operators = [event["args"]["op_name"] for event in timed]
    if operators != [node.op_type for node in nodes] * (runs + _WARMUP_RUNS):
        raise InvalidRun(f"{name}: the profile lists other nodes than the graph; profile a bundle without loops")
    sums = [0.0] * len(nodes)
    for index, event in enumerate(timed[_WARMUP_RUNS * len(nodes) :]):
        sums[index % len(nodes)] += event["dur"] / 1000 / runs
    return sums


def _rows(layers: Sequence[Layer], nodes: Sequence[Node], milliseconds: Sequence[float]) -> list[ProfileRow]:
    times: dict[tuple[bool, str], float] = defaultdict(float)
    for node, owner, ms in zip(nodes, owners(layers, nodes), milliseconds, strict=True):
        times[owner is None, owner or node.op_type] += ms
    whole = sum(milliseconds) or 1.0
    all_bytes, all_macs = (sum(getattr(layer, what) for layer in layers) or 1 for what in ("bytes", "macs_per_row"))
    listed = [
        ProfileRow(
            layer.name,
            layer.form,
            ms := times.get((False, layer.name), 0.0),
            ms / whole,
            layer.bytes / all_bytes,
            layer.macs_per_row / all_macs,
        )
        for layer in layers
    ]
    rest = sorted(((ms, name) for (outside, name), ms in times.items() if outside), reverse=True)
    return listed + [ProfileRow(name, None, ms, ms / whole, None, None) for ms, name in rest]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
