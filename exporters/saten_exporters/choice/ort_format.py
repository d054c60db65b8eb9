"""ORT format: the file that builds of ONNX Runtime without an ONNX parser read, as apps on phones may have.

Written by ONNX Runtime's own tools, beside the graph and not in its place. Its optimizations are baked in ("Fixed"),
because such builds cannot optimize; those that only x86-64 gains from are left out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from saten_runtime.errors import ExportError
from saten_runtime.records.files import replace_file
from saten_runtime.records.plain_text import last_line
from saten_runtime.vocabulary.files import MODEL_FILE

__all__ = ["OPERATORS_FILE", "ORT_FILE", "USABILITY_FILE", "add_ort_format"]

ORT_FILE = "variants/ort/model.ort"
OPERATORS_FILE = "variants/ort/required_operators_and_types.config"
USABILITY_FILE = "validation/mobile.txt"

_LARGEST_BYTES = 2**31 - 1  # what a flatbuffer can hold
_STYLE = ("--optimization_style", "Fixed", "--target_platform", "arm", "--enable_type_reduction")
_LOG_PREFIX = "INFO:  "


def add_ort_format(bundle: Path) -> None:
    """Add three files to the folder of a bundle, whose manifest has to be written after.

    `ORT_FILE`: the graph with its weights. `OPERATORS_FILE`: what a build of ONNX Runtime must contain to run it.
    `USABILITY_FILE`: what ONNX Runtime's check says of running it by NNAPI or CoreML.

    Raises:
        ExportError: the weights do not fit into the format, or ONNX Runtime cannot convert the graph.
    """
    model = ir.load(bundle / MODEL_FILE)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > _LARGEST_BYTES:
        raise ExportError(f"{size:,} bytes of weights, ORT format holds 2 GiB; choose a smaller precision or target")
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside)
        inlined = common.InlinePass()(model).model  # ORT format has no functions
        ir.save(inlined, folder / MODEL_FILE, external_data="model.onnx.data")
        usability = _run_tool(folder, "check_onnx_model_mobile_usability", MODEL_FILE)
        _run_tool(folder, "convert_onnx_models_to_ort", *_STYLE, "--output_dir", "ort", ".")
        (bundle / ORT_FILE).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / "ort" / "model.ort", bundle / ORT_FILE)  # may be 2 GiB, which need not pass through memory
        operators = (folder / "ort" / Path(OPERATORS_FILE).name).read_text("utf-8").splitlines()
    # The comments name folders of this machine.
    _write_lines(bundle / OPERATORS_FILE, [line for line in operators if not line.startswith("#")])
    _write_lines(bundle / USABILITY_FILE, [line.removeprefix(_LOG_PREFIX).rstrip() for line in usability.splitlines()])


def _run_tool(folder: Path, tool: str, *arguments: str) -> str:
    """What a tool of ONNX Runtime logs; in a process of its own, because the tools set up logging for everybody."""
    command = [sys.executable, "-m", f"onnxruntime.tools.{tool}", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = last_line(done.stderr, "it said nothing")
        raise ExportError(f"ONNX Runtime's {tool} refuses the graph ({last[:300]}); choose another target")
    return done.stderr


def _write_lines(path: Path, lines: list[str]) -> None:
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())
