"""Run and measure saten-edge bundles on a device: numpy, ONNX Runtime and tokenizers, no torch.

runner = Runner.load("my-bundle", threads=2)
vectors = runner.predict(["first text", "second text"])
"""

from __future__ import annotations

from saten_runtime.bundle import Bundle
from saten_runtime.errors import SatenError
from saten_runtime.generation import Sampling
from saten_runtime.manifest import Manifest
from saten_runtime.runner import Runner
from saten_runtime.tasks import Answer, Classification, Completion, Word

__all__ = [
    "Answer",
    "Bundle",
    "Classification",
    "Completion",
    "Manifest",
    "Runner",
    "Sampling",
    "SatenError",
    "Word",
    "__version__",
]

__version__ = "0.1.0"
