"""What the page may post: strict types, ranges, no key unheard of.

The dataclasses are the schema, read by `saten_runtime.records.reader`. JSON is read by
`saten_runtime.records.files.parse_json`, which refuses duplicate keys, NaN and numbers that overflow to infinity.
"""

from __future__ import annotations

import base64
import math
import re
from dataclasses import dataclass
from typing import Annotated, TypeVar

import numpy as np
import numpy.typing as npt

from saten_runtime.errors import DataError
from saten_runtime.records.files import parse_json
from saten_runtime.records.reader import Bound, Reader

__all__ = [
    "MOST_BODY_BYTES",
    "MOST_OUTPUT_BYTES",
    "MOST_SAMPLES",
    "Answer",
    "Bench",
    "Device",
    "End",
    "Failure",
    "Output",
    "Post",
    "Prices",
    "ProbeTurn",
    "Start",
    "Turn",
    "parse_post",
]

MOST_BODY_BYTES = 1_000_000
MOST_OUTPUT_BYTES = 600_000
"""Of all outputs of one answer: as base64 they take 4/3 of it."""
MOST_SAMPLES = 40_000
"""Of one benchmark, over all turns: as decimal numbers of nanoseconds they fit the body."""

_MOST_NS = 10**12
_MOST_CELLS = 10_000


def _between(low: int, high: float) -> Bound:
    return Bound(f"a number from {low} to {high:g}", lambda value: low <= value <= high)


def _above_0(high: float) -> Bound:
    return Bound(f"a number above 0 and at most {high:g}", lambda value: 0 < value <= high)


def _of_length(low: int, high: int, what: str) -> Bound:
    return Bound(f"{low} to {high} {what}", lambda value: low <= len(value) <= high)


def _like(pattern: str, words: str) -> Bound:
    return Bound(words, lambda value: re.fullmatch(pattern, value) is not None)


Bundle = Annotated[int, _between(0, 999)]
Small = Annotated[int, _between(0, 10_000)]
Size = Annotated[int, _between(1, 1_000_000)]
Nanoseconds = Annotated[int, _between(1, _MOST_NS)]
Milliseconds = Annotated[float, _above_0(_MOST_NS / 1e6)]
Name = Annotated[str, _of_length(1, 200, "characters")]
Text = Annotated[str, _of_length(0, 500, "characters")]
Index = Annotated[str, _like("[0-9]{1,3}", "the number of a bundle")]
Sha256 = Annotated[str, _like("[0-9a-f]{64}", "a sha256 in hexadecimal")]
Loaded = Annotated[dict[Name, Sha256], _of_length(0, 64, "files")]
PostType = TypeVar("PostType", bound="Post")

_READER = Reader(DataError, exact=True)


@dataclass(frozen=True)
class Post:
    """run: id of the run it belongs to."""

    run: Name


@dataclass(frozen=True)
class Device:
    """What the browser tells of its device; tick_ns: the step of its clock, None: it does not tell."""

    cores: Annotated[int, _between(1, 4096)] | None
    memory_gib: Annotated[float, _above_0(1e6)] | None
    isolated: bool
    secure: bool
    tick_ns: Nanoseconds


@dataclass(frozen=True)
class Start:
    """How one bundle started in a fresh worker: see `saten_runtime.bench.summary.Start`."""

    bundle: Bundle
    threads: Size
    round: Small
    cold_load_ms: Milliseconds
    session_ms: Milliseconds
    first_run_ms: Milliseconds


@dataclass(frozen=True)
class Turn:
    """The samples of one bundle at one size in one round; each is the mean of `runs_per_sample` runs."""

    bundle: Bundle
    threads: Size
    batch: Size
    tokens: Size
    round: Small
    runs_per_sample: Size
    samples_ns: Annotated[list[Nanoseconds], _of_length(1, MOST_SAMPLES, "samples")]


@dataclass(frozen=True)
class Failure:
    """Why a bundle has no results with so many threads."""

    bundle: Bundle
    threads: Size
    reason: Text


@dataclass(frozen=True)
class Bench(Post):
    """A whole benchmark. loaded: by bundle, the sha256 of each file that was run; hidden: the page was away."""

    loaded: Annotated[dict[Index, Loaded], _of_length(0, 1000, "bundles")]
    device: Device
    hidden: bool
    starts: Annotated[list[Start], _of_length(0, _MOST_CELLS, "starts")]
    turns: Annotated[list[Turn], _of_length(0, _MOST_CELLS, "turns")]
    failures: Annotated[list[Failure], _of_length(0, _MOST_CELLS, "failures")]


@dataclass(frozen=True)
class ProbeTurn:
    """The samples of one probe on so many rows in one round; probe: its place in the list."""

    probe: Annotated[int, _between(0, 100_000)]
    rows: Size
    round: Small
    runs_per_sample: Size
    samples_ns: Annotated[list[Nanoseconds], _of_length(1, MOST_SAMPLES, "samples")]


@dataclass(frozen=True)
class Prices(Post):
    """What prices are fitted to. loaded: sha256 of the graphs that were run."""

    loaded: Sha256
    device: Device
    hidden: bool
    turns: Annotated[list[ProbeTurn], _of_length(1, _MOST_CELLS, "turns")]


@dataclass(frozen=True)
class Output:
    """An array: its shape, and base64 of little-endian float32 in row-major order."""

    shape: Annotated[list[Size], _of_length(1, 4, "axes")]
    float32: Annotated[str, _of_length(0, MOST_BODY_BYTES, "characters")]

    def array(self) -> npt.NDArray[np.float32]:
        """The array; NaN and infinity are kept, they are a result.

        Raises:
            DataError: no base64, or not as many bytes as the shape needs.
        """
        try:
            content = base64.b64decode(self.float32, validate=True)
        except ValueError as cause:
            raise DataError(f"outputs: no base64 ({cause})") from None
        if len(content) != 4 * math.prod(self.shape):
            raise DataError(f"outputs: {len(content)} bytes, the shape {self.shape} needs {4 * math.prod(self.shape)}")
        return np.frombuffer(content, "<f4").reshape(self.shape)


@dataclass(frozen=True)
class Answer(Post):
    """What a bundle put out for one question, and how long that took."""

    bundle: Bundle
    question: Annotated[int, _between(0, 100_000)]
    loaded: Loaded
    elapsed_ns: Nanoseconds
    outputs: Annotated[dict[Name, Output], _of_length(0, 16, "outputs")]


@dataclass(frozen=True)
class End(Post):
    """Nothing more will come."""


def parse_post(kind: type[PostType], content: bytes) -> PostType:
    """The body as `kind`.

    Raises:
        DataError: not JSON, a key twice, or a value of another type or out of range; names the field.
    """
    try:
        value = parse_json(content)
    except (ValueError, RecursionError) as cause:
        raise DataError(f"body: not JSON ({str(cause)[:100]})") from None
    return _READER.read(kind, value, "body")
