"""The bundles that are served, by name: what embeds, and what continues."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from saten_runtime.bundle.folder import Bundle, open_bundles
from saten_runtime.errors import UsageError
from saten_runtime.run.generation import Sampling
from saten_runtime.run.predict import embed_rows
from saten_runtime.run.runner import Prompt, Runner
from saten_runtime.run.text import Ids
from saten_runtime.serve.batches import Batches
from saten_runtime.serve.options import ServeOptions
from saten_runtime.serve.schema import SpeechRequest
from saten_runtime.serve.speech import Seats, Speech
from saten_runtime.vocabulary.tasks import FEATURE_EXTRACTION, TEXT_GENERATION, TEXTS

__all__ = ["Embedder", "Model", "Writer", "load_runners", "make_models"]

Vector = npt.NDArray[np.float32]
_MOST_SEED = 2**63


class Embedder:
    """A bundle that makes vectors of texts."""

    route = "/v1/embeddings"

    def __init__(self, name: str, runner: Runner, options: ServeOptions, seen: Callable[[int], None]) -> None:
        self.name, self._runner, self._most = name, runner, options.queue
        self._batches = Batches(self._run, most=options.batch, queue=options.queue, seen=seen)

    @property
    def waiting(self) -> int:
        """How many texts wait."""
        return self._batches.waiting

    async def embed(self, texts: Sequence[str], dimensions: int | None) -> tuple[list[Vector], int]:
        """A vector of each text, and how many tokens that took.

        dimensions: as many of a vector's first numbers, at unit length again where the bundle's vectors have it.

        Raises:
            UsageError: more texts than may wait; a text with more tokens than the bundle takes, or with none; more
                dimensions than it has.
            Full: too many texts wait.
        """
        if len(texts) > self._most:
            raise UsageError(f"input: has {len(texts)} texts, and at most {self._most} may wait here; send it in parts")
        rows = await asyncio.to_thread(self._runner.encoder.encode, texts)
        for index, row in enumerate(rows):
            if row.cut or not len(row):
                longest = self._runner.bundle.tokenizer.max_length
                found = f"more than the {longest} tokens that {self.name} takes" if row.cut else "no token"
                raise UsageError(f"input[{index}]: has {found}")
        vectors = await self._batches.submit(rows)
        kept = vectors if dimensions is None else [self._shortened(vector, dimensions) for vector in vectors]
        return kept, sum(map(len, rows))

    async def close(self) -> None:
        """Run nothing more."""
        await self._batches.close()

    def _run(self, rows: list[Ids]) -> list[Vector]:
        return list(embed_rows(self._runner, rows, len(rows)))

    def _shortened(self, vector: Vector, dimensions: int) -> Vector:
        if dimensions > len(vector):
            raise UsageError(f"dimensions {dimensions}: {self.name} has {len(vector)}")
        first = vector[:dimensions]
        is_unit = self._runner.bundle.manifest.postprocess.normalize
        return np.asarray(first / max(float(np.linalg.norm(first)), 1e-12), np.float32) if is_unit else first


class Writer:
    """A bundle that continues texts."""

    route = "/v1/completions"

    def __init__(self, name: str, runner: Runner, options: ServeOptions, seen: Callable[[int], None]) -> None:
        self.name, self._runner, self._options = name, runner, options
        self._seats = Seats(options.slots, options.queue)

    @property
    def waiting(self) -> int:
        """How many prompts wait."""
        return self._seats.waiting

    def deadline(self) -> float:
        """When the answer to a request of now has taken too long, by the monotonic clock."""
        return time.monotonic() + self._options.timeout_s

    async def speak(
        self, prompt: Prompt, asked: SpeechRequest, most: int | None, deadline: float
    ) -> tuple[Speech, int]:
        """A continuation that has begun, and how many tokens its prompt has.

        prompt: a text, or messages that are answered. most: tokens that were asked for.

        Raises:
            UsageError: more tokens than the server gives, a value out of range, or messages that are no conversation.
            BundleError: messages, and the bundle has no chat template.
            Full: too many prompts wait.
        """
        how = self._sampling(asked, most)
        ids = await asyncio.to_thread(self._runner.prompt_ids, prompt)
        speech = Speech(self._runner, ids, how, deadline)
        await self._seats.start(speech)
        return speech, len(ids)

    async def close(self) -> None:
        """End what runs."""
        await self._seats.close()

    def _sampling(self, asked: SpeechRequest, most: int | None) -> Sampling:
        limit = self._options.max_tokens
        if most is not None and most > limit:
            raise UsageError(f"max_tokens {most}: this server gives at most {limit}")
        seed = secrets.randbelow(_MOST_SEED) if asked.seed is None else asked.seed
        return Sampling(most or limit, asked.temperature, asked.top_p, seed, stop=tuple(asked.stop))


Model = Embedder | Writer


_KINDS: dict[str, type[Embedder] | type[Writer]] = {FEATURE_EXTRACTION.name: Embedder, TEXT_GENERATION.name: Writer}


def load_runners(bundles: Sequence[Path], options: ServeOptions) -> dict[str, Runner]:
    """Every bundle in memory, by its name.

    Raises:
        UsageError: one that neither embeds texts nor continues them.
        SatenError: as `Runner.load`.
    """
    opened = open_bundles(bundles)
    for bundle in opened.values():
        _refuse(bundle)
    return {
        name: Runner.load(bundle, threads=options.threads, memory=options.memory) for name, bundle in opened.items()
    }


def make_models(
    runners: Mapping[str, Runner], options: ServeOptions, seen: Callable[[str, int], None]
) -> dict[str, Model]:
    """What serves each of them; seen: gets a name and the texts of a run. Needs a running loop."""
    return {
        name: _KINDS[runner.bundle.task.name](name, runner, options, partial(seen, name))
        for name, runner in runners.items()
    }


def _refuse(bundle: Bundle) -> None:
    if bundle.task.name not in _KINDS or (bundle.task is FEATURE_EXTRACTION and bundle.items != TEXTS):
        raise UsageError(
            f"{bundle.path}: {bundle.task.name} of {bundle.items}; the server takes {', '.join(_KINDS)} of texts"
        )
