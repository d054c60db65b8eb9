"""Tensor trains of matrices: cores, their contraction, and how they are found.

Notation, the same everywhere in the project. A layer computes `y = x M + b`, where M (in, out) is
`weight.T` of a linear layer and the table itself of an embedding (x is then one-hot). M is
approximated by a tensor train over the dims of `in` followed by the dims of `out`:

    M[i_1 … i_p, o_1 … o_q] ≈ G_1[i_1] … G_p[i_p] · G_{p+1}[o_1] … G_{p+q}[o_q]

    G_k      core, (r_{k-1}, n_k, r_k), r_0 = r_{p+q} = 1
    bond r   r_p, the rank between the last input core and the first output core
    A, B     the contracted input cores (in, r) and output cores (r, out): x M ≈ (x A) B

The dims of a side may multiply to more than its size; the rows beyond are padding, which is stored and counted
but cropped whenever the cores are contracted.

Both ways to find a train start at the bond and split the two halves outwards. `tensor_train` takes the bond as found
by a truncated SVD under the activations' second moments and keeps every inner rank; `tt_svd` is TT-SVD
(Oseledets, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33(5), 2011): each of the d − 1 splits, the bond
among them, may lose eps · ‖M‖ / √(d − 1). The halves are split with orthonormal factors on the other side, so what
a split discards is what M loses, whatever the order of the splits.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from saten_edge.decomposition.linalg import gram
from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.shapes import Dims, Sides, outwards
from saten_runtime.errors import BudgetError, ShapeError

__all__ = [
    "Spectrum",
    "TensorTrain",
    "TtSvd",
    "contraction_peak",
    "refined_factors",
    "rounded",
    "tensor_train",
    "truncated_factors",
    "tt_svd",
]

IDENTITY = Metric()
MOST_CORES = 16
# The search for the eps that meets a size starts between these and halves the gap of their logarithms.
SMALLEST_EPS = 1e-5
BISECTIONS = 18


@dataclass(frozen=True)
class TensorTrain:
    """A matrix (in, out) kept as a chain of cores.

    cores[k]: (r_{k-1}, n_k, r_k), r_0 = r_d = 1, one float dtype; the first `inputs` of them run
    over the dims of `in`, the others over the dims of `out`. true_shape: (in, out) where the dims are padded;
    None where they multiply to it. Ranks are 0 in a train that is absent: two cores (1, in, 0), (0, out, 1).

    Raises:
        ShapeError: naming the core that does not fit its neighbour.
    """

    cores: tuple[Tensor, ...]
    inputs: int
    true_shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.inputs < len(self.cores) <= MOST_CORES:
            raise ShapeError(
                f"{self.inputs} input cores of {len(self.cores)}; expected at least one on each side, "
                f"and {MOST_CORES} at most"
            )
        left = 1
        for k, core in enumerate(self.cores):
            if core.ndim != 3:
                raise ShapeError(f"core {k}: expected 3 axes (r, n, r'), found shape {tuple(core.shape)}")
            if core.shape[0] != left:
                raise ShapeError(f"core {k}: left rank {core.shape[0]}, but the core before it ends in {left}")
            if not core.shape[1] or (not core.shape[2] and len(self.cores) > 2):
                raise ShapeError(f"core {k}: shape {tuple(core.shape)} holds no value")
            if core.dtype != self.cores[0].dtype:
                raise ShapeError(f"core {k}: dtype {core.dtype}, but core 0 has {self.cores[0].dtype}")
            left = core.shape[2]
        if left != 1:
            raise ShapeError(f"core {len(self.cores) - 1}: the last right rank is {left}, expected 1")
        if any(true > padded for true, padded in zip(self.shape, self.padded_shape, strict=True)):
            raise ShapeError(f"cores over {self.padded_shape}, fewer than the {self.shape} of the matrix")

    @classmethod
    def absent(cls, shape: tuple[int, int], like: Tensor) -> TensorTrain:
        """The train of bond 0 that describes a matrix of zeros, in dtype and on device of `like`."""
        return cls((like.new_empty(1, shape[0], 0), like.new_empty(0, shape[1], 1)), 1)

    @property
    def padded_shape(self) -> tuple[int, int]:
        """What the dims multiply to."""
        sizes = [core.shape[1] for core in self.cores]
        return math.prod(sizes[: self.inputs]), math.prod(sizes[self.inputs :])

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out) of the matrix."""
        return self.true_shape or self.padded_shape

    @property
    def dims(self) -> Dims:
        """The dims over `in` and over `out`."""
        sizes = tuple(core.shape[1] for core in self.cores)
        return sizes[: self.inputs], sizes[self.inputs :]

    @property
    def ranks(self) -> list[int]:
        """r_1 … r_{d-1}; the bond is `ranks[inputs - 1]`."""
        return [core.shape[2] for core in self.cores[:-1]]

    @property
    def bond(self) -> int:
        """The rank between inputs and outputs."""
        return int(self.cores[self.inputs].shape[0])

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (in, r) and B (r, out), with A B the matrix; padding is cropped."""
        inputs, outputs = self.shape
        return (
            contract(self.cores[: self.inputs]).reshape(-1, self.bond)[:inputs] if self.bond else self.cores[0][0],
            contract(self.cores[self.inputs :]).reshape(self.bond, -1)[:, :outputs]
            if self.bond
            else self.cores[-1][..., 0],
        )

    def dense(self) -> Tensor:
        """The matrix (in, out)."""
        a, b = self.factors()
        return a @ b

    def numel(self) -> int:
        """Stored values, padding included."""
        return sum(core.numel() for core in self.cores)


def contract(cores: tuple[Tensor, ...]) -> Tensor:
    """The chain of cores as one tensor (r_0, n_1 · … · n_k, r_k)."""

    def join(left: Tensor, right: Tensor) -> Tensor:
        joined: Tensor = torch.tensordot(left, right, dims=1)  # (r_0, n_1 …, n_k, r_k)
        return joined.reshape(left.shape[0], -1, right.shape[2])

    return reduce(join, cores)


def contraction_peak(train: TensorTrain) -> int:
    """Values of the largest tensor that `train.factors()` makes, from the shapes alone."""

    def largest(cores: tuple[Tensor, ...]) -> int:
        sizes: list[int] = [core.shape[1] for core in cores]
        rights: list[int] = [core.shape[2] for core in cores]
        return max(math.prod(sizes[: k + 1]) * right for k, right in enumerate(rights)) * int(cores[0].shape[0])

    return max(largest(train.cores[: train.inputs]), largest(train.cores[train.inputs :]))


@dataclass(frozen=True)
class Spectrum:
    """The SVD of Σ^½ M, M (in, out), as far as every truncation of M needs it.

    singular: all singular values, descending, float64. left: Uᵀ Σ^½ (in, in) where in < out; right: V (out, out)
    elsewhere.
    """

    matrix: Tensor
    singular: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    @classmethod
    def of(cls, matrix: Tensor, metric: Metric = IDENTITY) -> Spectrum:
        """From one eigendecomposition of the smaller Gram matrix: singular values below 1e-8 ‖Σ^½ M‖ are rounding."""
        values, vectors = torch.linalg.eigh(metric.gram(matrix))
        singular, vectors = values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
        if matrix.shape[1] <= matrix.shape[0]:
            return cls(matrix, singular, right=vectors.to(matrix))
        root = None if metric.root is None else metric.root.double()
        if root is not None:
            vectors = root[:, None] * vectors if root.ndim == 1 else root @ vectors
        return cls(matrix, singular, left=vectors.T.to(matrix))

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """A (in, r), B (r, out) that minimise ‖Σ^½ (M − A B)‖_F; the rows of B are orthonormal.

        With V the leading right singular vectors of Σ^½ M the minimiser is B = Vᵀ, A = M V (Eckart–Young
        on the scaled matrix), so Σ is never inverted.
        """
        if self.right is not None:
            v = self.right[:, :rank]
        else:
            assert self.left is not None  # noqa: S101 - one of the two is there
            v = torch.linalg.qr((self.left[:rank] @ self.matrix).T)[0]  # (out, r)
        return self.matrix @ v, v.T


def truncated_factors(matrix: Tensor, rank: int, metric: Metric = IDENTITY) -> tuple[Tensor, Tensor]:
    """A (in, r), B (r, out) that minimise ‖Σ^½ (M − A B)‖_F for M (in, out), their magnitudes balanced."""
    return balanced_pair(*Spectrum.of(matrix, metric).factors(rank))


def refined_factors(matrix: Tensor, rows: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """About what `Spectrum.factors` gives, in less time: one step of subspace iteration on from `rows` (r, out)."""
    seen = metric.apply(matrix @ rows.T)  # (in, r)
    basis = torch.linalg.qr(matrix.T @ seen)[0]
    return matrix @ basis, basis.T


def balanced_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A D⁻¹ and D B for the diagonal D that gives column k of A and row k of B one norm."""
    tiny = torch.finfo(a.dtype).tiny
    scale = (a.norm(dim=0).clamp_min(tiny) / b.norm(dim=1).clamp_min(tiny)).sqrt()
    return a / scale, b * scale[:, None]


def tensor_train(a: Tensor, b: Tensor, dims: Dims) -> TensorTrain:
    """Split A (in, r) and B (r, out) into cores over `dims`, outwards from the bond, keeping A B."""
    u, s, vh = _product_svd(a, b)
    left = _split_half(u * s, dims[0], None)
    right = _split_half(vh.T * s, tuple(reversed(dims[1])), None, mirrored=True)
    return _join(left, right, s, (a.shape[0], b.shape[1]))


def _product_svd(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (in, r), S (r,), Vᵀ (r, out) of A B, which is never formed."""
    (q_a, r_a), (q_b, r_b) = torch.linalg.qr(a), torch.linalg.qr(b.T)
    u, s, vh = torch.linalg.svd(r_a @ r_b.T, full_matrices=False)
    return q_a @ u, s, vh @ q_b.T


class TtSvd:
    """TT-SVD of one matrix (in, out) over any dims and for any eps; they share the SVD at the bond and their halves."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.shape = matrix, (matrix.shape[0], matrix.shape[1])
        spectrum = Spectrum.of(matrix)
        self.singular, self.norm = spectrum.singular, float(spectrum.singular.norm())
        us, vh = spectrum.factors(len(spectrum.singular))
        self._halves = us, vh.T * spectrum.singular.to(matrix)  # U S (in, R), V S (out, R)
        self._sizes: dict[tuple[int, tuple[int, ...], float], int] = {}

    def train(self, dims: Dims, eps: float) -> TensorTrain:
        """The train over `dims` with a relative Frobenius error of `eps` at most."""
        allowed = self._allowed(dims, eps)
        left, right = (self._split(side, one, allowed) for side, one in enumerate(outwards(dims)))
        return _join(left, right, self.singular[: left[-1].shape[2]].to(self.matrix), self.shape)

    def numel(self, dims: Dims, eps: float) -> int:
        """Values of `train(dims, eps)`."""
        allowed = self._allowed(dims, eps)
        return sum(self._numel(side, one, allowed) for side, one in enumerate(outwards(dims)))

    def smallest(self, sides: Sides, eps: float) -> Dims:
        """The dims of the fewest values at `eps`, of equal ones the first: either side is minimised on its own.

        A split's share of eps depends on the number of cores, so dims of each number compete among themselves first.
        """
        found = []
        for lengths in itertools.product(*({len(dims) for dims in side} for side in sides)):
            ins, outs = ([dims for dims in side if len(dims) == n] for side, n in zip(sides, lengths, strict=True))
            allowed = self._allowed((ins[0], outs[0]), eps)
            values = [[self._numel(0, dims, allowed) for dims in ins]]
            values.append([self._numel(1, tuple(reversed(dims)), allowed) for dims in outs])
            found.append((ins[values[0].index(min(values[0]))], outs[values[1].index(min(values[1]))]))
        return min(found, key=lambda dims: self.numel(dims, eps))

    def eps_within(self, dims: Dims, values: int) -> float:
        """The smallest eps, to a thousandth of itself, whose train over `dims` holds at most `values` values.

        Raises:
            BudgetError: not even ranks of 1 do.
        """
        smallest = sum(map(sum, dims))
        if values < smallest:
            raise BudgetError(f"{values} values for a train over {dims}, whose ranks of 1 take {smallest}")
        low, high = SMALLEST_EPS, math.sqrt(_cores(dims) - 1)  # at the latter each split may lose everything
        for _ in range(BISECTIONS):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self.numel(dims, middle) <= values else (middle, high)
        return high

    def error(self, train: TensorTrain) -> float:
        """‖M − train‖_F."""
        a, b = train.factors()
        return float(torch.addmm(self.matrix, a, b, alpha=-1).norm())

    def best(self, sides: Sides, *, eps: float | None = None, values: int | None = None) -> TensorTrain:
        """Of the dims of `sides` those of fewest values at `eps`, or of the least eps within `values` values.

        For a size, dims and eps take turns: the fewest values at the eps that the last dims need leave room for a
        smaller one. Where they stop, no other dims meet the size with less. The first dims of each side are never
        worse: the train of least error is returned.

        Raises:
            BudgetError: `values` is below ranks of 1 for all of them.
        """
        if eps is not None:
            return self.train(self.smallest(sides, eps), eps)
        assert values is not None  # noqa: S101 - one of the two is given
        first = sides[0][0], sides[1][0]
        if sum(map(sum, first)) > values:
            first = min(sides[0], key=sum), min(sides[1], key=sum)
        found = {first: self.eps_within(first, values)}
        while True:
            last, reached = next(reversed(found.items()))
            dims = self.smallest(sides, reached)
            if dims in found or self.numel(dims, reached) >= self.numel(last, reached):
                break
            found[dims] = self.eps_within(dims, values)
        return min((self.train(*each) for each in (next(iter(found.items())), (last, reached))), key=self.error)

    def _numel(self, side: int, outwards: tuple[int, ...], allowed: float) -> int:
        """Values of one half; `outwards`: its dims from the free end to the bond."""
        key = (side, outwards, allowed)
        if key not in self._sizes:
            self._sizes[key] = sum(core.numel() for core in self._split(side, outwards, allowed))
        return self._sizes[key]

    def _allowed(self, dims: Dims, eps: float) -> float:
        return eps * self.norm / math.sqrt(_cores(dims) - 1)

    def _split(self, side: int, dims: tuple[int, ...], allowed: float) -> tuple[Tensor, ...]:
        bond = _kept_rank(self.singular, allowed)
        return _split_half(self._halves[side][:, :bond], dims, allowed, mirrored=side == 1)


def tt_svd(matrix: Tensor, dims: Dims, *, eps: float | None = None, values: int | None = None) -> TensorTrain:
    """TT-SVD of `matrix` (in, out) over `dims`, whose products may exceed it, with an error or a size given.

    eps: relative Frobenius error at most; values: stored values at most, met with one eps for all splits.

    Raises:
        BudgetError: `values` is below ranks of 1.
    """
    return TtSvd(matrix).best(((dims[0],), (dims[1],)), eps=eps, values=values)


def rounded(train: TensorTrain, eps: float) -> TensorTrain:
    """A train of lower ranks within a relative Frobenius error of `eps` (of the padded matrix).

    Oseledets' TT-rounding: orthogonalise from the right, then truncate from the left.
    """
    cores = list(train.cores)
    for k in range(len(cores) - 1, 0, -1):
        q, r = torch.linalg.qr(cores[k].reshape(cores[k].shape[0], -1).T)
        cores[k] = q.T.reshape(-1, *cores[k].shape[1:])
        cores[k - 1] = torch.tensordot(cores[k - 1], r.T, dims=1)
    allowed = eps * float(cores[0].norm()) / math.sqrt(len(cores) - 1)
    for k in range(len(cores) - 1):
        core = cores[k]
        u, s, vh = torch.linalg.svd(core.reshape(-1, core.shape[2]), full_matrices=False)
        rank = _kept_rank(s, allowed)
        cores[k] = u[:, :rank].reshape(*core.shape[:2], rank)
        cores[k + 1] = torch.tensordot(s[:rank, None] * vh[:rank], cores[k + 1], dims=1)
    return TensorTrain(_balanced(tuple(cores)), train.inputs, train.true_shape)


def _cores(dims: Dims) -> int:
    return len(dims[0]) + len(dims[1])


def _split_half(
    half: Tensor, dims: tuple[int, ...], allowed: float | None, *, mirrored: bool = False
) -> tuple[Tensor, ...]:
    """Cores of a half (n, r) over `dims`, padded with rows of zeros, peeled off at its free end one by one.

    allowed: Frobenius error of each split; None keeps every rank. mirrored: the half is the transposed B, whose
    fastest-running dim comes first. The two cores a singular value lies between share it.
    """
    bond = half.shape[1]
    padded = torch.nn.functional.pad(half, (0, 0, 0, math.prod(dims) - half.shape[0]))
    if mirrored:
        flat = padded.reshape(*reversed(dims), bond)
        padded = flat.permute(*reversed(range(len(dims))), len(dims))
    rest, cores, root = padded.reshape(1, -1), [], torch.ones_like(half[0, :1])
    for n in dims[:-1]:
        u, s, rest = _split_rows(rest.reshape(rest.shape[0] * n, -1), allowed)
        before, root = root, _root(s)
        cores.append(u.reshape(-1, n, len(s)) * root / before[:, None, None])
    return (*cores, rest.reshape(-1, dims[-1], bond) / root[:, None, None])


def _split_rows(matrix: Tensor, allowed: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """U (rows, r) with orthonormal columns, the r singular values, and Uᵀ M (r, columns), M − U Uᵀ M ≤ `allowed`."""
    tall = matrix.shape[0] > matrix.shape[1]
    values, vectors = torch.linalg.eigh(gram(matrix if tall else matrix.T))
    singular = values.flip(0).clamp_min(0).sqrt()
    rank = len(singular) if allowed is None else _kept_rank(singular, allowed)
    kept, s = vectors.flip(1)[:, :rank].to(matrix), singular[:rank].to(matrix)
    if not tall:
        return kept, s, kept.T @ matrix
    q, r = torch.linalg.qr(matrix @ kept)
    return q, s, r @ kept.T


def _join(left: tuple[Tensor, ...], right: tuple[Tensor, ...], s: Tensor, shape: tuple[int, int]) -> TensorTrain:
    """The train of two halves, U S and V S in cores; S is divided out of each by half."""
    left, right = (_balanced((*half[:-1], half[-1] / _root(s))) for half in (left, right))
    dims = [[core.shape[1] for core in half] for half in (left, right)]
    # the right half is split along Vᵀ's columns, whose fastest-running dim is the free end
    mirrored = tuple(core.permute(2, 1, 0).contiguous() for core in reversed(right))
    padded = (math.prod(dims[0]), math.prod(dims[1]))
    return TensorTrain((*left, *mirrored), len(left), shape if shape != padded else None)


def _balanced(cores: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same chain with cores of equal Frobenius norm, so that all train at one pace."""
    norms = torch.stack([core.norm() for core in cores]).clamp_min(torch.finfo(cores[0].dtype).tiny)
    scales = norms.log().mean().exp() / norms
    return tuple(core * scale for core, scale in zip(cores, scales, strict=True))


def _kept_rank(singular_values: Tensor, allowed: float) -> int:
    """The smallest rank, at least 1, whose discarded tail has a norm of `allowed` at most."""
    tail = singular_values.flip(0).square().cumsum(0).sqrt().flip(0)  # tail[k]: norm of s[k:]
    return max(1, int((tail > allowed).sum()))


def _root(singular_values: Tensor) -> Tensor:
    """√s, where an s lost in rounding counts as the rounding error: its root is divided by."""
    precision = torch.finfo(singular_values.dtype)
    smallest = max(precision.eps * float(singular_values[0]), precision.tiny)
    return singular_values.clamp_min(smallest).sqrt()
