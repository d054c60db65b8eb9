"""One continuation, token by token, and the seats for as many of them as run at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from saten_runtime.run.generation import Sampling, spoken
from saten_runtime.run.runner import Runner
from saten_runtime.serve.batches import Full

__all__ = ["Cut", "Seats", "Speech"]

STOP, LENGTH = "stop", "length"


class Cut:
    """Text up to the first of some stop strings; what may begin one is held back until it is known not to."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held, self.hit = stops, "", False

    def feed(self, text: str) -> str:
        """What can be said after `text` came; nothing more after a hit."""
        held = self._held + text
        places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            self.hit, self._held = True, ""
            return held[: min(places)]
        kept = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - kept :]
        return held[: len(held) - kept]

    def rest(self) -> str:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


class Speech:
    """A continuation under way: its pieces of text, then how many tokens it has and why it ended.

    finish: "stop" for a stop id or string, "length" for the limit or the end of the context; None until then.
    """

    def __init__(
        self, runner: Runner, prompt: Sequence[int], how: Sampling, stops: Sequence[str], until: float
    ) -> None:
        self._runner, self._prompt, self._how = runner, prompt, how
        self._cut, self._until, self._is_cancelled = Cut(stops), until, threading.Event()
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        self.made = 0
        self.finish: str | None = None

    def cancel(self) -> None:
        """End after the token that is being made."""
        self._is_cancelled.set()

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The text, as it is made. Left early, nothing more is made.

        Raises:
            TimeoutError: it takes too long.
            SatenError: as the runner raises it.
        """
        try:
            while (piece := await self._pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.cancel()

    def run(self) -> None:
        """Make it; in a thread of its own."""
        try:
            for text in spoken(self._tokens(), self._runner.encoder.decode):
                if said := self._cut.feed(text):
                    self._hand(said)
                if self._cut.hit:
                    break
            if rest := self._cut.rest():
                self._hand(rest)
            self.finish = LENGTH if self._is_at_limit and not self._cut.hit else STOP
            self._hand(None)
        except BaseException as cause:  # it is raised again where the pieces are taken
            self._hand(cause)

    @property
    def _is_at_limit(self) -> bool:
        """Whether there was no room for one token more."""
        context = self._runner.bundle.tokenizer.max_length
        return self.made == self._how.max_tokens or len(self._prompt) + self.made > context

    def _tokens(self) -> Iterator[int]:
        for token in self._runner.continue_ids(self._prompt, self._how):
            if self._is_cancelled.is_set():
                return
            if time.monotonic() > self._until:
                raise TimeoutError
            self.made += 1
            yield token

    def _hand(self, piece: str | BaseException | None) -> None:
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)


class Seats:
    """As many continuations at a time as there are seats; the others wait, some at most."""

    def __init__(self, seats: int, queue: int) -> None:
        self._free, self._queue, self._count = asyncio.Semaphore(seats), queue, 0
        self._threads = ThreadPoolExecutor(seats, "saten-speak")
        self._running: set[Speech] = set()

    @property
    def waiting(self) -> int:
        """How many wait for a seat."""
        return self._count

    async def start(self, speech: Speech) -> None:
        """Wait for a seat, then begin; the seat is free again when the thread has ended.

        Raises:
            Full: too many wait.
        """
        if self._free.locked() and self._count >= self._queue:
            raise Full
        self._count += 1
        try:
            await self._free.acquire()
        finally:
            self._count -= 1
        self._running.add(speech)
        work = asyncio.get_running_loop().run_in_executor(self._threads, speech.run)
        work.add_done_callback(lambda _: self._leave(speech))

    def _leave(self, speech: Speech) -> None:
        self._running.discard(speech)
        self._free.release()

    async def close(self) -> None:
        """End what runs, after the token that is being made."""
        for speech in self._running:
            speech.cancel()
        await asyncio.to_thread(self._threads.shutdown)
