"""What a graph may use, by the kind of device it is for: one row per target."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """opset: of ONNX' own domain; ir_version: of the file; smallest_onnxruntime: the oldest that loads both."""

    name: str
    opset: int
    ir_version: int
    smallest_onnxruntime: str


# opset 18 brought ScatterElements(add) and is the oldest that every form needs; IR 10 is what it came to be
# written with. onnx stamps the newest IR by default, which released ONNX Runtimes refuse.
TARGETS = {target.name: target for target in (Target("cpu", opset=18, ir_version=10, smallest_onnxruntime="1.23"),)}
