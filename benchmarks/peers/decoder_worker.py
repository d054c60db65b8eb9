"""The measured process of a decoder; see `peers.worker` for the protocol.

Requests and what they answer:

    {"do": "load", "engine": …, "artifact": PATH, "threads": 1}     -> {"load_ns": …}
    {"do": "logits", "texts": [[id, …], …], "path": FILE}            -> {}, and (tokens, vocabulary) logits in an .npy
    {"do": "score", "texts": [[id, …], …]}                           -> {"nats": …, "tokens": …, "likeliest": [id, …]}
    {"do": "keep", "texts": [[id, …], …], "path": FILE}              -> {}, and (tokens, vocabulary) logits in an .npy
    {"do": "score", "texts": [[id, …], …], "reference": FILE}        -> {"kl": …, "agreement": …} besides
    {"do": "run", "shape": [1, 128], "iterations": 10, "min_ns": 0}  -> {"samples_ns": […], "first_ns": […]}
    {"do": "memory"}                                                 -> a `saten_runtime.machine.memory.Memory`
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peers.decoders import DECODERS, Decode
from peers.worker import IDS, samples, serve
from saten_runtime.machine.memory import snapshot
from saten_runtime.records.files import replacing

NEW_TOKENS = 64


class DecoderWorker:
    """One engine with one model."""

    decode: Decode

    def load(self, engine: str, artifact: str, threads: int) -> dict[str, Any]:
        """Start the engine."""
        start = time.perf_counter_ns()
        self.decode = DECODERS[engine](Path(artifact), threads)
        self._load_ns = time.perf_counter_ns() - start
        self._fresh = True
        return {"load_ns": self._load_ns}

    def logits(self, texts: list[list[int]], path: str) -> dict[str, Any]:
        """What it says after every token of each text: half of a text in one run, then token by token."""
        np.save(path, np.concatenate([self._in_steps(ids) for ids in texts]), allow_pickle=False)
        return {}

    def score(self, texts: list[list[int]], reference: str | None = None) -> dict[str, Any]:
        """-Σ ln p(token | tokens before it) over all tokens but the first of each text, and what it would have said.

        reference: what `keep` wrote of another engine with these texts, p; then also kl, the mean of Σ p ln(p / q), in
        nats, and agreement, the share of places where both find the same token likeliest.
        """
        nats, kl, likeliest, same = 0.0, 0.0, list[int](), 0
        kept = None if reference is None else np.load(reference, mmap_mode="r")
        for ids in texts:
            self.decode.reset()
            logs = log_softmax(self.decode.read(ids, every=True)[:-1])
            if kept is not None:
                other = log_softmax(kept[len(likeliest) : len(likeliest) + len(logs)])
                kl += float((np.exp(other) * (other - logs)).sum())
                same += int((other.argmax(1) == logs.argmax(1)).sum())
            likeliest += logs.argmax(1).tolist()
            nats -= float(logs[np.arange(len(logs)), ids[1:]].sum())
        found = {"nats": nats, "tokens": len(likeliest), "likeliest": likeliest}
        return found if kept is None else {**found, "kl": kl / len(likeliest), "agreement": same / len(likeliest)}

    def keep(self, texts: list[list[int]], path: str) -> dict[str, Any]:
        """What it says after every token of each text but the last, as float32, for `score` of another engine."""
        tokens, kept = sum(len(ids) - 1 for ids in texts), None
        done = 0
        with replacing(Path(path)) as aside:
            for ids in texts:
                self.decode.reset()
                logits = self.decode.read(ids, every=True)[:-1]
                if kept is None:
                    kept = np.lib.format.open_memmap(aside, "w+", np.float32, (tokens, logits.shape[1]))
                kept[done : done + len(logits)] = logits
                done += len(logits)
        return {}

    def run(self, shape: Sequence[int], iterations: int, min_ns: int) -> dict[str, Any]:
        """Time a prompt of (1, tokens); for 1, a token of NEW_TOKENS that follow from an empty cache, their mean."""
        _, tokens = shape
        ids = np.random.default_rng(tokens).choice(IDS, tokens).tolist()
        first_ns: list[int] = []
        if self._fresh:
            start = time.perf_counter_ns()
            self._prompt(ids)
            first_ns = [self._load_ns + time.perf_counter_ns() - start]
            self._fresh = False
        if tokens > 1:
            return {"samples_ns": samples(lambda: self._prompt(ids), iterations, min_ns), "first_ns": first_ns}
        found = samples(lambda: self._generate(ids), iterations, min_ns)
        return {"samples_ns": [sample // NEW_TOKENS for sample in found], "first_ns": first_ns}

    def memory(self) -> dict[str, Any]:
        """A reading."""
        return dataclasses.asdict(snapshot())

    def _prompt(self, ids: list[int]) -> int:
        self.decode.reset()
        return int(self.decode.read(ids)[-1].argmax())

    def _generate(self, ids: list[int]) -> None:
        token = self._prompt(ids)
        for _ in range(NEW_TOKENS - 1):
            token = int(self.decode.read([token])[-1].argmax())

    def _in_steps(self, ids: list[int]) -> np.ndarray:
        self.decode.reset()
        half = len(ids) // 2
        parts = [self.decode.read(ids[:half], every=True).copy()]
        parts += [self.decode.read([token]).copy() for token in ids[half:]]
        return np.concatenate(parts)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(tokens, vocabulary) → ln p in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(1, keepdims=True))
    return wide


def main() -> None:
    serve(DecoderWorker())
