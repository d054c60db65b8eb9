"""Every engine that can run a classifier, as one table. Each is imported only in the process that it runs in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ENGINES", "Classify", "Input"]

# (batch, tokens) ids without padding, or (batch, channels, height, width) pixels
Input = npt.NDArray[Any]
# an input → (batch, classes) logits
Classify = Callable[[Input], npt.NDArray[np.float32]]


def onnxruntime(artifact: Path, threads: int) -> Classify:
    """One of our bundles."""
    from saten_runtime.bundle.folder import Bundle
    from saten_runtime.run.session import make_session

    bundle = Bundle.open(artifact)
    session = make_session(bundle, threads=threads)

    def classify(x: Input) -> npt.NDArray[np.float32]:
        (logits,) = session.run(["logits"], feeds(x, bundle.manifest.inputs))
        return np.asarray(logits)

    return classify


def openvino(artifact: Path, threads: int) -> Classify:
    """An OpenVINO model, `openvino.xml`, or the ONNX graph of a dense bundle."""
    import openvino as ov

    own = artifact / "openvino.xml"
    core = ov.Core()
    model = core.read_model(own if own.is_file() else artifact / "model.onnx")
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", options)
    names = [port.get_any_name() for port in compiled.inputs]
    request = compiled.create_infer_request()

    def classify(x: Input) -> npt.NDArray[np.float32]:
        result = request.infer(feeds(x, names))
        return np.asarray(result[compiled.output("logits")])

    return classify


def torch_eager(artifact: Path, threads: int) -> Classify:
    """A Hugging Face folder, dense or Saten."""
    return _of_torch(_torch_model(artifact, threads))


def torch_compiled(artifact: Path, threads: int) -> Classify:
    """The same through `torch.compile`, for every length at once."""
    import torch

    return _of_torch(torch.compile(_torch_model(artifact, threads), dynamic=True))


ENGINES: dict[str, Callable[[Path, int], Classify]] = {
    engine.__name__: engine for engine in (onnxruntime, openvino, torch_eager, torch_compiled)
}


def feeds(x: Input, names: Sequence[str]) -> dict[str, Input]:
    """What a model with inputs of these names is given."""
    known = {"input_ids": x, "pixel_values": x, "attention_mask": np.ones_like(x), "token_type_ids": np.zeros_like(x)}
    return {name: known[name] for name in names}


def _torch_model(artifact: Path, threads: int) -> Any:
    import torch

    from saten_edge.checkpoints.models import load_model

    torch.set_num_threads(threads)
    return load_model(artifact).model.eval()


def _of_torch(model: Any) -> Classify:
    import torch

    names = ("pixel_values",) if model.main_input_name == "pixel_values" else ("input_ids", "attention_mask")

    def classify(x: Input) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in feeds(x, names).items()}
            return np.asarray(model(**tensors).logits)

    return classify
