"""What can be tried: a candidate is a family of compressions and its knobs, each a row of a table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from saten_edge.checkpoints.selection import Selection
from saten_edge.decomposition.recipe import PREFERENCES, Recipe
from saten_edge.options import CompressOptions
from saten_exporters.quantize import PRECISIONS

__all__ = ["BUDGETS", "FAMILIES", "KEPT", "RIVALS", "STARTS", "Candidate", "Family", "drawn", "offered"]

# Kinds of layers that may stay dense → shell patterns of their names, in every family of models.
KEPT: Mapping[str, tuple[str, ...]] = {
    "nothing": (),
    "tables": ("*embeddings*", "*embed_tokens*", "*wte*", "*wpe*"),
    "attention": ("*attention*", "*attn*"),
}
MEASURED = "measured"
# The knob that only a model has whose vocabulary can be trimmed.
TRIM = "trim"
# The least and the most.
BUDGETS = (0.08, 0.6)


@dataclass(frozen=True)
class Candidate:
    """One point of the space; a knob that its family does not have keeps its default and changes nothing.

    budget: share of the bits that the matrices take dense at the precision, scales aside, which the bundle's bytes of
    all their parts fit into. split: the train's share of them, "measured" for each layer. prefer: what is measured
    then, as in `Recipe`. lowering: "auto" leaves it to the cost model. keep: a row of `KEPT`. trim: the dense model
    that it is made from knows the words of the training texts alone.
    """

    family: str
    precision: str
    budget: float = 1.0
    pattern: str = "none"
    group: int = 32
    split: str = MEASURED
    prefer: str = PREFERENCES[0]
    lowering: str = "auto"
    keep: str = "nothing"
    trim: bool = False

    @property
    def label(self) -> str:
        """A name for people, files and bundles."""
        knobs = {**vars(self), "budget": f"{self.budget:g}", "group": f"g{self.group}", TRIM: "trimmed"}
        plain = (*("family", "precision"), *(knob for knob in FAMILIES[self.family].knobs if knob != "precision"))
        shown = [str(knobs[name]).replace(":", "of") for name in plain if not self._is_usual(name)]
        return "-".join(shown)

    @property
    def compress(self) -> CompressOptions | None:
        """How the model is compressed; None where it stays dense."""
        family = FAMILIES[self.family]
        if family.options is None:
            return None
        recipe = replace(family.options.recipe, share=self._share(family.options.recipe), prefer=self._prefer)
        selection = Selection(exclude=KEPT[self.keep])
        pattern = self.pattern if "pattern" in family.knobs else family.options.pattern
        same = replace(family.options, precision=self.precision, pattern=pattern, group=self.group)
        return replace(same, budget=self.budget / same.narrower, recipe=recipe, selection=selection)

    def compress_for(self, target: str) -> CompressOptions | None:
        """The same, where the time that counts is that of a kind of device."""
        options = self.compress
        if options is None or options.recipe.timed_on is None:
            return options
        return replace(options, recipe=replace(options.recipe, target=target))

    @property
    def export(self) -> dict[str, Any]:
        """What the export is told beside the target."""
        return {"precision": self.precision, "lowering": None if self.lowering == "auto" else self.lowering}

    def _share(self, recipe: Recipe) -> float | None:
        if "split" not in FAMILIES[self.family].knobs:
            return recipe.share
        return None if self.split == MEASURED else float(self.split)

    @property
    def _prefer(self) -> str:
        chosen = "prefer" in FAMILIES[self.family].knobs and matters("prefer", vars(self))
        return self.prefer if chosen else PREFERENCES[0]

    def _is_usual(self, name: str) -> bool:
        usual = {"split": MEASURED, "prefer": PREFERENCES[0], "lowering": "auto", "keep": "nothing", TRIM: False}
        return getattr(self, name) == usual.get(name) or not matters(name, vars(self))


@dataclass(frozen=True)
class Family:
    """A way to store a model. knobs: those that matter; options: what all of it have in common, None if it is dense."""

    name: str
    knobs: tuple[str, ...]
    options: CompressOptions | None = None


FAMILIES = {
    family.name: family
    for family in (
        Family("dense", ("precision", TRIM)),
        Family("svd", ("precision", "budget", "keep", TRIM), CompressOptions(pattern="none", recipe=Recipe(order=2))),
        Family(
            "sparse",
            ("precision", "budget", "pattern", "group", "keep", TRIM),
            CompressOptions(recipe=Recipe(share=0.0)),
        ),
        Family(
            "saten",
            ("precision", "budget", "pattern", "group", "split", "prefer", "lowering", "keep", TRIM),
            CompressOptions(),
        ),
        Family(
            "flat-saten",
            ("precision", "budget", "pattern", "group", "keep", TRIM),
            CompressOptions(method="flat", then="saten"),
        ),
    )
}

# knob → how Optuna draws it
Draw = Callable[[Any], Any]
KNOBS: Mapping[str, Draw] = {
    "precision": lambda trial: trial.suggest_categorical("precision", list(PRECISIONS)),
    "budget": lambda trial: round(trial.suggest_float("budget", *BUDGETS, log=True), 3),
    "pattern": lambda trial: trial.suggest_categorical("pattern", ["grouped", "unstructured", "2:4"]),
    "group": lambda trial: trial.suggest_categorical("group", [8, 16, 32, 64]),
    "split": lambda trial: trial.suggest_categorical("split", [MEASURED, "0.25", "0.5", "0.75"]),
    "prefer": lambda trial: trial.suggest_categorical("prefer", list(PREFERENCES)),
    "lowering": lambda trial: trial.suggest_categorical("lowering", ["auto", "low-rank", "tt-chain"]),
    "keep": lambda trial: trial.suggest_categorical("keep", list(KEPT)),
    TRIM: lambda trial: trial.suggest_categorical(TRIM, [False, True]),
}

# knob → the other knob, and its value, beside which alone it changes anything.
BESIDE = {"group": ("pattern", "grouped"), "prefer": ("split", MEASURED)}

# The dense models that every compression has to beat; a trimmed one shows what trimming alone is worth.
RIVALS = (
    *(Candidate("dense", precision) for precision in PRECISIONS),
    *(Candidate("dense", precision, trim=True) for precision in ("int8", "int4-128")),
)
# Where a search begins: what won in the benchmarks. One is not trimmed, so that a model that cannot be trimmed after
# all has a sound candidate, too.
STARTS = (
    Candidate("saten", "int8", 0.4, "grouped", 16, prefer="speed", trim=True),
    Candidate("saten", "int8", 0.25, "grouped", 16, prefer="speed", trim=True),
    Candidate("svd", "int8", 0.25),
    Candidate("flat-saten", "int4", 0.4, "grouped", 16, trim=True),
)


def matters(knob: str, values: Mapping[str, Any]) -> bool:
    """Whether a knob changes anything beside the values of others."""
    return knob not in BESIDE or values.get(BESIDE[knob][0]) == BESIDE[knob][1]


def offered(candidates: Sequence[Candidate], *, trims: bool) -> tuple[Candidate, ...]:
    """Those of some candidates that a model can have, each once; trims: whether its vocabulary can be trimmed."""
    return tuple(dict.fromkeys(replace(each, trim=each.trim and trims) for each in candidates))


def drawn(trial: Any, *, trims: bool) -> Candidate:
    """A candidate from an Optuna trial, or from one that has its parameters fixed; trims: as in `offered`."""
    compressed = [name for name, family in FAMILIES.items() if family.options is not None]
    family = FAMILIES[trial.suggest_categorical("family", compressed)]
    values: dict[str, Any] = {}
    for knob in family.knobs:
        if matters(knob, values) and (trims or knob != TRIM):
            values[knob] = KNOBS[knob](trial)
    return Candidate(family.name, **values)


@functools.cache
def distributions(candidate: Candidate, *, trims: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and distributions of a candidate, as `drawn` would have drawn it."""
    from optuna.trial import FixedTrial

    fixed = FixedTrial({"family": candidate.family, **vars(candidate)})
    drawn(fixed, trims=trims)
    return dict(fixed.params), dict(fixed.distributions)
