"""What calibration texts tell of each layer: the second moments of its input, and how much its errors matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saten_edge.metric import Metric
from saten_edge.tt import truncated_factors

__all__ = ["output_sensitivities", "second_moments"]

# Added to every token's count: a token never seen still matters half as much as one seen once.
UNSEEN_TOKEN_COUNT = 0.5


def second_moments(model: nn.Module, layers: Iterable[str], batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Σ = E[xᵀx] of each layer's input, float64: (in, in) for a linear, the diagonal (rows,) for an embedding.

    batches: model inputs, padded; padding is left out of the mean.
    """
    sums: dict[str, Tensor] = {}
    mask: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(_accumulator(name, module, sums, mask))
        for name, module in ((name, model.get_submodule(name)) for name in layers)
    ]
    rows = 0
    try:
        with torch.no_grad():
            for batch in batches:
                mask[:] = [batch["attention_mask"].bool()]
                rows += int(mask[0].sum())
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / max(rows, 1) for name, total in sums.items()}


def output_sensitivities(
    model: Any,
    matrices: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    batch: dict[str, Tensor],
    share: float,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, float]:
    """By how much a layer's squared relative error is multiplied on its way to the last hidden state.

    Each matrix in turn is replaced by the factors that `share` of its bytes pay for, and the output compared.

    matrices: views (in, out) of the model's weights by layer; they are changed in turn and restored.
    """
    kept = batch["attention_mask"].bool()
    results = {}
    with torch.no_grad():
        wanted = model(**batch).last_hidden_state[kept]
        for name, matrix in matrices.items():
            progress(name)
            original, metric = matrix.clone(), Metric.from_moments(moments[name])
            rank = max(1, int(share * matrix.numel() / sum(matrix.shape)))
            a, b = truncated_factors(original.double(), rank, metric)
            matrix.copy_(a @ b)
            try:
                got = model(**batch).last_hidden_state[kept]
            finally:
                matrix.copy_(original)
            error = metric.relative_error(original.double(), a @ b)
            results[name] = float(((got - wanted).norm() / wanted.norm() / max(error, 1e-9)) ** 2)
    return results


def _accumulator(
    name: str, module: nn.Module, sums: dict[str, Tensor], mask: list[Tensor]
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0][mask[0]]
        if isinstance(module, nn.Embedding):
            start = torch.full((module.num_embeddings,), UNSEEN_TOKEN_COUNT, dtype=torch.float64)
            counts = torch.bincount(x.reshape(-1), minlength=module.num_embeddings).double()
            sums[name] = sums.get(name, start) + counts
        else:
            seen = x.reshape(-1, x.shape[-1])
            sums[name] = sums.get(name, 0) + (seen.T @ seen).double()

    return add
