"""Run and measure saten-edge bundles on a device: numpy, ONNX Runtime and tokenizers, no torch.

runner = Runner.load("my-bundle", threads=2)
vectors = runner.predict(["first text", "second text"])
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from saten_runtime.lazy import lazily

if TYPE_CHECKING:
    from saten_runtime.bundle.folder import Bundle
    from saten_runtime.bundle.manifest import Manifest
    from saten_runtime.errors import SatenError
    from saten_runtime.run.generation import Sampling
    from saten_runtime.run.predict import Answer, Classification, Completion, Word
    from saten_runtime.run.runner import Runner

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

# ONNX Runtime's wheels for Linux report their use, unless this is set before they are imported (docs/security.md).
# All of ours that imports them, in this process or in one that it starts, imports this package first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULES = {
    **dict.fromkeys(("Answer", "Classification", "Completion", "Word"), ".run.predict"),
    "Bundle": ".bundle.folder",
    "Manifest": ".bundle.manifest",
    "Runner": ".run.runner",
    "Sampling": ".run.generation",
    "SatenError": ".errors",
}


# When they are asked for: commands that only print need no numpy, and Ctrl-C is heard before it.
__getattr__ = lazily(__name__, _MODULES)
