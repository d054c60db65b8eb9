"""The trials of a search: Optuna draws them and learns from them, a journal file keeps them.

A trial is asked from a study in memory that knows the batches told before, and told to the journal whole, by one line.
So the journal never holds half a trial, and whoever goes on after a kill asks for the same trials again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from saten_edge.optimize.judging import NOTHING_LEFT
from saten_edge.optimize.space import STARTS, Candidate, distributions, drawn, offered
from saten_runtime.errors import UsageError
from saten_runtime.records.jsonl import LineWriter

__all__ = ["LEVELS", "Study", "Trial"]

NAME = "saten-edge"
# How far a trial came: what its numbers are taken from.
LEVELS = ("predicted", "compressed", "fine-tuned shortly", "fine-tuned")
# Objectives: the accuracy that is lost, in points; microseconds and bytes, as predicted or known.
DIRECTIONS = ("minimize", "minimize", "minimize")


@dataclass(frozen=True)
class Trial:
    """One candidate and what the last level that it reached said of it.

    drop: points of the metric below the dense model; None where nothing was computed. why: it went no further.
    last: of its batch, which is whole then.
    """

    number: int
    batch: int
    candidate: Candidate
    bytes: int
    us: float
    level: str = LEVELS[0]
    drop: float | None = None
    why: str = ""
    last: bool = False

    @property
    def objectives(self) -> tuple[float, float, float]:
        """As Optuna is told; what was not worth computing lost all there is to lose."""
        return (NOTHING_LEFT if self.drop is None else self.drop, self.us, float(self.bytes))

    @property
    def failed(self) -> bool:
        """Whether a stage refused it or failed by a defect."""
        return self.level != LEVELS[0] and self.drop is None

    def beats(self, other: Trial) -> bool:
        """Whether it is at least as good in all three, and better in one."""
        pairs = list(zip(self.objectives, other.objectives, strict=True))
        return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**dataclasses.asdict(self), "label": self.candidate.label}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Trial:
        """Back from `to_json`."""
        values = {name: each for name, each in value.items() if name != "label"}
        return cls(**{**values, "candidate": Candidate(**value["candidate"])})


class Study:
    """The journal in a file, which nobody else writes meanwhile."""

    def __init__(self, path: Path, seed: int, *, trims: bool, promising: float) -> None:
        """Open it, or begin one. trims: whether candidates may be trimmed. promising: points that one may lose.

        Candidates are drawn to be like those that lose no more: else most would be small and lose nearly everything.

        Raises:
            UsageError: Optuna is not installed.
        """
        self._optuna, self._seed, self._trims, self._promising = optuna_here(), seed, trims, promising
        LineWriter(path, keep=True).close()  # half a line at the end is what a kill left
        Path(f"{path}.lock").unlink(missing_ok=True)
        backend = self._optuna.storages.journal.JournalFileBackend(str(path))
        self._study = self._optuna.create_study(
            study_name=NAME,
            storage=self._optuna.storages.JournalStorage(backend),
            directions=DIRECTIONS,
            load_if_exists=True,
        )

    def describe(self, name: str, value: Any) -> None:
        """Say something of the whole study, as JSON data; what is said already is not said again."""
        if self.said(name) != value:
            self._study.set_user_attr(name, value)

    def said(self, name: str) -> Any:
        """What was said of the whole study by this name; None if nothing."""
        return self._study.user_attrs.get(name)

    @property
    def told(self) -> list[Trial]:
        """The trials of the journal, each once, in their order."""
        rows = (trial.user_attrs["row"] for trial in self._study.get_trials(deepcopy=False))
        return list({trial.number: trial for trial in sorted(map(Trial.from_json, rows), key=_number)}.values())

    def ask(self, batch: int) -> Iterator[Candidate]:
        """Candidates for a batch, without end; the same ones whenever the batches before it are the same."""
        if batch == 0:
            yield from offered(STARTS, trims=self._trims)
        memory = self._optuna.create_study(
            directions=DIRECTIONS,
            sampler=self._optuna.samplers.TPESampler(seed=self._seed * 1_000_003 + batch),
        )
        memory.add_trials([self._frozen(trial) for trial in self.told if trial.batch < batch])
        while True:
            yield drawn(memory.ask(), trims=self._trims)

    def tell(self, trial: Trial) -> None:
        """Add a trial; on return it is on the disk, whole."""
        self._study.add_trial(self._frozen(trial))

    def _frozen(self, trial: Trial) -> Any:
        params, spaces = distributions(trial.candidate, trims=self._trims)
        return self._optuna.trial.create_trial(
            params=params,
            distributions=spaces,
            values=trial.objectives,
            constraints={"points": trial.objectives[0] - self._promising},
            user_attrs={"row": trial.to_json()},
        )


def _number(trial: Trial) -> int:
    return trial.number


@functools.cache
def optuna_here() -> ModuleType:
    """Optuna, silent.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UsageError("optimize needs Optuna; pip install 'saten-edge[optimize]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found: ModuleType = optuna
    return found
