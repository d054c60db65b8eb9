"""What a measured process repeats: random inputs of one size, always the same for all bundles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.bench.plan import Size
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import UsageError
from saten_runtime.run.generation import Decoder
from saten_runtime.run.session import ort_errors
from saten_runtime.run.text import Feeds, random_feeds

__all__ = ["Workload", "make_workload"]

Arrays = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class Workload:
    """begin: what comes before each sample and is not timed; run: the sample, giving its outputs."""

    begin: Callable[[], None]
    run: Callable[[], Arrays]


def make_workload(bundle: Bundle, session: Any, size: Size, vocabulary: int) -> Workload:
    """The work of one size for a bundle whose ids are below `vocabulary`.

    Raises:
        UsageError: a size that does not fit the bundle.
        BundleError: an input nobody makes.
    """
    if size.phase != "run":
        return _decoding(Decoder(bundle, session), size, vocabulary)
    names, feeds = bundle.manifest.outputs, _feeds(bundle, size, vocabulary)

    def run() -> Arrays:
        with ort_errors(f"{bundle.name}: run", UsageError):
            outputs: Arrays = session.run(names, feeds)
        return outputs

    return Workload(lambda: None, run)


def _feeds(bundle: Bundle, size: Size, vocabulary: int) -> Feeds:
    if bundle.manifest.image is None:
        return random_feeds(bundle.manifest.inputs, vocabulary=vocabulary, batch=size.batch, tokens=size.tokens)
    side = bundle.image.crop or bundle.image.resize
    if len(side) != 2:
        raise UsageError(f"{bundle.name}: its pictures have no fixed size; there is nothing to measure")
    (name,) = bundle.manifest.inputs
    return {name: np.random.default_rng(0).standard_normal((size.batch, len(bundle.image.mean), *side), np.float32)}


def _decoding(decoder: Decoder, size: Size, vocabulary: int) -> Workload:
    ids = np.random.default_rng(0).integers(0, vocabulary, (size.batch, max(size.longest, 1)), np.int64)
    if size.depth:
        decoder.forward(ids[:, : size.depth], last=1)
    mark = decoder.mark()

    def begin() -> None:
        decoder.rewind(mark)

    def read_prompt() -> Arrays:
        logits = decoder.forward(ids[:, size.depth :], last=1)
        return [logits[:, -1], logits[:, -1].argmax(axis=-1)]

    def generate() -> Arrays:
        token = ids[:, size.depth : size.depth + 1]
        for _ in range(size.tokens):
            logits = decoder.forward(token, last=1)
            token = logits[:, -1].argmax(axis=-1)[:, None].astype(np.int64)
        return [logits[:, -1], token]

    return Workload(begin, {"prompt": read_prompt, "generate": generate}[size.phase])
