"""What other programs expect to find: the names, the settings, and the same numbers."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from saten_exporters import PRECISIONS
from saten_exporters.bundles.layouts import JS_DTYPES, LAYOUTS, laid_out, write_layout
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import ExportError, UsageError
from saten_runtime.records.folders import MARK
from saten_runtime.run.parity import compare_outputs, read_cases
from saten_runtime.run.runner import Runner

TEXTS = ["The file returns a path.", "number of"]
ROUNDING = 1e-5

BundleOf = Callable[[str, str], Bundle]


@pytest.fixture(scope="module")
def both(bundle_of: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for transformers.js of an fp32 and an int8 bundle."""
    out = tmp_path_factory.mktemp("js") / "both"
    write_layout("transformersjs", [bundle_of("saten", "fp32"), bundle_of("saten", "int8")], out)
    return out


def test_the_names(both: Path) -> None:
    assert {path.relative_to(both).as_posix() for path in both.rglob("*") if path.is_file()} == {
        MARK,
        "README.md",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "onnx/model_quantized.onnx",
        "onnx/model_quantized.onnx_data",
    }


def test_the_config(both: Path, bundle_of: BundleOf) -> None:
    config = json.loads((both / "config.json").read_text())
    assert config["transformers.js_config"] == {
        "dtype": "fp32",
        "use_external_data_format": {"model.onnx": 1, "model_quantized.onnx": 1},
    }
    written = json.loads((bundle_of("saten", "fp32").path / "config.json").read_text())
    assert "quantization_config" in written
    assert {name: value for name, value in config.items() if name != "transformers.js_config"} == {
        name: value for name, value in written.items() if name != "quantization_config"
    }


def test_the_card(both: Path) -> None:
    head, text = (both / "README.md").read_text().split("---\n")[1:3]
    assert "library_name: transformers.js\n" in head
    assert "pipeline_tag: feature-extraction\n" in head
    assert 'pipeline("feature-extraction", "owner/name", { dtype: "fp32" })' in text
    for file in (both / "onnx").iterdir():
        assert f"| onnx/{file.name} | {file.stat().st_size:,} |" in text


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_numbers(precision: str, both: Path, bundle_of: BundleOf, run_ort: Callable[..., list[np.ndarray]]) -> None:
    bundle = bundle_of("saten", precision)
    arrays = read_cases(bundle)["ragged"]
    feeds, mask = {name: arrays[name] for name in bundle.manifest.inputs}, arrays["attention_mask"]
    (got,) = run_ort(both / "onnx" / f"model{JS_DTYPES[precision][1]}.onnx", feeds)
    (wanted,) = run_ort(bundle.model, feeds)
    np.testing.assert_array_equal(got, wanted)
    assert compare_outputs(np.roll(got, 1, axis=-1), wanted, mask)[0] > 100 * ROUNDING


def test_weights_lie_once_and_beside_the_graph(both: Path, bundle_of: BundleOf) -> None:
    for precision in ("fp32", "int8"):
        file = both / "onnx" / f"model{JS_DTYPES[precision][1]}.onnx"
        tensors = [value.const_value for value in ir.load(file).graph.initializers.values()]
        assert {Path(tensor.location).name for tensor in tensors if isinstance(tensor, ir.ExternalTensor)} == {
            f"{file.name}_data"
        }
        stored = bundle_of("saten", precision).manifest.files["model.onnx.data"].bytes
        assert file.with_name(f"{file.name}_data").stat().st_size == stored


@pytest.mark.usefixtures("standard_operators")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_transformers_js_computes_the_same(
    precision: str, both: Path, bundle_of: BundleOf, npm_package: Callable[[str], Path]
) -> None:
    modules = npm_package("@huggingface/transformers@4.3.1")
    script = Path(__file__).parents[1] / "js_embed.mjs"
    dtype = {"fp32": "-", "int8": JS_DTYPES["int8"][0]}[precision]  # fp32 is what config.json says
    command = ["node", script, modules, both, dtype, *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    got, wanted = np.array(json.loads(done.stdout)), Runner.load(bundle_of("saten", precision)).predict(TEXTS)
    # An 8-bit code that falls on the other side of a half moves an activation by 1/255 of its range.
    allowed = {"fp32": ROUNDING, "int8": 1 / 255}[precision]
    assert np.linalg.norm(got - wanted, axis=1).max() <= allowed
    assert np.linalg.norm(got[::-1] - wanted, axis=1).min() > allowed


def test_every_precision_has_a_name_or_is_refused(bundle_of: BundleOf, tmp_path: Path) -> None:
    assert set(PRECISIONS) & set(JS_DTYPES) >= {"fp32", "int8"}
    bundle = bundle_of("saten", "fp32")
    odd = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, precision="int3"))
    with pytest.raises(ExportError, match="has no name for the precision int3"):
        write_layout("transformersjs", [odd], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_bundles_that_do_not_belong_together(bundle_of: BundleOf, tmp_path: Path) -> None:
    bundle = bundle_of("saten", "fp32")
    with pytest.raises(UsageError, match=r"two would be model\.onnx"):
        write_layout("transformersjs", [bundle, bundle], tmp_path / "out")
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, task="text-classification"))
    with pytest.raises(UsageError, match="another task or architecture"):
        write_layout("transformersjs", [bundle, other], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["round", "bundle"])
def test_no_such_layout(layout: str, bundle_of: BundleOf, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"--layout {layout}: bundles can be written as transformersjs"):
        write_layout(layout, [bundle_of("saten", "fp32")], tmp_path / "out")


def test_exporting_into_a_layout(bundle_of: BundleOf, tmp_path: Path) -> None:
    """The bundle is made beside the output, and is gone in the end."""
    source, out = bundle_of("saten", "int8").path, tmp_path / "out"
    for layout in LAYOUTS:
        with laid_out(out, layout, overwrite=True) as folder:
            assert not folder.exists() or folder == out
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(source, folder)
        assert list(tmp_path.iterdir()) == [out]
        assert (out / "saten_edge.json").is_file() == (layout == "bundle")
    with pytest.raises(UsageError, match="--layout round: there are bundle, transformersjs"), laid_out(out, "round"):
        pytest.fail("went on all the same")


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_export_leaves_nothing(failure: type[BaseException], tmp_path: Path) -> None:
    def work(**options: Any) -> None:
        with laid_out(tmp_path / "out", "transformersjs", **options):
            raise failure

    with pytest.raises(failure):
        work()
    assert list(tmp_path.iterdir()) == []
