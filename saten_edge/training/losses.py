"""What is minimised: losses on labels, and distances to a teacher.

Every loss is a sum over what the batch holds, divided by how much that is. The two come apart, so that several
processes can divide by what all of them hold: their mean gradient is then that of one large batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from saten_edge.training.heads import Head, in_chunks
from saten_runtime.errors import ShapeError

__all__ = [
    "IGNORED",
    "Fraction",
    "Sides",
    "cross_entropy",
    "embedding_distance",
    "hidden_distance",
    "kl_divergence",
    "logits_error",
    "next_token",
    "span_cross_entropy",
    "span_divergence",
    "squared_error",
]

# A label that no loss looks at, as torch has it.
IGNORED = -100

# numerator and denominator, each a scalar or of one shape (k,); their quotients are averaged
Fraction = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sides:
    """What a batch came to: the student's outputs, the teacher's or None, how each pools, and the temperature.

    heads: the output layers of both, where logits are made in chunks; see `saten_edge.training.heads`.
    notes: for a judge, one for each row, of tasks that have them.
    """

    batch: Mapping[str, Tensor]
    student: Any
    teacher: Any = None
    pools: tuple[Callable[[Tensor, Tensor], Tensor], ...] = ()
    temperature: float = 1.0
    heads: tuple[Head, ...] = ()
    notes: Sequence[Any] = ()


def cross_entropy(sides: Sides) -> Fraction:
    """Of logits (…, classes) and labels (…), those `IGNORED` left out."""
    labels, logits = sides.batch["labels"].flatten(), sides.student.logits.float().flatten(0, -2)
    total = functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
    return total, _count(labels[labels != IGNORED])


def span_cross_entropy(sides: Sides) -> Fraction:
    """Of two logits (n, t), of the first and the last token of an answer, and labels (n, 2): (2,)."""
    labels = sides.batch["labels"]
    both = zip(_ends(sides.student, sides.batch), labels.T, strict=True)
    totals = [functional.cross_entropy(logits, wanted, reduction="sum") for logits, wanted in both]
    return torch.stack(totals), _count(labels).expand(2)


def span_divergence(sides: Sides) -> Fraction:
    """`kl_divergence` of the first and the last token of an answer: (2,)."""
    student, teacher = _both(sides, "start_logits")
    pairs = zip(_ends(student, sides.batch), _ends(teacher, sides.batch), strict=True)
    totals = torch.stack([_softened(got, wanted, sides.temperature) for got, wanted in pairs])
    return totals, _count(student.start_logits).expand(2)


def squared_error(sides: Sides) -> Fraction:
    """Of logits (n, 1) and real labels (n,)."""
    labels = sides.batch["labels"]
    return (sides.student.logits.float()[:, 0] - labels).square().sum(), _count(labels)


def next_token(sides: Sides) -> Fraction:
    """Cross entropy of the logits of each token with the token that follows, padding left out."""
    follows = sides.batch["attention_mask"][:, 1:].bool()
    wanted = sides.batch["input_ids"][:, 1:][follows]
    ((rows, head),) = _predictions(sides, [sides.student], functional.pad(follows, (0, 1)))

    def total(rows: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(head(rows), wanted, reduction="sum")

    return in_chunks(total, rows, wanted), _count(wanted)


def kl_divergence(sides: Sides) -> Fraction:
    """KL of the softened distributions, times the temperature squared (Hinton et al., arXiv:1503.02531)."""
    kept = sides.batch["attention_mask"].bool() if "attention_mask" in sides.batch else None
    (got, student), (wanted, teacher) = _predictions(sides, _both(sides, "logits"), kept)

    def total(got: Tensor, wanted: Tensor) -> Tensor:
        ours = (student(got) / sides.temperature).log_softmax(-1)
        with torch.no_grad():
            theirs = (teacher(wanted) / sides.temperature).log_softmax(-1)
        return functional.kl_div(ours, theirs, reduction="sum", log_target=True)

    return sides.temperature**2 * in_chunks(total, got, wanted), _count(got)


def logits_error(sides: Sides) -> Fraction:
    """Squared error of the logits, for regression."""
    got, wanted = (_rows(side.logits, sides.batch) for side in _both(sides, "logits"))
    return (got - wanted).square().sum(), _count(got)


def hidden_distance(sides: Sides) -> Fraction:
    """Relative squared error of the hidden states after the embedding and every block, padding left out: (blocks + 1,).

    As in Jiao et al., "TinyBERT", EMNLP 2020.
    """
    _both(sides, "hidden_states")
    pairs = [
        (got.float(), wanted.float())
        for got, wanted in zip(sides.student.hidden_states, sides.teacher.hidden_states, strict=True)
    ]
    kept = _kept(sides.batch, pairs[0][0])

    def squared(hidden: Tensor) -> Tensor:  # by the norms of the rows: the gradient takes one pass over memory
        norms: Tensor = torch.linalg.vector_norm(hidden, dim=-1)
        return (norms * kept).square().sum()

    return torch.stack([squared(got - wanted) for got, wanted in pairs]), torch.stack([squared(w) for _, w in pairs])


def embedding_distance(sides: Sides) -> Fraction:
    """Cosine distance of the pooled embeddings (n, width)."""
    hidden = sides.student.hidden_states[-1]
    mask = sides.batch.get("attention_mask", torch.ones(hidden.shape[:2], device=hidden.device))  # of images all counts
    got, wanted = (
        pool(side.hidden_states[-1].float(), mask)
        for pool, side in zip(sides.pools, _both(sides, "hidden_states"), strict=True)
    )
    return (1 - functional.cosine_similarity(got, wanted)).sum(), _count(got)


def _both(sides: Sides, name: str) -> tuple[Any, Any]:
    """Student and teacher, whose outputs `name` have the same shapes.

    Raises:
        ShapeError: they have not.
    """
    got, wanted = (_shapes(getattr(side, name)) for side in (sides.student, sides.teacher))
    if got != wanted:
        raise ShapeError(
            f"the student's {name.replace('_', ' ')} are {len(got)} × {got[0]}, the teacher's {len(wanted)} × "
            f"{wanted[0]}; --teacher must be the model that was compressed"
        )
    return sides.student, sides.teacher


def _shapes(outputs: Tensor | tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _predictions(sides: Sides, outputs: Sequence[Any], kept: Tensor | None) -> list[tuple[Tensor, Head]]:
    """Of each of the outputs, the rows that predict, and what makes them logits: of classes, or of the kept tokens."""
    if sides.heads:
        return [(one.hidden_states[-1][kept], head) for one, head in zip(outputs, sides.heads, strict=False)]
    logits = [one.logits if one.logits.ndim == 2 else one.logits[kept] for one in outputs]
    return [(rows, Tensor.float) for rows in logits]


def _rows(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """(n, classes) as it is, (n, t, classes) without padding, in float32."""
    return (logits if logits.ndim == 2 else logits[batch["attention_mask"].bool()]).float()


def _kept(batch: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
    """1 where a row of `hidden` (n, t, width) counts, 0 at padding, to multiply by; images have no padding."""
    return batch["attention_mask"].to(hidden.dtype) if "attention_mask" in batch else hidden.new_ones(())


def _softened(got: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """KL of two rows of logits divided by the temperature, times its square."""
    own, other = ((logits / temperature).log_softmax(-1) for logits in (got, wanted))
    return temperature**2 * functional.kl_div(own, other, reduction="sum", log_target=True)


def _ends(outputs: Any, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Logits (n, t) of the first and of the last token of an answer, in float32; padding is as good as impossible."""
    padding = batch["attention_mask"] == 0
    both = (outputs.start_logits.float(), outputs.end_logits.float())
    return [logits.masked_fill(padding, torch.finfo(logits.dtype).min / 2) for logits in both]


def _count(values: Tensor) -> Tensor:
    return torch.tensor(float(len(values)), device=values.device)
