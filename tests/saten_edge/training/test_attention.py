"""Attention is trained in the way whose gradient is fastest, and that changes nothing but the time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from saten_edge.processor import SHORT, fast_attention

SHAPE = (2, 3, 16, 8)  # batch, heads, tokens, width of a head


def batch_of(tokens: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.zeros(1, tokens, dtype=torch.int64)}


def fused(batch: dict[str, torch.Tensor], *, bf16: bool) -> bool:
    """Whether torch may choose its fused attention for this batch."""
    with fast_attention(batch, bf16=bf16):
        return torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(
    ("tokens", "bf16", "wanted"), [(16, True, False), (SHORT, True, False), (SHORT + 1, True, True), (16, False, True)]
)
def test_short_texts_in_bf16_are_trained_with_plain_products(tokens: int, bf16: bool, wanted: bool) -> None:
    assert fused(batch_of(tokens), bf16=bf16) is wanted
    assert torch.backends.cuda.flash_sdp_enabled()  # put back


def gradients(mask: torch.Tensor, *, plain: bool) -> torch.Tensor:
    """Of queries, keys and values in bfloat16."""
    parts = torch.randn(3, *SHAPE, generator=torch.manual_seed(0), dtype=torch.bfloat16).requires_grad_()
    with fast_attention(batch_of(SHAPE[2]), bf16=plain):
        found = scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=mask)
    (gradient,) = torch.autograd.grad(found.float().square().sum(), parts)
    return gradient.float()


def test_both_ways_have_the_same_gradient() -> None:
    mask = torch.ones(SHAPE[0], 1, SHAPE[2], SHAPE[2], dtype=torch.bool)
    mask[..., -5:] = False
    fused, plain = gradients(mask, plain=False), gradients(mask, plain=True)
    tolerance = 16 * torch.finfo(torch.bfloat16).eps * fused.abs().max()
    assert (fused - plain).abs().max() < tolerance
    assert (fused - gradients(~mask | mask, plain=True)).abs().max() > tolerance  # another mask, another gradient


@pytest.mark.parametrize(("said", "wanted"), [(None, "4096"), ("64", "64")])
def test_the_code_of_more_products_is_kept_unless_somebody_says_how_many(said: str | None, wanted: str):
    """Before torch computes anything: then it is too late."""
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    environment = {key: value for key, value in os.environ.items() if key != name} | ({name: said} if said else {})
    program = f"import os, saten_edge.training.trainer; print(os.environ[{name!r}])"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == wanted
