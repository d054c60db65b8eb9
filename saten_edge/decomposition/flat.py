"""FLAT: fewer values per attention head and fewer channels per MLP, absorbed into smaller dense matrices.

After "FLAT-LLM" (arXiv 2505.23966), with two changes that lower the error at the same sizes: heads are cut under the
output matrix that reads them, and channels are scored by what they contribute to the output. M (in, out) is `weight.T`;
S, C = E[xᵀx] are the second moments of what the output matrix reads; everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["kept_channels", "narrow_values", "proportional_shares", "refitted", "rounded"]

# Added to moments, as a share of their mean diagonal: directions that no text showed are judged by the weights alone.
VALUE_DAMPING = CHANNEL_DAMPING = 1e-6


def narrow_values(outputs: Sequence[Tensor], moments: Sequence[Tensor], width: int) -> tuple[Tensor, list[Tensor]]:
    """A (head, width) and one B (width, out) for each query head, such that y W ≈ (y A) B.

    outputs: W (head, out) of the query heads that read one value head. moments: S (head, head) of each. With S̄ = Σ S,
    U the leading left singular vectors of S̄^½ [W_1 …] and A a basis of S̄^-½ U, B = (Aᵀ S A)⁻¹ Aᵀ S W is the best for
    each head. A's columns are orthonormal: those of S̄^-½ U itself would blow up what the texts hardly show, and with it
    the steps of an 8-bit value.
    With one head the squared error ‖S^½ (W − A B)‖² is the sum of the dropped σ², and no A, B of that width have less.
    """
    damped: list[Tensor] = [_damped(each.double(), VALUE_DAMPING) for each in moments]
    values, vectors = torch.linalg.eigh(torch.stack(damped).sum(0))
    root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    left = torch.linalg.svd(root @ torch.cat([each.double() for each in outputs], 1), full_matrices=False)[0]
    a = torch.linalg.qr(inverse @ left[:, :width])[0]
    return a, [torch.linalg.solve(a.T @ s @ a, a.T @ s @ w.double()) for s, w in zip(damped, outputs, strict=True)]


def kept_channels(moments: Tensor, down: Tensor, count: int) -> Tensor:
    """The `count` channels of an MLP that contribute most to its output, ascending: the largest C_jj ‖w_j‖²."""
    scores = moments.diagonal().double() * down.double().square().sum(1)
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def refitted(moments: Tensor, down: Tensor, kept: Tensor) -> Tensor:
    """The matrix (kept, out) that gives most nearly what `down` (channels, out) gave: Nyström's approximation.

    W_k + (C_kk + λI)⁻¹ C_kd W_d, d the channels that were dropped: what they gave is predicted from those kept. Where
    texts say too little for that, the weights stay as they are.
    """
    exact, weights = moments.double(), down.double()
    dropped = torch.ones(len(weights), dtype=torch.bool).index_fill(0, kept, value=False)
    inner = _damped(exact[kept][:, kept], CHANNEL_DAMPING)
    change: Tensor = torch.linalg.solve(inner, exact[kept][:, dropped] @ weights[dropped])
    return weights[kept] + change


def proportional_shares(importance: Sequence[float], keep: float) -> list[float]:
    """What each layer keeps, `keep` on average and 1 at most, in proportion to its importance (FLAT-LLM's IPRS).

    Shares above 1 become 1, and the others divide the rest among them, until none is above 1.
    """
    if not any(importance):
        return [keep] * len(importance)
    shares, open_layers = dict[int, float](), set(range(len(importance)))
    while open_layers:
        rest, total = keep * len(importance) - len(shares), sum(importance[layer] for layer in open_layers)
        wanted = {layer: rest * importance[layer] / total if total else 0.0 for layer in open_layers}
        full = {layer for layer, share in wanted.items() if share > 1}
        if not full:
            shares |= wanted
            break
        shares |= dict.fromkeys(full, 1.0)
        open_layers -= full
    return [shares[layer] for layer in range(len(importance))]


def rounded(size: int, share: float, unit: int) -> int:
    """About `share` of `size` in whole units, at least one of them; all of it where the share is 1."""
    return size if share >= 1 else min(size, max(unit, math.floor(size * share / unit + 0.5) * unit))


def _damped(moments: Tensor, damping: float) -> Tensor:
    mean = float(moments.diagonal().mean())
    return moments + (damping * mean or 1.0) * torch.eye(len(moments), dtype=moments.dtype)
