"""Tensor trains of matrices: cores, their contraction, and how they are found.

Notation, the same everywhere in the project. A layer computes `y = x M + b`, where M (in, out) is
`weight.T` of a linear layer and the table itself of an embedding (x is then one-hot). M is
approximated by a tensor train over the dims of `in` followed by the dims of `out`:

    M[i_1 … i_p, o_1 … o_q] ≈ G_1[i_1] … G_p[i_p] · G_{p+1}[o_1] … G_{p+q}[o_q]

    G_k      core, (r_{k-1}, n_k, r_k), r_0 = r_{p+q} = 1
    bond r   r_p, the rank between the last input core and the first output core
    A, B     the contracted input cores (in, r) and output cores (r, out): x M ≈ (x A) B

The bond decides how much of M survives, so it is found first, by a truncated SVD under the
activations' second moments; each half is then split into cores by TT-SVD (Oseledets, "Tensor-Train
Decomposition", SIAM J. Sci. Comput. 33(5), 2011), outwards from the bond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from saten_edge.metric import Metric
from saten_runtime.errors import ShapeError

__all__ = ["TensorTrain", "balanced_factors", "full_train_numel", "mode_dims", "tensor_train", "truncated_factors"]

IDENTITY = Metric()


@dataclass(frozen=True)
class TensorTrain:
    """A matrix (in, out) kept as a chain of cores.

    cores[k]: (r_{k-1}, n_k, r_k), r_0 = r_d = 1, one float dtype; the first `inputs` of them run
    over the dims of `in`, the others over the dims of `out`.

    Raises:
        ShapeError: naming the core that does not fit its neighbour.
    """

    cores: tuple[Tensor, ...]
    inputs: int

    def __post_init__(self) -> None:
        left = 1
        for k, core in enumerate(self.cores):
            if core.ndim != 3:
                raise ShapeError(f"core {k}: expected 3 axes (r, n, r'), found shape {tuple(core.shape)}")
            if core.shape[0] != left:
                raise ShapeError(f"core {k}: left rank {core.shape[0]}, but the core before it ends in {left}")
            left = core.shape[2]
        if left != 1:
            raise ShapeError(f"core {len(self.cores) - 1}: the last right rank is {left}, expected 1")
        if not 0 < self.inputs < len(self.cores):
            raise ShapeError(f"{self.inputs} input cores of {len(self.cores)}; expected at least one on each side")

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out) of the matrix."""
        return (
            math.prod(core.shape[1] for core in self.cores[: self.inputs]),
            math.prod(core.shape[1] for core in self.cores[self.inputs :]),
        )

    @property
    def ranks(self) -> list[int]:
        """r_1 … r_{d-1}; the bond is `ranks[inputs - 1]`."""
        return [core.shape[2] for core in self.cores[:-1]]

    @property
    def bond(self) -> int:
        """The rank between inputs and outputs."""
        return int(self.cores[self.inputs].shape[0])

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (in, r) and B (r, out), with A B the matrix."""
        return (
            contract(self.cores[: self.inputs]).reshape(self.shape[0], self.bond),
            contract(self.cores[self.inputs :]).reshape(self.bond, self.shape[1]),
        )

    def dense(self) -> Tensor:
        """The matrix (in, out)."""
        a, b = self.factors()
        return a @ b

    def numel(self) -> int:
        """Stored values: of the cores or of the folded factors, whichever are more.

        A checkpoint stores the cores and a bundle may store the folded A and B; a budget that
        counts the larger holds for both.
        """
        return max(sum(core.numel() for core in self.cores), self.bond * sum(self.shape))


def contract(cores: tuple[Tensor, ...]) -> Tensor:
    """The chain of cores as one tensor (r_0, n_1 · … · n_k, r_k)."""

    def join(left: Tensor, right: Tensor) -> Tensor:
        joined: Tensor = torch.tensordot(left, right, dims=1)  # (r_0, n_1 …, n_k, r_k)
        return joined.reshape(left.shape[0], -1, right.shape[2])

    return reduce(join, cores)


def balanced_factors(n: int, parts: int) -> tuple[int, ...]:
    """`parts` factors of n, as equal as its divisors allow, ascending: 384, 2 → (16, 24).

    A prime factor larger than the balance stays whole (30522, 2 → (6, 5087)).
    """
    if parts == 1:
        return (n,)
    target = n ** (1 / parts)
    first = max(d for d in range(1, math.floor(target + 1e-9) + 1) if n % d == 0)
    return tuple(sorted((first, *balanced_factors(n // first, parts - 1))))


def mode_dims(shape: tuple[int, int], order: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dims of `in` and of `out` for a train of `order` cores, small dims at the two ends.

    The end cores hold n² values at most, so small ends cost least. A side whose balance is worse
    than 1 : 32 (a vocabulary with a large prime factor) stays one dim, because splitting it saves
    nothing; the train then has fewer cores.
    """
    sides = (order - order // 2, order // 2)
    dims = []
    for n, parts in zip(shape, sides, strict=True):
        factors = balanced_factors(n, parts)
        dims.append(factors if min(factors) > 1 and max(factors) <= 32 * min(factors) else (n,))
    return dims[0], tuple(reversed(dims[1]))


def truncated_factors(matrix: Tensor, rank: int, metric: Metric = IDENTITY) -> tuple[Tensor, Tensor]:
    """A (in, r), B (r, out) that minimise ‖Σ^½ (M − A B)‖_F for M (in, out), their magnitudes balanced.

    With V the leading right singular vectors of Σ^½ M the minimiser is B = Vᵀ, A = M V (Eckart–Young
    on the scaled matrix), so Σ is never inverted.
    """
    scaled = metric.scale(matrix)  # (in, out)
    if scaled.shape[1] <= scaled.shape[0]:
        b = torch.linalg.eigh(scaled.T @ scaled)[1].flip(1)[:, :rank].T  # (r, out), orthonormal rows
    else:
        u = torch.linalg.eigh(scaled @ scaled.T)[1].flip(1)[:, :rank]  # (in, r)
        b = torch.linalg.qr((u.T @ scaled).T)[0].T
    a = matrix @ b.T  # (in, r)
    balance = a.norm(dim=0).clamp_min(torch.finfo(a.dtype).tiny).sqrt()
    return a / balance, b * balance[:, None]


def full_train_numel(dims: tuple[tuple[int, ...], tuple[int, ...]], bond: int) -> int:
    """`TensorTrain.numel` of a train over `dims` with this bond and every other rank as large as it can be."""
    in_dims, out_dims = dims
    cores = _full_half_numel(in_dims, bond) + _full_half_numel(tuple(reversed(out_dims)), bond)
    return max(cores, bond * (math.prod(in_dims) + math.prod(out_dims)))


def _full_half_numel(dims: tuple[int, ...], bond: int) -> int:
    left, total = 1, 0
    for k, n in enumerate(dims):
        right = min(left * n, math.prod(dims[k + 1 :]) * bond) if k + 1 < len(dims) else bond
        total += left * n * right
        left = right
    return total


def tensor_train(a: Tensor, b: Tensor, dims: tuple[tuple[int, ...], tuple[int, ...]], eps: float = 0.0) -> TensorTrain:
    """Split A (in, r) and B (r, out) into cores over `dims`, outwards from the bond.

    eps: relative Frobenius error of A B that all splits together may add; each of the s splits may add
    eps / √s. 0 keeps every rank the dims allow, and A B exactly.
    """
    in_dims, out_dims = dims
    u, s, vh = _product_svd(a, b)
    allowed = eps * float(s.norm()) / math.sqrt(max(1, len(in_dims) + len(out_dims) - 2))
    # U and V are orthonormal, so what a split discards of U S or V S is what A B loses.
    left = _split_leftmost((u * s)[None], in_dims, allowed)
    right = _split_leftmost((vh.T * s)[None], tuple(reversed(out_dims)), allowed, mirrored=True)
    left, right = (_balanced((*half[:-1], half[-1] / _root(s))) for half in (left, right))
    mirrored = tuple(core.permute(2, 1, 0).contiguous() for core in reversed(right))
    return TensorTrain((*left, *mirrored), len(left))


def _product_svd(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (in, r), S (r,), Vᵀ (r, out) of A B, which is never formed."""
    (q_a, r_a), (q_b, r_b) = torch.linalg.qr(a), torch.linalg.qr(b.T)
    u, s, vh = torch.linalg.svd(r_a @ r_b.T)
    return q_a @ u, s, vh @ q_b.T


def _balanced(cores: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same chain with cores of equal Frobenius norm, so that all train at one pace."""
    norms = torch.stack([core.norm() for core in cores]).clamp_min(torch.finfo(cores[0].dtype).tiny)
    scales = norms.log().mean().exp() / norms
    return tuple(core * scale for core, scale in zip(cores, scales, strict=True))


def _split_leftmost(
    half: Tensor, dims: tuple[int, ...], allowed: float, *, mirrored: bool = False
) -> tuple[Tensor, ...]:
    """Cores of a half (1, n_1 · … · n_p, r), peeled off at its free end one SVD at a time.

    allowed: Frobenius error of each split. mirrored: the half is the transposed B, whose fastest-running dim
    comes first. The two cores a singular value lies between share it.
    """
    if mirrored:
        flat = half.reshape(*reversed(dims), half.shape[2])
        half = flat.permute(*reversed(range(len(dims))), len(dims)).reshape(half.shape)
    rest, cores, root = half, [], torch.ones_like(half[0, 0, :1])
    for n in dims[:-1]:
        unfolded = rest.reshape(rest.shape[0] * n, -1)
        u, s, vh = torch.linalg.svd(unfolded, full_matrices=False)
        rank, before = _kept_rank(s, allowed), root
        root = _root(s[:rank])
        cores.append(u[:, :rank].reshape(-1, n, rank) * root / before[:, None, None])
        rest = (s[:rank, None] * vh[:rank]).reshape(rank, -1, half.shape[2])
    return (*cores, rest.reshape(-1, dims[-1], half.shape[2]) / root[:, None, None])


def _root(singular_values: Tensor) -> Tensor:
    """√s, where an s lost in rounding counts as the rounding error: its root is divided by."""
    precision = torch.finfo(singular_values.dtype)
    smallest = max(precision.eps * float(singular_values[0]), precision.tiny)
    return singular_values.clamp_min(smallest).sqrt()


def _kept_rank(singular_values: Tensor, allowed: float) -> int:
    """The smallest rank, at least 1, whose discarded tail has a norm of `allowed` at most."""
    tail = singular_values.flip(0).square().cumsum(0).sqrt().flip(0)  # tail[k]: norm of s[k:]
    return max(1, int((tail > allowed).sum()))
