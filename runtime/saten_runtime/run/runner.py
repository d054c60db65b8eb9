"""Runner: a bundle in memory, from texts, pictures or prompts to plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saten_runtime.bundle.chat import Message
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import BundleError, InvalidRun, UsageError
from saten_runtime.machine.memory import check_room
from saten_runtime.run.generation import Decoder, Sampling, negative_log_likelihood, spoken, stream, until
from saten_runtime.run.pooling import Step, read_steps
from saten_runtime.run.predict import PREDICTORS, Outputs
from saten_runtime.run.session import make_session, ort_errors
from saten_runtime.run.text import Encoder, Feeds, Ids

__all__ = ["Prompt", "Runner"]

Prompt = str | Sequence[Message]
"""A text to continue, or messages to answer; see `saten_runtime.bundle.chat`."""


class Runner:
    """One session and its tokenizer. Its methods may be called from several threads."""

    def __init__(self, bundle: Bundle, session: Any) -> None:
        self.bundle = bundle
        self.predictor = PREDICTORS[bundle.task]
        self.steps: Sequence[Step] = read_steps(bundle)
        self._session = session
        self._encoder = Encoder(bundle) if bundle.manifest.tokenizer is not None else None

    @classmethod
    def load(cls, bundle: Bundle | str | Path, *, threads: int = 1, memory: str = "fast") -> Runner:
        """Read, check and start a bundle; `memory` is a name in `session.MEMORY_MODES`.

        Raises:
            BundleError: missing, damaged, hostile, of a newer schema, or of a task that is not known here.
            RuntimeMismatch: this ONNX Runtime cannot run its graph.
            DeviceError: the machine has less memory than the weights alone need.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        _ = opened.task  # before the weights are read
        check_room(opened.name, opened.model_bytes, "small")
        return cls(opened, make_session(opened, threads=threads, memory=memory))

    @property
    def encoder(self) -> Encoder:
        """The tokenizer.

        Raises:
            BundleError: the bundle takes no text.
        """
        if self._encoder is None:
            raise BundleError(f"{self.bundle.path}: has no tokenizer; the task {self.bundle.manifest.task} needs one")
        return self._encoder

    def predict(self, items: Sequence[Any], *, batch_size: int = 32) -> Any:
        """What the bundle's task says about each item, in the order given.

        | task | items | result |
        |---|---|---|
        | feature-extraction | texts, or pairs (a, b) read together | (n, width) float32, pooled as the manifest says |
        | text-classification | texts or pairs | `Classification` |
        | text-regression | texts or pairs | (n,) float32 |
        | token-classification | texts, or lists of words | per text a list of `Word` |
        | question-answering | pairs (question, context) | per pair an `Answer` |
        | image-classification | arrays or files, see `image.read_picture` | `Classification` |
        | text-generation | prompts | per prompt a `Completion`, 64 tokens at most, chosen as the model says |

        Raises:
            InvalidRun: the graph put out NaN or infinity.
            UsageError: a text or a context without a token, a question that leaves no room for its context, or a prompt
                longer than the bundle takes.
        """
        if isinstance(items, str):
            raise UsageError("predict takes a list of texts, found one string")
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: must be at least 1")
        return self.predictor.predict(self, items, batch_size)

    def generate(self, prompt: Prompt, how: Sampling | None = None, *, decoder: Decoder | None = None) -> Iterator[str]:
        """The continuation of a prompt, or the answer to messages, piece by piece as it is made.

        decoder: one that goes on where it stopped, see `stream`; a new one by default.

        Raises:
            BundleError: the bundle is not a decoder, or has no chat template for messages.
            UsageError: a prompt longer than the bundle takes, or messages that are no conversation.
        """
        how = how or Sampling()
        tokens = self.generate_ids(prompt, how, decoder=decoder)
        return until(how.stop, spoken(tokens, self.encoder.decode))

    def generate_ids(self, prompt: Prompt, how: Sampling, *, decoder: Decoder | None = None) -> Iterator[int]:
        """As `generate`, the ids of the tokens; texts that stop do not count."""
        return self.continue_ids(self.prompt_ids(prompt), how, decoder=decoder)

    def continue_ids(self, ids: Sequence[int], how: Sampling, *, decoder: Decoder | None = None) -> Iterator[int]:
        """As `generate_ids`, of a prompt that is tokenized."""
        return stream(decoder or self.decoder(), ids, self.bundle.generation, how)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt, or of messages as the model's chat template writes them.

        Raises:
            BundleError: the bundle has no chat template for messages.
            UsageError: messages that are no conversation.
        """
        if isinstance(prompt, str):
            ids: list[int] = self.encoder.encode([prompt])[0].ids.tolist()
            return ids
        chat = self.bundle.generation.chat
        if chat is None:
            raise BundleError(
                f"{self.bundle.name}: has no chat template that a bundle expresses; give a prompt as one text"
            )
        ids = self.encoder.spelled(chat.render(prompt)).ids.tolist()
        return ids

    def surprise(self, text: str) -> tuple[float, int]:
        """Negative log-likelihood in nats of a text's tokens but the first, and their number.

        A text longer than the context is read up to its end.

        Raises:
            BundleError: the bundle is not a decoder.
        """
        (row,) = self.encoder.encode([text])
        return negative_log_likelihood(self.decoder(), self.encoder.shortened(row).ids.tolist())

    def run(self, feeds: Feeds) -> Outputs:
        """The raw outputs by name, for inputs by name.

        Raises:
            UsageError: feeds that do not fit the graph.
            InvalidRun: an output holds NaN or infinity.
        """
        names = self.bundle.manifest.outputs
        with ort_errors(f"{self.bundle.name}: run", UsageError):
            outputs = dict(zip(names, self._session.run(names, feeds), strict=True))
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise InvalidRun(f"{self.bundle.path}: output {name!r} holds NaN or infinity; export the model again")
        return outputs

    def batched(
        self, rows: Sequence[Ids], batch_size: int, rows_of: Callable[[Outputs, Feeds], Iterable[Any]]
    ) -> list[Any]:
        """`rows_of(outputs, feeds)` of every batch, as one list in the order of `rows`.

        Rows of like length share a batch, so that little of it is padding.

        Raises:
            UsageError: a row without a token.
        """
        if empty := [number for number, row in enumerate(rows, 1) if not len(row)]:
            raise UsageError(f"text {empty[0]}: has no token, and the model reads at least one; leave it out")
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        results: list[Any] = [None] * len(rows)
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            feeds = self.encoder.feeds([rows[index] for index in members])
            for index, result in zip(members, rows_of(self.run(feeds), feeds), strict=True):
                results[index] = result
        return results

    def decoder(self) -> Decoder:
        """A new cache of one sequence; not to be shared between threads.

        Raises:
            BundleError: the bundle is not a decoder.
        """
        return Decoder(self.bundle, self._session)
