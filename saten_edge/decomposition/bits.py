"""Codes of a few bits each, packed into bytes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pack", "unpack"]


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (n,) uint8 below 2^bits → ⌈n · bits / 8⌉ bytes."""
    places = torch.arange(bits, dtype=torch.uint8, device=codes.device)
    stream = ((codes[:, None] >> places) & 1).reshape(-1)
    octets = torch.nn.functional.pad(stream, (0, -stream.numel() % 8)).reshape(-1, 8)
    weights = torch.tensor([1 << place for place in range(8)], dtype=torch.uint8, device=codes.device)
    return (octets * weights).sum(1, dtype=torch.uint8)


def unpack(octets: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of `pack`, int64."""
    places = torch.arange(8, dtype=torch.uint8, device=octets.device)
    stream = ((octets[:, None] >> places) & 1).reshape(-1)[: count * bits].reshape(count, bits)
    weights = torch.tensor([1 << place for place in range(bits)], dtype=torch.uint8, device=octets.device)
    return (stream * weights).sum(1, dtype=torch.uint8).to(torch.int64)
