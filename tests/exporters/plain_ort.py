"""Run every model of a folder with numpy and onnxruntime alone: `plain_ort.py CASES OUT`.

CASES/<name>/model.onnx (or model.ort) and <input>.npy → OUT/<name>.npy, the first output, or OUT/<name>.txt, the error.
"""

import sys
from pathlib import Path

import numpy
import onnxruntime

CASES, OUT = map(Path, sys.argv[1:])

onnxruntime.set_default_logger_severity(4)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for case in CASES.iterdir():
    (model,) = [path for path in case.iterdir() if path.suffix in {".onnx", ".ort"}]
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        feeds = {value.name: numpy.load(case / f"{value.name}.npy") for value in session.get_inputs()}
        numpy.save(OUT / f"{case.name}.npy", session.run(None, feeds)[0])
    except Exception as cause:
        (OUT / f"{case.name}.txt").write_text(str(cause))
print(onnxruntime.__version__)
