"""How much the errors of each layer matter to a model's output, of all layers by one backward pass.

To first order an error δ in a layer's output moves the model's output by J δ. With random signs v, E[v vᵀ] = I, the
gradient g = Jᵀ v of ⟨v, output⟩ at the layer gives ‖J δ‖² = E[⟨g, δ⟩²] (Hutchinson, "A Stochastic Estimator of the
Trace", Commun. Stat. 19, 1990). One backward pass gives g to every layer. The errors of a layer's tokens are summed as
if they were independent: with A = E[xxᵀ], G = E[ggᵀ] and an error D of the matrix, that is tr(G Dᵀ A D), the curvature
of K-FAC (Martens & Grosse, ICML 2015), but taken token by token, so that x and g need not be independent and no G is
stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.tt import truncated_factors
from saten_edge.processor import fast_attention
from saten_runtime.errors import DataError

__all__ = ["model_output", "output_sensitivities"]

PROBES_SEED = 0


@dataclass
class _Layer:
    """A layer with the factors that stand in for its matrix, and what their errors did to the output so far.

    error: squared and relative, in the layer's metric. moved: Σ ⟨g, δ⟩² over tokens.
    """

    a: Tensor
    b: Tensor
    error: float
    moved: float = 0.0


def output_sensitivities(
    model: Any,
    matrices: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    batches: Iterable[dict[str, Tensor]],
    share: float,
    progress: Callable[[str], None] = lambda name: None,
    heads: Mapping[str, str] | None = None,
    *,
    bf16: bool = False,
) -> dict[str, float]:
    """By how much a layer's squared relative error is multiplied on its way to the output.

    The output is what the task reads: logits, or the last hidden state of a model without a head. The error is that of
    the factors which `share` of a matrix's bytes pay for.

    matrices: (in, out) by layer. batches: model inputs, padded; the activations of one are in memory at a time.
    heads: output layers that use a table again → that table. bf16: the model multiplies in bfloat16.

    Raises:
        DataError: there is no batch.
    """
    layers = {}
    for name, matrix in matrices.items():
        progress(name)
        layers[name] = _replaced(matrix, Metric.from_moments(moments[name]), share)
    uses = {**{name: name for name in layers}, **{head: name for head, name in (heads or {}).items() if name in layers}}
    probes, energy = torch.Generator().manual_seed(PROBES_SEED), 0.0
    with _frozen(model), _watched(model, layers, uses) as mask, torch.enable_grad():
        for batch in batches:
            mask[:] = [batch["attention_mask"].bool() if "attention_mask" in batch else None]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16), fast_attention(batch, bf16=bf16):
                energy += _probed(model, batch, probes)
    if not energy:
        raise DataError("no text to calibrate on; --calibration needs one that makes a token, at least")
    return {name: layer.moved / energy / layer.error for name, layer in layers.items()}


def _probed(model: nn.Module, batch: dict[str, Tensor], probes: torch.Generator) -> float:
    """The squared norm of the output for a batch, after a backward pass; its graph ends here, before the next one's."""
    output = model_output(model, batch)
    drawn = torch.randint(0, 2, output.shape, generator=probes, dtype=torch.int8)
    output.backward(drawn.to(output.dtype).mul_(2).sub_(1))  # type: ignore[no-untyped-call]
    return float(torch.linalg.vector_norm(output.detach(), dtype=torch.float64)) ** 2


def model_output(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """What the task reads of the model's output, without padding, flat."""
    found = model(**batch)
    names = [name for name in ("logits", "start_logits", "end_logits") if name in found] or ["last_hidden_state"]
    tensors = [found[name] for name in names]
    mask = batch.get("attention_mask")
    if mask is not None and tensors[0].shape[:2] == mask.shape and not mask.all():
        tensors = [tensor[mask.bool()] for tensor in tensors]
    flat = [tensor.reshape(-1) for tensor in tensors]
    return torch.cat(flat) if len(flat) > 1 else flat[0]  # logits are not copied


def _replaced(matrix: Tensor, metric: Metric, share: float) -> _Layer:
    rank = max(1, int(share * matrix.numel() / sum(matrix.shape)))
    exact = matrix.float()
    weighing = metric.like(exact)
    a, b = truncated_factors(exact, rank, weighing)
    return _Layer(a, b, max(weighing.relative_error(exact, a @ b), 1e-9) ** 2)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within the block only activations have gradients."""
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, was in wanted.items():
            parameter.requires_grad_(was)


@contextlib.contextmanager
def _watched(model: nn.Module, layers: Mapping[str, _Layer], uses: Mapping[str, str]) -> Iterator[list[Tensor | None]]:
    """Within the block a backward pass adds to `moved` of every layer; gives the place of the batch's mask."""
    mask: list[Tensor | None] = [None]
    hooks = [
        model.get_submodule(use).register_forward_hook(_watcher(layers[name], tied=use != name, mask=mask))
        for use, name in uses.items()
    ]
    try:
        yield mask
    finally:
        for hook in hooks:
            hook.remove()


def _watcher(layer: _Layer, *, tied: bool, mask: list[Tensor | None]) -> Callable[..., None]:
    left, right = (layer.b.T, layer.a.T) if tied else (layer.a, layer.b)

    def watch(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, exact = inputs[0].detach(), output.detach()
        bias, scale = getattr(module, "bias", None), getattr(module, "scalar_embed_scale", 1.0)  # of Gemma's tables
        approximate = (left[x] * scale if isinstance(module, nn.Embedding) else x @ left) @ right
        error = exact - approximate if bias is None else exact - bias - approximate
        kept = mask[0] if mask[0] is not None and error.shape[:2] == mask[0].shape else None

        def add(gradient: Tensor) -> None:
            moved = torch.linalg.vecdot(gradient.float(), error.float())
            layer.moved += float((moved if kept is None else moved[kept]).square().sum())

        if not output.requires_grad:  # before the first layer that is watched there is nothing to differentiate
            output.requires_grad_()
        output.register_hook(add)  # type: ignore[no-untyped-call]

    return watch
