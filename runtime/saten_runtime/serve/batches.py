"""Texts of many requests in one run: what waits when a run ends goes into the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.run.text import Ids

__all__ = ["Batches", "Full", "alike"]

Vector = npt.NDArray[np.float32]
_MOST_STRETCH = 2  # the longest text of a run over its shortest: at most half of a run is padding


class Full(Exception):
    """More waits than may wait."""


@dataclass
class _Waiting:
    row: Ids
    answer: asyncio.Future[Vector]


class Batches:
    """One bundle's texts that wait, and the thread that runs them.

    There is no pause in which a run waits for company: while one run computes, the next one gathers.
    """

    def __init__(
        self, run: Callable[[list[Ids]], Sequence[Vector]], *, most: int, queue: int, seen: Callable[[int], None]
    ) -> None:
        self._run, self._most, self._queue, self._seen = run, most, queue, seen
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "saten-embed")
        self._work = asyncio.create_task(self._forever())

    @property
    def waiting(self) -> int:
        """How many texts wait."""
        return len(self._waiting)

    async def submit(self, rows: Sequence[Ids]) -> list[Vector]:
        """The vectors of texts, in their order. Cancelled, those that still wait are not run, and wait no more.

        Raises:
            Full: more would wait than may.
        """
        if len(self._waiting) + len(rows) > self._queue:
            raise Full
        mine = [_Waiting(row, asyncio.get_running_loop().create_future()) for row in rows]
        self._waiting.extend(mine)
        self._arrived.set()
        try:
            return await asyncio.gather(*(each.answer for each in mine))
        except BaseException:  # also where one of them failed
            for each in mine:
                each.answer.cancel()
            self._waiting = deque(each for each in self._waiting if not each.answer.done())
            raise

    async def close(self) -> None:
        """Run nothing more."""
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        self._thread.shutdown()

    async def _forever(self) -> None:
        while True:
            await self._arrived.wait()
            if part := self._next():
                for together in alike(part):
                    await self._answer(together)
            else:
                self._arrived.clear()

    def _next(self) -> list[_Waiting]:
        """Those that waited longest, without such as nobody waits for any more."""
        taken: list[_Waiting] = []
        while self._waiting and len(taken) < self._most:
            one = self._waiting.popleft()
            if not one.answer.done():
                taken.append(one)
        return taken

    async def _answer(self, part: list[_Waiting]) -> None:
        self._seen(len(part))
        rows = [each.row for each in part]
        vectors: Sequence[Any]
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, rows)
        except Exception as cause:  # it is raised again where the answers are waited for
            vectors = [cause] * len(part)
        for each, vector in zip(part, vectors, strict=True):
            if not each.answer.done():
                each.answer.set_exception(vector) if isinstance(vector, Exception) else each.answer.set_result(vector)


def alike(part: list[_Waiting]) -> Iterator[list[_Waiting]]:
    """Texts by their length, in runs whose longest is at most `_MOST_STRETCH` times their shortest."""
    run: list[_Waiting] = []
    for one in sorted(part, key=lambda each: len(each.row)):
        if run and len(one.row) > _MOST_STRETCH * len(run[0].row):
            yield run
            run = []
        run.append(one)
    yield run
