"""Programs that know nothing of this project read the bundles."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.exporters import ExportedModel

from saten_runtime.bundle.folder import Bundle
from saten_runtime.run.parity import compare_outputs

KINDS = [(model, precision) for model in ("dense", "saten") for precision in ("fp32", "int8")]

BundleOf = Callable[[str, str], Bundle]

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {'torch', 'transformers', 'onnx', 'onnx_ir'} or name.startswith('saten'):
            raise ImportError(name + ' is blocked')
sys.meta_path.insert(0, Blocker())
"""

PLAIN = """
import sys
from pathlib import Path
import numpy, onnxruntime
for bundle in map(Path, sys.argv[2:]):
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = {name: numpy.load(bundle / "validation" / f"ragged.{name}.npy") for name in names}
    numpy.save(Path(sys.argv[1]) / f"{bundle.name}.npy", session.run(None, feeds)[0])
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "onnx", "saten_runtime"}))
"""


def case(bundle: Bundle, name: str) -> dict[str, np.ndarray]:
    names = [*bundle.manifest.inputs, *bundle.manifest.outputs]
    return {each: np.load(bundle.path / "validation" / f"{name}.{each}.npy") for each in names}


def test_plain_onnxruntime(bundle_of: BundleOf, run_ort: Callable[..., list[np.ndarray]], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    bundles = [bundle_of(*kind) for kind in KINDS]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path), *(str(bundle.path) for bundle in bundles)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    for bundle in bundles:
        arrays = case(bundle, "ragged")
        got = np.load(tmp_path / f"{bundle.path.name}.npy")
        error, cosine = compare_outputs(got, arrays["last_hidden_state"], arrays["attention_mask"])
        assert error <= bundle.manifest.tolerance.get("relative", np.inf)
        assert cosine > 0.9
        (here,) = run_ort(bundle.model, {name: arrays[name] for name in bundle.manifest.inputs})
        np.testing.assert_array_equal(got, here)


@pytest.mark.parametrize("name", ["saten_runtime", "saten_edge", "saten_exporters", "torch", "onnx"])
def test_the_blocker_blocks(name: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert f"ImportError: {name} is blocked" in done.stderr


@pytest.mark.parametrize(("model", "precision"), [*KINDS, ("unstructured", "fp32")])
def test_transformers_reads_a_bundle(
    model: str, precision: str, bundle_of: BundleOf, run_ort: Callable[..., list[np.ndarray]]
) -> None:
    bundle = bundle_of(model, precision)
    arrays = case(bundle, "padded")
    feeds = {name: arrays[name] for name in bundle.manifest.inputs}
    exported = ExportedModel.from_pretrained(bundle.path)
    hidden = exported(**{name: torch.from_numpy(array) for name, array in feeds.items()}).last_hidden_state.numpy()
    (plain,) = run_ort(bundle.model, feeds)
    bound = bundle.manifest.tolerance.get("relative", 1e-6)
    assert compare_outputs(hidden, plain, arrays["attention_mask"])[0] <= bound
    wrong = np.roll(plain, 1, axis=1)
    assert compare_outputs(hidden, wrong, arrays["attention_mask"])[0] > bound
    if precision == "fp32":
        assert compare_outputs(hidden, arrays["last_hidden_state"], arrays["attention_mask"])[0] <= bound
