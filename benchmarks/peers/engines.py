"""Every engine that can run a text classifier, as one table. Each is imported only in the process that it runs in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ENGINES", "Classify"]

Ids = npt.NDArray[np.int64]
# (batch, tokens) ids without padding → (batch, classes) logits
Classify = Callable[[Ids], npt.NDArray[np.float32]]


def onnxruntime(artifact: Path, threads: int) -> Classify:
    """One of our bundles."""
    from saten_runtime.bundle import Bundle
    from saten_runtime.session import make_session

    bundle = Bundle.open(artifact)
    session = make_session(bundle, threads=threads)

    def classify(ids: Ids) -> npt.NDArray[np.float32]:
        (logits,) = session.run(["logits"], _feeds(ids, bundle.manifest.inputs))
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

    def classify(ids: Ids) -> npt.NDArray[np.float32]:
        result = request.infer(_feeds(ids, names))
        return np.asarray(result[compiled.output("logits")])

    return classify


def torch_eager(artifact: Path, threads: int) -> Classify:
    """A Hugging Face folder, dense or Saten."""
    import torch
    from transformers import AutoModelForSequenceClassification

    import saten_edge  # noqa: F401  registers the "saten" method

    torch.set_num_threads(threads)
    model = AutoModelForSequenceClassification.from_pretrained(artifact).eval()
    return _of_torch(model)


def torch_compiled(artifact: Path, threads: int) -> Classify:
    """The same through `torch.compile`, for every length at once."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    model = AutoModelForSequenceClassification.from_pretrained(artifact).eval()
    return _of_torch(torch.compile(model, dynamic=True))


ENGINES: dict[str, Callable[[Path, int], Classify]] = {
    engine.__name__: engine for engine in (onnxruntime, openvino, torch_eager, torch_compiled)
}


def _feeds(ids: Ids, names: list[str]) -> dict[str, Ids]:
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {name: known[name] for name in names}


def _of_torch(model: Any) -> Classify:
    import torch

    def classify(ids: Ids) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            tensor = torch.from_numpy(ids)
            logits = model(input_ids=tensor, attention_mask=torch.ones_like(tensor)).logits
        return np.asarray(logits)

    return classify
