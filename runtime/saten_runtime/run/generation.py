"""Decoders: one graph that takes the cache of earlier tokens and gives it back longer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import Choice, Generation
from saten_runtime.errors import BundleError, InvalidRun, UsageError
from saten_runtime.run.rules import ruled, warped
from saten_runtime.run.session import ort_errors
from saten_runtime.vocabulary.operators import LOGITS_TO_KEEP

__all__ = ["Decoder", "Sampling", "choose", "negative_log_likelihood", "spoken", "stream", "until"]

Ids = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the likeliest at temperature 0, else drawn.

    Drawn among the top_k likeliest tokens (0: among all), of these the likeliest whose probabilities at this
    temperature first reach top_p, of these such as are at least min_p times as likely as the likeliest. A token that
    was there before loses by repetition_penalty. None: as the model's generation_config.json says. stop: texts, any of
    which ends the answer before itself.

    Raises:
        UsageError: a value out of range.
    """

    max_tokens: int = 64
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max tokens {self.max_tokens}: must be at least 1")
        if self.temperature is not None and not 0 <= self.temperature < np.inf:
            raise UsageError(f"temperature {self.temperature}: must be 0 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top-p {self.top_p}: must be above 0 and at most 1")
        if self.top_k is not None and self.top_k < 0:
            raise UsageError(f"top-k {self.top_k}: must be 0 or more")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UsageError(f"min-p {self.min_p}: must be from 0 to 1")
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < np.inf:
            raise UsageError(f"repetition penalty {self.repetition_penalty}: must be above 0")
        if "" in self.stop:
            raise UsageError("stop: an empty text is in every text; expected at least one character")

    def following(self, choice: Choice) -> Choice:
        """What a model wants, with what is said here in its place."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        drawn = choice.do_sample if self.temperature is None else self.temperature > 0
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(choice, **given, do_sample=drawn)


class Decoder:
    """A session and the cache of one batch of sequences of equal length.

    The cache stays in ONNX Runtime's own buffers from run to run: nothing of it is copied.
    """

    def __init__(self, bundle: Bundle, session: Any) -> None:
        self._name, self._inputs, self._session = bundle.name, bundle.manifest.inputs, session
        self._entries = bundle.generation.cache
        self._outputs = ["logits", *(entry.output for entry in self._entries)]
        if missing := [name for name in self._outputs if name not in bundle.manifest.outputs]:
            raise BundleError(f"{bundle.path}: has no output {missing[0]!r}; export it again")
        optional = session.get_overridable_initializers()
        self._cuts = any(value.name == LOGITS_TO_KEEP for value in optional)  # bundles of before do not
        self.longest = bundle.tokenizer.max_length
        self.reset()

    def reset(self) -> None:
        """Forget every token."""
        self.rewind((0, {}))
        self._read: list[int] = []

    def resume(self, prompt: Sequence[int]) -> list[int]:
        """Forget every token, unless `prompt` goes on where reading stopped; the tokens of it that are still to read.

        Only what `step` read of a single sequence counts.
        """
        known = len(self._read)
        if not 0 < known < len(prompt) or known != self.past or list(prompt[:known]) != self._read:
            self.reset()
            known = 0
        return list(prompt[known:])

    def mark(self) -> tuple[int, dict[str, Any]]:
        """The state now, to come back to."""
        return self.past, self._cache

    def rewind(self, mark: tuple[int, dict[str, Any]]) -> None:
        """Forget what was read since `mark` was made."""
        self.past, self._cache = mark

    def step(self, ids: Ids, *, last: int = 0) -> Array:
        """As `forward`, and looks at the logits.

        Raises:
            InvalidRun: a logit is NaN or infinite.
        """
        logits = self.forward(ids, last=last)
        if not np.isfinite(logits).all():
            raise InvalidRun(f"{self._name}: a logit is NaN or infinite; export the model again")
        self._read += ids[0].tolist()
        return logits

    def forward(self, ids: Ids, *, last: int = 0) -> Array:
        """Read `ids` (batch, new) after what was read before; logits (batch, new, vocabulary).

        last: give those of so many last tokens alone, which saves the head the others; 0: of all.

        GroupQueryAttention takes several tokens after earlier ones only of one sequence: a batch reads them one by one.

        Raises:
            UsageError: more tokens than the bundle takes.
        """
        batch, new = ids.shape
        if self.past + new > self.longest:
            raise UsageError(f"{self._name}: takes at most {self.longest} tokens, found {self.past + new}")
        if batch > 1 and new > 1 and self.past:
            return np.concatenate([self.forward(ids[:, [token]]) for token in range(new)], axis=1)[:, -last:]
        asked = {LOGITS_TO_KEEP: _ort_value(np.array([last], np.int64))} if last and self._cuts else {}
        feeds = {**asked, **self._feeds(ids), **(self._cache or self._empty(batch))}
        with ort_errors(f"{self._name}: run", UsageError):
            logits, *cache = self._session.run_with_ort_values(self._outputs, feeds)
        self.rewind((self.past + new, {e.input: value for e, value in zip(self._entries, cache, strict=True)}))
        values: Array = logits.numpy()[:, -last:]
        return values

    def _feeds(self, ids: Ids) -> dict[str, Any]:
        batch, new = ids.shape
        positions = np.arange(self.past, self.past + new, dtype=np.int64)
        known = {
            "input_ids": np.ascontiguousarray(ids),
            "attention_mask": np.ones((batch, self.past + new), np.int64),
            "position_ids": np.tile(positions, (batch, 1)),
            "cache_position": positions,
        }
        cached = {entry.input for entry in self._entries}
        if unknown := [name for name in self._inputs if name not in known and name not in cached]:
            raise BundleError(f"the graph takes the input {unknown[0]!r}; this saten-runtime makes {', '.join(known)}")
        return {name: _ort_value(known[name]) for name in self._inputs if name in known}

    def _empty(self, batch: int) -> dict[str, Any]:
        return {
            entry.input: _ort_value(np.zeros((batch, entry.heads, 0, entry.width), entry.dtype))
            for entry in self._entries
        }


def stream(decoder: Decoder, prompt: Sequence[int], model: Generation, how: Sampling) -> Iterator[int]:
    """Tokens that continue `prompt`, one by one, to a stop id (not given), the limit, or the end of the context.

    What the decoder has read is not read again where the prompt begins with it, as that of a chat's next turn does.
    """
    if not len(prompt):
        raise UsageError("the prompt has no token; a decoder needs at least one to continue")
    chance, choice, ids = np.random.default_rng(how.seed), how.following(model.choice), list(prompt)
    logits = decoder.step(np.asarray([decoder.resume(prompt)], np.int64), last=1)
    for made in range(1, how.max_tokens + 1):
        token = choose(ruled(logits[0, -1], ids, len(prompt), model.stop_ids, choice), choice, chance)
        if token in model.stop_ids:
            return
        yield token
        ids.append(token)
        if made == how.max_tokens or decoder.past == decoder.longest:
            return
        logits = decoder.step(np.array([[token]], np.int64), last=1)


def until(stops: Sequence[str], pieces: Iterable[str]) -> Iterator[str]:
    """The pieces of a text up to the first of `stops` in it; what may be the beginning of one is held back."""
    held = ""
    for piece in pieces:
        held += piece
        found = [place for place in (held.find(stop) for stop in stops) if place >= 0]
        if found:
            if held[: min(found)]:
                yield held[: min(found)]
            return
        keep = max((size for stop in stops for size in range(1, len(stop)) if held.endswith(stop[:size])), default=0)
        ready, held = held[: len(held) - keep], held[len(held) - keep :]
        if ready:
            yield ready
    if held:
        yield held


def spoken(tokens: Iterable[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """The text that each token completes, and at the end what none did; together the text of all tokens."""
    ids: list[int] = []
    given = ""
    for token in tokens:
        ids.append(token)
        text = decode(ids)
        # A character of several tokens is not complete before its last one.
        complete = not text.endswith("\N{REPLACEMENT CHARACTER}")
        yield text[len(given) :] if complete else ""
        given = text if complete else given
    yield decode(ids)[len(given) :]


def choose(logits: Array, choice: Choice, chance: np.random.Generator) -> int:
    """The next token by logits (vocabulary,): the likeliest, or a drawn one.

    Raises:
        InvalidRun: the rules leave none to draw from.
    """
    if not choice.do_sample:
        return int(logits.argmax())
    if logits.max() == -np.inf:
        raise InvalidRun("the model's generation settings leave no token to draw; see `generation` in its manifest")
    kept = warped(logits, choice)
    powers = np.exp(kept - kept.max())
    return int(chance.choice(len(powers), p=powers / powers.sum()))


def negative_log_likelihood(decoder: Decoder, ids: Sequence[int]) -> tuple[float, int]:
    """-Σ ln p(token | tokens before it) over all tokens but the first, and how many those are."""
    if len(ids) < 2:
        return 0.0, 0
    decoder.reset()
    logits = decoder.step(np.asarray([ids], np.int64))[0, :-1].astype(np.float64)  # (tokens - 1, vocabulary)
    top = logits.max(axis=1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    return float(-logs[np.arange(len(logs)), ids[1:]].sum()), len(logs)


def _ort_value(array: Array) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
