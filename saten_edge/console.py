"""Talk for people on stderr: stages, progress bars with an estimate. stdout is for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Advance", "Talk"]

# steps done, steps in all, what comes next
Advance = Callable[[float, float, str], None]


class Talk:
    """Where a command says what it is doing; silent when quiet, without bars off a terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._quiet = quiet

    def say(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            self._console.print(text, markup=False)

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Advance]:
        """A long step; the value is called with its progress, or never, then only the time is shown.

        Off a terminal there is no bar, only the title and, at the end, the seconds it took.
        """
        if self._quiet or not self._console.is_terminal:
            self.say(title)
            started = time.monotonic()
            yield lambda done, total, what: None
            self.say(f"  {time.monotonic() - started:.1f} s")
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}", style="dim"),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(title, total=None, what="")
            yield lambda done, total, what: progress.update(task, completed=done, total=total, what=what)
            progress.update(task, completed=1, total=1, what="")
