"""What calibration texts tell of each layer: the second moments of its input, and how much its errors matter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.tt import truncated_factors
from saten_runtime.errors import DataError

__all__ = ["output_sensitivities", "second_moments"]

# Added to every token's count: a token never seen still matters half as much as one seen once.
UNSEEN_TOKEN_COUNT = 0.5


def second_moments(
    model: nn.Module, layers: Iterable[str], batches: Iterable[dict[str, Tensor]], tied: Collection[str] = ()
) -> dict[str, Tensor]:
    """Σ = E[xᵀx] of each layer's input, float64: (in, in) for a linear, the diagonal (rows,) for an embedding.

    batches: model inputs, padded; padding is left out of the mean. tied: tables that serve as output layer too,
    where every row is used for every token; half of their weight is spread evenly over the rows.

    Raises:
        DataError: there is no batch.
    """
    sums: dict[str, Tensor] = {}
    mask: list[Tensor | None] = []
    hooks = [
        module.register_forward_pre_hook(_accumulator(name, module, sums, mask))
        for name, module in ((name, model.get_submodule(name)) for name in layers)
    ]
    rows = 0
    try:
        with torch.no_grad():
            for batch in batches:
                mask[:] = [batch["attention_mask"].bool() if "attention_mask" in batch else None]
                rows += len(next(iter(batch.values()))) if mask[0] is None else int(mask[0].sum())
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not rows:
        raise DataError("no text to calibrate on; --calibration needs at least one")
    moments = {name: total / rows for name, total in sums.items()}
    return {name: (value + value.mean()) / 2 if name in tied else value for name, value in moments.items()}


def output_sensitivities(
    model: Any,
    matrices: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    batch: dict[str, Tensor],
    share: float,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, float]:
    """By how much a layer's squared relative error is multiplied on its way to the output.

    The output is what the task reads: logits, or the last hidden state of a model without a head. Each matrix in turn
    is replaced by the factors that `share` of its bytes pay for, and the outputs are compared.

    matrices: views (in, out) of the model's weights by layer; they are changed in turn and restored.
    """
    results = {}
    with torch.no_grad():
        wanted = _output(model, batch)
        for name, matrix in matrices.items():
            progress(name)
            original, metric = matrix.clone(), Metric.from_moments(moments[name])
            rank = max(1, int(share * matrix.numel() / sum(matrix.shape)))
            a, b = truncated_factors(original.double(), rank, metric)
            matrix.copy_(a @ b)
            try:
                got = _output(model, batch)
            finally:
                matrix.copy_(original)
            error = metric.relative_error(original.double(), a @ b)
            results[name] = float(((got - wanted).norm() / wanted.norm() / max(error, 1e-9)) ** 2)
    return results


def _output(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """What the task reads of the model's output, without padding."""
    found = model(**batch)
    names = [name for name in ("logits", "start_logits", "end_logits") if name in found] or ["last_hidden_state"]
    tensors = [found[name] for name in names]
    mask = batch.get("attention_mask")
    if mask is None or tensors[0].shape[:2] != mask.shape:
        return torch.cat([tensor.reshape(-1) for tensor in tensors])
    return torch.cat([tensor[mask.bool()].reshape(-1) for tensor in tensors])


def _accumulator(
    name: str, module: nn.Module, sums: dict[str, Tensor], mask: list[Tensor | None]
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = _without_padding(inputs[0], mask[0])
        if isinstance(module, nn.Embedding):
            start = torch.full((module.num_embeddings,), UNSEEN_TOKEN_COUNT, dtype=torch.float64)
            counts = torch.bincount(x.reshape(-1), minlength=module.num_embeddings).double()
            sums[name] = sums.get(name, start) + counts
        else:
            seen = x.reshape(-1, x.shape[-1])
            sums[name] = sums.get(name, 0) + (seen.T @ seen).double()

    return add


def _without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """The tokens of x (texts, tokens, …) that the mask keeps; all of it where x has another shape.

    A position table is asked once for all texts, a head sees one token of each, an image has no padding.
    """
    return x[mask] if mask is not None and x.shape[:2] == mask.shape else x
