"""The ORT format that bundles for `mobile` carry: the same numbers, and nothing of the machine that wrote it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from saten_edge.checkpoints.models import LoadedModel
from saten_exporters import export
from saten_exporters.choice.ort_format import OPERATORS_FILE, ORT_FILE, USABILITY_FILE, add_ort_format
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import ExportError
from saten_runtime.run.parity import compare_outputs, read_cases

KINDS = [("saten", "int8"), ("unstructured", "fp32")]
# Two orders of float32 sums over a few products; the bound of an fp32 bundle of these models is about 1e-5.
ROUNDING = 1e-5

RunOrt = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="module")
def mobile(
    loaded_tiny: dict[str, LoadedModel], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Bundle]:
    folder = tmp_path_factory.mktemp("mobile")
    return {
        (model, precision): export(
            loaded_tiny[model], folder / f"{model}-{precision}", precision=precision, target="mobile"
        )
        for model, precision in KINDS
    }


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_files_are_in_the_manifest(kind: tuple[str, str], mobile: dict[tuple[str, str], Bundle]) -> None:
    bundle = mobile[kind]
    assert {ORT_FILE, OPERATORS_FILE, USABILITY_FILE} <= set(bundle.manifest.files)
    assert Bundle.open(bundle.path) == bundle
    assert {path.name for path in (bundle.path / ORT_FILE).parent.iterdir()} == {
        Path(ORT_FILE).name,
        Path(OPERATORS_FILE).name,
    }


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_numbers_are_those_of_the_graph(
    kind: tuple[str, str], mobile: dict[tuple[str, str], Bundle], run_ort: RunOrt
) -> None:
    bundle = mobile[kind]
    for arrays in read_cases(bundle).values():
        feeds, mask = {name: arrays[name] for name in bundle.manifest.inputs}, arrays["attention_mask"]
        (got,), (wanted,) = run_ort(bundle.path / ORT_FILE, feeds), run_ort(bundle.model, feeds)
        assert compare_outputs(got, wanted, mask)[0] <= ROUNDING
        assert compare_outputs(np.roll(got, 1, axis=-1), wanted, mask)[0] > 100 * ROUNDING


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_required_operators(kind: tuple[str, str], mobile: dict[tuple[str, str], Bundle]) -> None:
    text = (mobile[kind].path / OPERATORS_FILE).read_text()
    rows = [line.split(";", 2) for line in text.splitlines()]
    assert {domain for domain, _, _ in rows} == {"ai.onnx", "com.microsoft"}
    assert all(version.isdigit() for _, version, _ in rows)
    assert "MatMul{" in text
    assert ("DynamicQuantizeMatMul" in text) == (kind[1] == "int8")


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_usability(kind: tuple[str, str], mobile: dict[tuple[str, str], Bundle]) -> None:
    lines = (mobile[kind].path / USABILITY_FILE).read_text().splitlines()
    assert lines[0] == "Checking model.onnx for usability with ORT Mobile."
    assert "For optimal performance the model should be used with the CPU EP." in lines
    for checked in ("NNAPI", "CoreML NeuralNetwork", "CoreML MLProgram"):
        assert f"Model should perform well with {checked} as is: NO" in lines


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_nothing_names_a_folder_of_this_machine(kind: tuple[str, str], mobile: dict[tuple[str, str], Bundle]) -> None:
    bundle = mobile[kind]
    for file in (ORT_FILE, OPERATORS_FILE, USABILITY_FILE):
        content = (bundle.path / file).read_bytes()
        assert content
        for folder in (b"/tmp", str(Path.home()).encode() + b"/", str(bundle.path.parent).encode()):
            assert folder not in content


def test_other_targets_carry_none(bundle_of: Callable[[str, str], Bundle]) -> None:
    assert not (bundle_of("saten", "fp32").path / "variants").exists()


def copy(bundle: Bundle, to: Path) -> Path:
    """The graph and weights of a bundle, as they are when files are added."""
    to.mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(bundle.path / name, to / name)
    return to


def test_weights_that_do_not_fit(
    bundle_of: Callable[[str, str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(bundle_of("saten", "fp32"), tmp_path / "bundle")
    monkeypatch.setattr("saten_exporters.choice.ort_format._LARGEST_BYTES", 100_000)
    with pytest.raises(ExportError, match=r"bytes of weights, ORT format holds 2 GiB"):
        add_ort_format(folder)
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.onnx.data"}


def test_a_graph_that_ort_refuses_is_one_line(bundle_of: Callable[[str, str], Bundle], tmp_path: Path) -> None:
    folder = copy(bundle_of("saten", "fp32"), tmp_path / "bundle")
    model = ir.load(folder / "model.onnx")
    next(node for node in model.graph if node.op_type == "Softmax").op_type = "Softerthanthat"
    ir.save(model, folder / "model.onnx")
    with pytest.raises(ExportError, match=r"refuses the graph .*Softerthanthat") as caught:
        add_ort_format(folder)
    assert "\n" not in str(caught.value)
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.onnx.data"}
