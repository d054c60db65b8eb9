"""Names of our operators: the domain, and the placeholders that a model is traced with and the exporter replaces."""

from __future__ import annotations

__all__ = [
    "ATTENTION",
    "CACHED_ATTENTION",
    "DOMAIN",
    "DOMAIN_VERSION",
    "EMBEDDING",
    "HEAD",
    "LAYER",
    "LAYERS",
    "LINEAR",
    "LOGITS_TO_KEEP",
    "qualified",
]

DOMAIN = "saten"
DOMAIN_VERSION = 1

# Placeholders of a compressed layer; the attribute `LAYER` carries its name, that of the shared table for a head.
LINEAR, EMBEDDING, HEAD = LAYERS = ("Linear", "Embedding", "Head")
LAYER = "layer"
# Placeholders of an attention: behind a cache no token sees a later one, otherwise each sees all.
ATTENTION, CACHED_ATTENTION = "Attention", "CachedAttention"
# An input of decoders that need not be given: how many last tokens logits are made of, (1,) int64; 0: of all.
LOGITS_TO_KEEP = "num_logits_to_keep"


def qualified(operator: str) -> str:
    """The operator with its domain, as torch's tracer takes it."""
    return f"{DOMAIN}::{operator}"
