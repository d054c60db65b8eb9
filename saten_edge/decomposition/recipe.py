"""How every matrix is decomposed; light, so that a command line can be built from it."""

from __future__ import annotations

from dataclasses import dataclass

from saten_edge.decomposition.shapes import Sides, balanced_sides, mode_dims, searched_sides
from saten_exporters.choice.settings import DEFAULT_TARGET
from saten_runtime.errors import UsageError
from saten_runtime.options import check_ranges, option

__all__ = ["PREFERENCES", "SHAPES", "SOLVERS", "TRAINS", "Recipe"]

# The rows of `saten_edge.decomposition.trains.TRAINS` and of `saten_edge.decomposition.solvers.SOLVERS`.
TRAINS = ("bond", "tt-svd")
SOLVERS = ("alternate", "admm")
SHAPES = ("balanced", "search")
PREFERENCES = ("accuracy", "speed")


@dataclass(frozen=True)
class Recipe:
    """How every matrix is decomposed.

    order: cores of the train (2 … 6). rounds: alternations of L and S.
    share: the train's share of the bytes, 0 (no train) … 1 (no residual), or None to measure it.
    density: stored residual entries per entry of the matrix; the train has the rest of the bytes.
    eps: the train is the TT-SVD of this relative error; the residual has the rest of the bytes.
    train: a row of `TRAINS`; None is "tt-svd" with eps, else "bond". shapes: "balanced" dims, or a "search" of many.
    solver: a row of `SOLVERS`; "admm" is "alternate" where there are no full second moments or nothing to divide.
    prefer: by what a split of the bytes is chosen: "accuracy", the error; "speed", of linear layers the squared error
    times the time that the cost model predicts. target: whose time, a row of `saten_exporters.choice.targets.TARGETS`;
    None is `DEFAULT_TARGET`.

    Raises:
        UsageError: a number out of its range, or options that contradict each other.
    """

    order: int = option(4, "Cores of each tensor train", low=2, high=6)
    rounds: int = option(3, "Alternations between the train and the residual", low=1)
    share: float | None = option(
        None, "Share of the bytes that the train gets, from 0 to 1; measured for each layer by default", low=0, high=1
    )
    density: float | None = option(None, "Residual entries for each entry of the matrix, from 0 to 1", low=0, high=1)
    eps: float | None = option(None, "Relative error of the train, a TT-SVD, from 0 to 1", low=0, high=1)
    train: str | None = option(
        None,
        "How the train is made: bond finds the best bond and keeps the inner ranks whole, tt-svd gives all "
        "splits the same error",
    )
    shapes: str = option(
        "balanced",
        "Search for the factorizations of the dimensions, padded ones too, instead of the balanced one",
        "--shape-search",
        const="search",
    )
    solver: str = option(
        "admm", "How train and residual are found: alternate, or admm, which goes further with --calibration"
    )
    prefer: str = option(
        "accuracy", "What a layer's bytes are split for: accuracy, or speed, which weighs the predicted time, too"
    )
    target: str | None = option(
        None, "Kind of device whose time --prefer speed weighs, one of those of export; x86-64 by default"
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.share is not None and (self.density is not None or self.eps is not None):
            raise UsageError("--share and --density or --eps both say how the bytes are split; leave one of them out")
        if self.train not in (None, *TRAINS):
            raise UsageError(f"no train {self.train!r}; there are: {', '.join(TRAINS)}")
        if self.eps is not None and self.train == "bond":
            raise UsageError("--eps is the error of a TT-SVD; leave out --train bond, or say --train tt-svd")
        if self.solver not in SOLVERS:
            raise UsageError(f"no solver {self.solver!r}; there are: {', '.join(SOLVERS)}")
        if self.shapes not in SHAPES:
            raise UsageError(f"no shapes {self.shapes!r}; there are: {', '.join(SHAPES)}")
        self._refuse_preference()

    def _refuse_preference(self) -> None:
        """Refuse a preference where there is nothing to prefer."""
        if self.prefer not in PREFERENCES:
            raise UsageError(f"--prefer {self.prefer}: there are {', '.join(PREFERENCES)}")
        if self.target is not None and self.prefer != "speed":
            raise UsageError(f"--target {self.target}: says whose time counts; add --prefer speed, or leave it out")
        fixed = [f"--{name}" for name in ("share", "density", "eps") if getattr(self, name) is not None]
        if self.prefer == "speed" and (fixed or self.method != "bond"):
            raise UsageError(
                f"--prefer speed chooses how bytes are split; with {' and '.join(fixed) or '--train tt-svd'} there is "
                "nothing to choose, so leave the one or the other out"
            )

    @property
    def method(self) -> str:
        """The row of `TRAINS`."""
        return self.train or ("bond" if self.eps is None else "tt-svd")

    @property
    def timed_on(self) -> str | None:
        """The target whose time counts; None where time does not."""
        return (self.target or DEFAULT_TARGET) if self.prefer == "speed" else None

    @property
    def sized(self) -> bool:
        """Whether eps and density fix every size, so that no budget is needed."""
        return self.eps is not None and self.density is not None

    def sides(self, shape: tuple[int, int]) -> Sides:
        """The dims that the train may have on either side, the first of them preferred."""
        if self.shapes == "search":
            return searched_sides(shape, self.order)
        if self.method != "bond":
            return balanced_sides(shape, self.order)
        ins, outs = mode_dims(shape, self.order)
        return (ins,), (outs,)
