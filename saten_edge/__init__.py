"""Compress transformers as tensor train + sparse residual, fine-tune them, export them, measure them.

After `import saten_edge`, `transformers.AutoModel.from_pretrained` reads Saten checkpoints.
"""

from __future__ import annotations

from saten_edge.registration import register_when_loaded

__version__ = "0.1.0"

register_when_loaded()
