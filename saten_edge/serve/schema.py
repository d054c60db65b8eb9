"""What the page may post: strict types, ranges, no key unheard of.

The models are the schema. JSON is read by `saten_runtime.records.files.parse_json`, which refuses
duplicate keys and NaN; numbers that overflow to infinity fail their range here.
"""

from __future__ import annotations

import base64
import math
from typing import Annotated, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saten_runtime.errors import DataError
from saten_runtime.records.files import parse_json

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

Bundle = Annotated[int, Field(ge=0, lt=1000)]
Small = Annotated[int, Field(ge=0, le=10_000)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Nanoseconds = Annotated[int, Field(ge=1, le=_MOST_NS)]
Milliseconds = Annotated[float, Field(gt=0, le=_MOST_NS / 1e6)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=500)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Loaded = Annotated[dict[Name, Sha256], Field(max_length=64)]

PostType = TypeVar("PostType", bound="Post")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Post(_Strict):
    """run: id of the run it belongs to."""

    run: Name


class Device(_Strict):
    """What the browser tells of its device; tick_ns: the step of its clock, None: it does not tell."""

    cores: Annotated[int, Field(ge=1, le=4096)] | None
    memory_gib: Annotated[float, Field(gt=0, le=1e6)] | None
    isolated: bool
    secure: bool
    tick_ns: Nanoseconds


class Start(_Strict):
    """How one bundle started in a fresh worker: see `saten_runtime.bench.summary.Start`."""

    bundle: Bundle
    threads: Size
    round: Small
    cold_load_ms: Milliseconds
    session_ms: Milliseconds
    first_run_ms: Milliseconds


class Turn(_Strict):
    """The samples of one bundle at one size in one round; each is the mean of `runs_per_sample` runs."""

    bundle: Bundle
    threads: Size
    batch: Size
    tokens: Size
    round: Small
    runs_per_sample: Size
    samples_ns: Annotated[list[Nanoseconds], Field(min_length=1, max_length=MOST_SAMPLES)]


class Failure(_Strict):
    """Why a bundle has no results with so many threads."""

    bundle: Bundle
    threads: Size
    reason: Text


class Bench(Post):
    """A whole benchmark. loaded: by bundle, the sha256 of each file that was run; hidden: the page was away."""

    loaded: Annotated[dict[Annotated[str, Field(pattern="^[0-9]{1,3}$")], Loaded], Field(max_length=1000)]
    device: Device
    hidden: bool
    starts: Annotated[list[Start], Field(max_length=_MOST_CELLS)]
    turns: Annotated[list[Turn], Field(max_length=_MOST_CELLS)]
    failures: Annotated[list[Failure], Field(max_length=_MOST_CELLS)]


class Output(_Strict):
    """An array: its shape, and base64 of little-endian float32 in row-major order."""

    shape: Annotated[list[Size], Field(min_length=1, max_length=4)]
    float32: Annotated[str, Field(max_length=MOST_BODY_BYTES)]

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


class Answer(Post):
    """What a bundle put out for one question, and how long that took."""

    bundle: Bundle
    question: Annotated[int, Field(ge=0, le=100_000)]
    loaded: Loaded
    elapsed_ns: Nanoseconds
    outputs: Annotated[dict[Name, Output], Field(max_length=16)]


class End(Post):
    """Nothing more will come."""


def parse_post(kind: type[PostType], content: bytes) -> PostType:
    """The body as `kind`.

    Raises:
        DataError: no JSON, a key twice, or a value of another type or out of range; names the field.
    """
    try:
        return kind.model_validate(parse_json(content))
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"]) or "body"
        raise DataError(f"{where}: {first['msg']}") from None
    except (ValueError, RecursionError) as cause:
        raise DataError(f"body: no JSON ({str(cause)[:100]})") from None
