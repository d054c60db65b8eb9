"""One continuation, token by token, and the seats for as many of them as run at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from saten_runtime.run.generation import Sampling, spoken, until
from saten_runtime.run.runner import Runner
from saten_runtime.serve.batches import Full

__all__ = ["Seats", "Speech"]

STOP, LENGTH = "stop", "length"


class Speech:
    """A continuation under way: its pieces of text, then how many tokens it has and why it ended.

    finish: "stop" for a stop id or string, "length" for the limit or the end of the context; None until then.
    """

    def __init__(self, runner: Runner, prompt: Sequence[int], how: Sampling, deadline: float) -> None:
        self._runner, self._prompt, self._how, self._deadline = runner, prompt, how, deadline
        self._is_cancelled, self._is_exhausted = threading.Event(), False
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
            for text in until(self._how.stop, spoken(self._tokens(), self._runner.encoder.decode)):
                self._hand(text)
            self.finish = LENGTH if self._is_exhausted and self._is_at_limit else STOP
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
            if time.monotonic() > self._deadline:
                raise TimeoutError
            self.made += 1
            yield token
        self._is_exhausted = True  # not left at a stop text

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
