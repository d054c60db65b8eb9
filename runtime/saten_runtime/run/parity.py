"""Does this machine compute what torch computed? Replays the inputs that travel in a bundle.

`validation/` holds, for each case, the inputs and torch's outputs as `.npy` arrays named
`<case>.<input or output>.npy`. They are replayed with ONNX Runtime's graph optimizations off and on; int8 off only
where its sums are exact so (see `saten_runtime.run.products`): nobody runs a bundle so, and a wrong sum says nothing of
it.
A decoder's case holds whole sequences and `<case>.reads.npy`, the number of tokens of each run: they are read run by
run, each with the cache that the runs before it gave, and all logits are compared with what torch computed at once.
Of a large vocabulary, `<case>.columns.npy` says which tokens' logits are stored; those are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.bundle.folder import VALIDATION_FOLDER, Bundle
from saten_runtime.errors import BundleError, ParityError
from saten_runtime.records.plain_text import align
from saten_runtime.run.products import exact_bytes
from saten_runtime.run.session import make_session, ort_errors
from saten_runtime.vocabulary.tasks import Task

__all__ = [
    "COLUMNS",
    "READS",
    "Arrays",
    "Comparison",
    "check_parity",
    "compare",
    "compare_case",
    "compare_outputs",
    "compare_tokens",
    "in_columns",
    "judge",
    "parity_table",
    "read_cases",
    "replay",
    "usual_sizes",
    "write_case",
]

Arrays = dict[str, npt.NDArray[Any]]

READS, COLUMNS = "reads", "columns"


@dataclass(frozen=True)
class Comparison:
    """One output of one case under one setting.

    relative_error: the larger of ‖Δ‖/‖y‖ (Euclidean) and max|Δ| / max|y| over the tokens that are not
    padding; numbers that are smaller than those of all cases usually are count as large as these. bound: what it may
    be, or None where there is none yet. cosine: between the two outputs.
    Of a decoder, same_token: share of tokens after which both find the same next token likeliest; kl: mean
    Kullback-Leibler divergence, in nats, of the distributions of the next token from torch's. Both are among the tokens
    whose logits are stored.
    """

    case: str
    output: str
    optimized: bool
    shape: list[int]
    relative_error: float
    cosine: float
    bound: float | None
    same_token: float | None = None
    kl: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the two agree within the bound; NaN never does."""
        return bool(self.relative_error <= self.bound) if self.bound is not None else bool(np.isfinite(self.cosine))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; numbers that JSON lacks become null."""
        return {
            key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in asdict(self).items()
        }


def write_case(folder: Path, case: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Store a case's inputs and torch's outputs below `folder`, a bundle that is being written."""
    target = folder / VALIDATION_FOLDER
    target.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(target / f"{case}.{name}.npy", array, allow_pickle=False)


def check_parity(bundle: Bundle) -> list[Comparison]:
    """Replay every case and compare.

    Raises:
        BundleError: the bundle carries no cases, or their arrays are damaged.
        ParityError: an output differs beyond its bound; the message names the worst.
    """
    comparisons = compare(bundle)
    judge(bundle.name, comparisons)
    return comparisons


def judge(name: str, comparisons: list[Comparison]) -> None:
    """Refuse comparisons that do not hold.

    Raises:
        ParityError: naming the worst.
    """
    failed = [comparison for comparison in comparisons if not comparison.holds]
    if failed:
        worst = max(failed, key=lambda comparison: np.nan_to_num(comparison.relative_error, nan=np.inf))
        raise ParityError(
            f"{name}: output {worst.output!r} of case {worst.case} (optimizations "
            f"{'on' if worst.optimized else 'off'}) is {worst.relative_error:.2e} from torch's, allowed are "
            f"{worst.bound:.2e}; {len(failed)} of {len(comparisons)} comparisons fail"
            if worst.bound is not None
            else f"{name}: output {worst.output!r} of case {worst.case} is not finite"
        )


def compare(bundle: Bundle) -> list[Comparison]:
    """Every case at both optimization settings (see above), whether it agrees or not.

    Raises:
        BundleError: the bundle carries no cases, or their arrays are damaged.
    """
    bound, cases = bundle.manifest.tolerance.get("relative"), read_cases(bundle)
    usual = usual_sizes(bundle.task, cases, bundle.manifest.outputs)
    results = []
    plain = bundle.manifest.precision != "int8" or exact_bytes(optimized=False)
    for optimized in (False, True) if plain else (True,):
        session = make_session(bundle, optimized=optimized)
        for case, arrays in cases.items():
            with ort_errors(f"{bundle.name}: case {case}", ParityError):
                outputs = replay(bundle, session, arrays)
            compared = compare_case(bundle.task, case, outputs, arrays, usual, bound=bound)
            results += [replace(row, optimized=optimized) for row in compared]
        del session  # before the next one is made: two of a large model may be more than there is memory for
    return results


def usual_sizes(task: Task, cases: Mapping[str, Arrays], outputs: Iterable[str]) -> dict[str, float]:
    """The root mean square of each output's numbers in all cases that have it, as torch computed them.

    Rounding a sum errs in proportion to what is added, not to what it comes to. A case of few numbers, such as the one
    logit of one token, may come to almost 0; its error is that of numbers of the usual size.
    """
    found: dict[str, float] = {}
    for name in outputs:
        parts = [_unpadded(arrays[name], _mask(task, arrays)) for arrays in cases.values() if name in arrays]
        squares = sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)
        found[name] = math.sqrt(squares / max(sum(part.size for part in parts), 1))
    return found


def compare_case(
    task: Task, case: str, got: Arrays, wanted: Arrays, usual: Mapping[str, float], *, bound: float | None = None
) -> list[Comparison]:
    """Each output in `got` with the one in `wanted`, which holds the case's inputs, too; usual: by `usual_sizes`.

    A mask of tokens applies to outputs with a row per token alone.
    """
    mask = _mask(task, wanted)
    rows = []
    for name, value in got.items():
        error, cosine = compare_outputs(value, wanted[name], mask, usual[name])
        row = Comparison(case, name, False, list(value.shape), error, cosine, bound)
        if READS in wanted and value.shape == wanted[name].shape:
            same, kl = compare_tokens(value, wanted[name], mask)
            row = replace(row, same_token=same, kl=kl)
        rows.append(row)
    return rows


def _mask(task: Task, case: Arrays) -> npt.NDArray[Any] | None:
    return case.get("attention_mask") if not task.per_item else None


def _unpadded(output: npt.NDArray[Any], mask: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """The numbers of the tokens that are not padding, of an output with a row per token."""
    return output[mask == 1] if mask is not None and output.shape[:2] == mask.shape else output


def replay(bundle: Bundle, session: Any, arrays: Arrays) -> Arrays:
    """The outputs for the inputs of one case; of a decoder the logits alone."""
    manifest = bundle.manifest
    if manifest.generation is None:
        got = session.run(manifest.outputs, {name: arrays[name] for name in manifest.inputs})
        return dict(zip(manifest.outputs, got, strict=True))
    batch, entries = len(arrays["input_ids"]), manifest.generation.cache
    cache = {entry.input: np.zeros((batch, entry.heads, 0, entry.width), entry.dtype) for entry in entries}
    given = [name for name in manifest.inputs if name not in cache]
    logits, past = [], 0
    for count in arrays[READS].tolist():
        # A mask covers what was read before, too.
        starts = {name: 0 if name == "attention_mask" else past for name in given}
        past += count
        feeds = {name: arrays[name][:, starts[name] : past] for name in given}
        found, *kept = session.run(["logits", *(entry.output for entry in entries)], {**feeds, **cache})
        cache = {entry.input: value for entry, value in zip(entries, kept, strict=True)}
        logits.append(found)
    return in_columns({"logits": np.concatenate(logits, axis=1)}, arrays)


def in_columns(outputs: Arrays, case: Arrays) -> Arrays:
    """The outputs of the tokens that a case has logits of; all of them where it does not say which.

    Raises:
        BundleError: it names tokens that the model does not have.
    """
    if COLUMNS not in case:
        return outputs
    columns, width = case[COLUMNS], outputs["logits"].shape[-1]
    whole = columns.ndim == 1 and columns.dtype == np.int64
    if not whole or columns.min(initial=0) < 0 or columns.max(initial=0) >= width:
        raise BundleError(f"a validation case has logits of tokens beyond the {width} of the model; export it again")
    return {**outputs, "logits": outputs["logits"][..., columns]}


def compare_tokens(
    got: npt.NDArray[Any], wanted: npt.NDArray[Any], mask: npt.NDArray[Any] | None
) -> tuple[float, float]:
    """(same_token, kl) as in `Comparison`, of logits (batch, tokens, vocabulary) where mask is 1."""
    if mask is not None:
        got, wanted = got[mask == 1], wanted[mask == 1]
    ours, theirs = (_log_softmax(logits.astype(np.float64)) for logits in (got, wanted))
    same = ours.argmax(axis=-1) == theirs.argmax(axis=-1)
    return float(same.mean()), float((np.exp(theirs) * (theirs - ours)).sum(axis=-1).mean())


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def compare_outputs(
    got: npt.NDArray[Any], wanted: npt.NDArray[Any], mask: npt.NDArray[Any] | None, usual: float = 0.0
) -> tuple[float, float]:
    """(relative error, cosine) as in `Comparison`; another shape than wanted is an infinite error.

    mask: (batch, tokens) of a model over tokens; outputs (batch, tokens, …) are compared where it is 1. usual: size of
    such numbers, where these are smaller.
    """
    if got.shape != wanted.shape:
        return float("inf"), float("nan")
    x, y = (_unpadded(array, mask).astype(np.float64).ravel() for array in (got, wanted))
    difference, tiny = x - y, np.finfo(np.float64).tiny
    euclidean = np.linalg.norm(difference) / max(float(np.linalg.norm(y)), usual * math.sqrt(y.size), tiny)
    largest = np.abs(difference).max(initial=0) / max(float(np.abs(y).max(initial=0)), usual, tiny)
    cosine = float(x @ y) / max(float(np.linalg.norm(x) * np.linalg.norm(y)), tiny)
    return float(np.maximum(euclidean, largest)), cosine


def parity_table(comparisons: list[Comparison]) -> str:
    """One aligned line per comparison; of a decoder, with what it says of tokens."""
    tokens = any(row.kl is not None for row in comparisons)
    rows: list[tuple[str, ...]] = [
        (
            row.case,
            row.output,
            " × ".join(map(str, row.shape)),
            "on" if row.optimized else "off",
            f"{row.relative_error:.2e}",
            _number(row.bound, ".2e"),
            f"{row.cosine:.6f}",
            *([_number(row.same_token, ".3f"), _number(row.kl, ".2e")] if tokens else []),
        )
        for row in comparisons
    ]
    head = ("case", "output", "shape", "optimizations", "relative error", "bound", "cosine")
    return align([(*head, *(["same token", "kl"] if tokens else [])), *rows])


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def read_cases(bundle: Bundle) -> dict[str, Arrays]:
    """Inputs and torch's outputs by name, of each case.

    Raises:
        BundleError: there are no cases, or their arrays are damaged.
    """
    cases: dict[str, Arrays] = {}
    for file in sorted(bundle.manifest.files):
        if not file.startswith(f"{VALIDATION_FOLDER}/") or not file.endswith(".npy"):
            continue
        case, _, name = Path(file).stem.partition(".")
        try:
            with (bundle.path / file).open("rb") as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False)
            if array.dtype.kind not in "biuf":
                raise ValueError(f"of numbers; it holds {array.dtype}")
            cases.setdefault(case, {})[name] = array
        except (ValueError, OSError, MemoryError) as cause:
            raise BundleError(f"{bundle.path / file}: not an array ({cause}); export the bundle again") from None
    if not cases:
        raise BundleError(f"{bundle.path}: carries no {VALIDATION_FOLDER}/*.npy to compare with; export it again")
    needed = {*bundle.manifest.inputs, *bundle.manifest.outputs}
    if bundle.manifest.generation is not None:
        carried = {name for entry in bundle.manifest.generation.cache for name in (entry.input, entry.output)}
        needed = needed - carried | {READS}
    for case, arrays in cases.items():
        if missing := needed - set(arrays):
            raise BundleError(f"{bundle.path}: case {case} lacks {', '.join(sorted(missing))}; export it again")
    return cases
