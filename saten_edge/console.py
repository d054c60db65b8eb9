"""Talk for people on stderr: stages, progress bars with an estimate. stdout is for data."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column

__all__ = ["Advance", "Progress", "Talk", "told"]

# Without a bar, a stage that after so many seconds seems to need so many more says so, once.
ESTIMATED_AFTER_S, WORTH_SAYING_S = 10.0, 60.0
# Then it says each so many seconds where it is.
MINUTE_S = 60.0

# steps done, steps in all, what comes next
Advance = Callable[[float, float, str], None]
# the same of a stage, whose title comes first; a stage ends when all is done and nothing comes next
Progress = Callable[[str, float, float, str], None]


@contextlib.contextmanager
def told(progress: Progress | None, stage: str) -> Iterator[Advance]:
    """Say to `progress`, if there is one, that a stage begins, how far it is, and that it is done."""
    tell = progress or _keep_silent
    tell(stage, 0, 1, "")
    yield functools.partial(tell, stage)
    tell(stage, 1, 1, "")


def _keep_silent(stage: str, done: float, total: float, what: str) -> None:
    pass


class Talk:
    """Where a command says what it is doing; silent when quiet, without bars off a terminal.

    In a `with` block its `progress` can be handed to a stage.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._stages = contextlib.ExitStack()
        self._under_way: dict[str, Advance] = {}

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stages.__exit__(*error)

    def progress(self, stage: str, done: float, total: float, what: str) -> None:
        """A `Progress`: one stage at a time is shown, from its first call to its last."""
        ended = done >= total and not what
        if stage not in self._under_way and not ended:
            self._end_stage()
            self._under_way[stage] = self._stages.enter_context(self.stage(stage))
        if stage in self._under_way:
            self._under_way[stage](done, total, what)
            if ended:
                self._end_stage()

    def _end_stage(self) -> None:
        self._stages.close()
        self._under_way.clear()

    def say(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            self._console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Advance]:
        """A long step; the value is called with its progress, or never, then only the time is shown.

        Off a terminal there is no bar, only the title, a line each minute, and, at the end, the seconds it took.
        Whoever sees no bar is told once how many minutes are left, even when quiet, if they are many.
        """
        self.say(title)
        estimate = _estimating(
            title, time.monotonic(), lambda line: self._console.print(line, markup=False, soft_wrap=True)
        )
        if self._quiet:
            yield estimate
            return
        with self._bar() if self._console.is_terminal else self._lines(estimate) as advance:
            yield advance

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Advance]:
        """What comes next is cut where the terminal is narrow; the bar and the times stay."""
        columns = (
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn(
                "{task.fields[what]}", style="dim", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
        )
        with Bars(*columns, console=self._console, expand=True) as progress:
            task = progress.add_task("", total=None, what="")
            yield lambda done, total, what: progress.update(task, completed=done, total=total, what=what)
            progress.update(task, completed=1, total=1, what="")

    @contextlib.contextmanager
    def _lines(self, estimate: Advance) -> Iterator[Advance]:
        """A line each minute, so that a log shows that something goes on, and the seconds it took at the end."""
        started, over, latest = time.monotonic(), threading.Event(), [(0.0, 1.0, "")]

        def talk() -> None:
            while not over.wait(MINUTE_S):
                self.say(_after(time.monotonic() - started, *latest[0]))

        def advance(done: float, total: float, what: str) -> None:
            latest[0] = done, total, what
            estimate(done, total, what)

        talking = threading.Thread(target=talk, daemon=True)
        talking.start()
        try:
            yield advance
        finally:
            over.set()
            talking.join()
        self.say(f"  {time.monotonic() - started:.1f} s")


def _after(seconds: float, done: float, total: float, what: str) -> str:
    """Where a stage is after some seconds, and how long the rest will take if it goes on so."""
    words = [f"{seconds / 60:.0f} min gone"]
    if done > 0 and total > 0:
        share = min(1.0, done / total)
        words += [f"{share:.0%} done", f"about {seconds * (1 - share) / share / 60:.0f} min left"]
    return "  " + ", ".join([*words, *([what] if what else [])])


def _estimating(title: str, started: float, tell: Callable[[str], None]) -> Advance:
    """Looks at a stage's progress until it can tell that the rest will take long, and tells it."""
    told = False

    def advance(done: float, total: float, what: str) -> None:
        nonlocal told
        spent = time.monotonic() - started
        left = spent * (total - done) / done if done else 0.0
        if not told and spent >= ESTIMATED_AFTER_S and left >= WORTH_SAYING_S:
            told = True
            tell(f"{title}: about {left / 60:.0f} min left")

    return advance
