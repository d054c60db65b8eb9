"""What calibration texts or images tell a method: second moments, and where it asks for them, sensitivities."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from saten_edge.checkpoints.blockwise import BlockMoments
from saten_edge.checkpoints.compress import matrices, tied_head
from saten_edge.checkpoints.models import LoadedModel
from saten_edge.console import Progress, told
from saten_edge.decomposition.allocation import Measured
from saten_edge.decomposition.calibration import second_moments
from saten_edge.decomposition.sensitivity import output_sensitivities
from saten_edge.images import open_image
from saten_edge.ranks import ALONE, Ranks
from saten_runtime.bundle.recipe import Option, options_of
from saten_runtime.errors import UsageError
from saten_runtime.records.files import digest_of, sha256_file
from saten_runtime.vocabulary.tasks import TEXT_GENERATION

__all__ = ["BATCH", "batches_of", "calibrate", "calibrate_by_blocks", "described", "rows_at_once"]

BATCH, TOKENS = 32, 128
# Sensitivities are measured on the first texts, one at a time: a backward pass keeps every layer's activations.
SENSITIVITY_ITEMS = 32
# Logits that are in memory at once, 128 MiB of them.
MOST_LOGITS = 2**25
Batch = dict[str, Any]


def calibrate(
    loaded: LoadedModel,
    layers: Mapping[str, nn.Module],
    items: Sequence[str | Path],
    share: float | None,
    progress: Progress | None,
    watch: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    ranks: Ranks = ALONE,
    *,
    bf16: bool = False,
) -> Measured:
    """Second moments over all texts or images; where layers share bytes by them, sensitivities over the first ones.

    share: of the bytes, at which sensitivities are asked for; None asks for none. watch: given all batches before the
    model is, passes them on. ranks: each takes its share of the batches for the moments; the leader alone has
    sensitivities. bf16: the model multiplies in bfloat16.
    """
    ranks.lead(0)
    own = _shortest_first(loaded, items, ranks)
    steps = len(own) + (0 if share is None else len(layers))
    with told(progress, f"calibrate on {len(items)} {'images' if isinstance(items[0], Path) else 'texts'}") as advance:

        def batches() -> Iterator[Batch]:
            for done, batch in enumerate(_encoded(loaded, own)):
                advance(done, steps, "second moments")
                yield batch

        heads = tied_head(loaded.model)
        moments = second_moments(loaded.model, layers, watch(batches()), heads.values(), ranks.summed, bf16=bf16)
        done = itertools.count(steps - len(layers))
        sensitivities = {}
        if share is not None and ranks.leads:
            sensitivities = output_sensitivities(
                loaded.model,
                matrices(layers),
                moments,
                itertools.islice(batches_of(loaded, items, 1), SENSITIVITY_ITEMS),
                share,
                lambda name: advance(next(done), steps, name),
                heads,
                bf16=bf16,
            )
    return Measured(moments, sensitivities, described(items, bf16=bf16))


def calibrate_by_blocks(
    loaded: LoadedModel,
    layers: Mapping[str, nn.Module],
    items: Sequence[str | Path],
    folder: Path,
    ranks: Ranks = ALONE,
    *,
    bf16: bool = False,
) -> BlockMoments:
    """The same second moments of a model that is mapped from its files, each computed when its block is asked for.

    folder: for what leaves a block.
    """
    folder.mkdir(exist_ok=True)
    own, tied = _shortest_first(loaded, items, ranks), list(tied_head(loaded.model).values())
    return BlockMoments(loaded.model, list(layers), lambda: _encoded(loaded, own), tied, folder, ranks, bf16=bf16)


def _shortest_first(loaded: LoadedModel, items: Sequence[str | Path], ranks: Ranks) -> Sequence[Sequence[str | Path]]:
    """Texts or images of this process in batches, the short texts first.

    Raises:
        UsageError: there are fewer batches than processes.
    """
    ordered = list(items) if isinstance(items[0], Path) else sorted(items, key=lambda text: len(str(text)))
    rows = rows_at_once(loaded)
    batches = [ordered[start : start + rows] for start in range(0, len(ordered), rows)]
    if len(batches) < ranks.count:
        raise UsageError(
            f"--calibration: {len(items)} texts or images, {rows} at once, for {ranks.count} processes; start "
            f"{len(batches)} at most"
        )
    return ranks.share(batches)


def rows_at_once(loaded: LoadedModel) -> int:
    """Texts or images that a forward pass takes: fewer where each token has a logit for every word."""
    if loaded.task != TEXT_GENERATION.hub:
        return BATCH
    return max(1, min(BATCH, MOST_LOGITS // (TOKENS * int(loaded.model.config.vocab_size))))


def batches_of(loaded: LoadedModel, items: Sequence[str | Path], rows: int) -> Iterator[Batch]:
    """Texts or images as the model's inputs, `rows` at a time, without batches of texts that make no token."""
    return _encoded(loaded, [items[start : start + rows] for start in range(0, len(items), rows)])


def _encoded(loaded: LoadedModel, batches: Sequence[Sequence[str | Path]]) -> Iterator[Batch]:
    for items in batches:
        opened = [open_image(item) if isinstance(item, Path) else item for item in items]
        batch = loaded.encode(opened, TOKENS)
        if all(tensor.numel() for tensor in batch.values()):
            yield batch


def described(items: Sequence[str | Path], *, bf16: bool = False) -> dict[str, Option]:
    """What was calibrated on, and how it was multiplied, for the recipe; nothing of none."""
    if not items:
        return {}
    products = options_of(products="bf16") if bf16 else {}
    if isinstance(items[0], Path):
        return options_of(sha256=digest_of([sha256_file(Path(item)) for item in items]), images=len(items)) | products
    return options_of(sha256=digest_of(list(items)), texts=len(items), tokens=TOKENS) | products
