"""What this machine's processor, or its GPU, computes in hardware, and what is fastest on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["fast_attention", "multiplies_bf16"]

# Tokens of a text up to which attention with a gradient is computed with plain products.
SHORT = 256
# oneDNN writes machine code for every shape of a bfloat16 product and keeps the code of 1024, by default. A step of a
# compressed model has hundreds, as ranks differ, at every length of a batch: the code was written anew in each step,
# which took a quarter of the time of small batches. As many as this take up to 1.6 GB more of memory. The variable is
# read when the first product is computed.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")


def multiplies_bf16(*, gpu: bool) -> bool:
    """Whether the processor, or the GPU, has bfloat16 products; emulating them is slower than float32."""
    if gpu:
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16", "neon_bf16"))


def fast_attention(batch: Mapping[str, Tensor], *, bf16: bool) -> contextlib.AbstractContextManager[None]:
    """The way to compute attention whose gradient is fastest for this batch; bf16: with bfloat16 products on a CPU.

    There, torch's fused attention takes long for its gradient: of 128 texts of 16 tokens, 93 ms where plain products
    take 7, of 32 texts of 128 tokens, 130 where they take 57. It is level at about 400 tokens, and keeps no scores of
    tokens × tokens.
    """
    tokens = batch["input_ids"].shape[-1] if "input_ids" in batch else 0
    return sdpa_kernel(SDPBackend.MATH) if bf16 and tokens <= SHORT else contextlib.nullcontext()
