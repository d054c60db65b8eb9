"""Pooling, and the layers behind it, against sentence-transformers' own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_runtime import Runner
from saten_runtime.bundle.manifest import Module, Postprocess
from saten_runtime.errors import BundleError
from saten_runtime.records.files import sha256_file
from saten_runtime.run.pooling import ACTIVATIONS, POOLS, Step, pool

WIDTH = 8
EPS = float(np.finfo(np.float32).eps)
# Padding on the right, on the left, none at all.
MASKS = {"right": [[1, 1, 1, 0], [1, 0, 0, 0]], "left": [[0, 1, 1, 1], [0, 0, 0, 1]], "none": [[1] * 4, [1] * 4]}
HIDDEN = np.random.default_rng(5).standard_normal((2, 4, WIDTH)).astype(np.float32)


def modules() -> Any:
    pytest.importorskip("sentence_transformers.base.modules")
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    return {"Pooling": Pooling, "Dense": Dense, "LayerNorm": LayerNorm}


def close(got: np.ndarray, wanted: np.ndarray) -> bool:
    """As close as sums of up to four times eight float32 numbers can be."""
    return got.shape == wanted.shape and bool(np.abs(got - wanted).max() <= 64 * EPS * np.abs(wanted).max())


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("name", [*POOLS, "cls+mean", "cls+max+mean+mean_sqrt_len_tokens+weightedmean+lasttoken"])
def test_poolings(name: str, side: str) -> None:
    torch = pytest.importorskip("torch")
    mask = np.array(MASKS[side], np.int64)
    module = modules()["Pooling"](WIDTH, tuple(name.split("+")))
    features = {"token_embeddings": torch.tensor(HIDDEN), "attention_mask": torch.tensor(mask)}
    wanted = module(features)["sentence_embedding"].numpy()
    assert close(pool(HIDDEN, mask, Postprocess(name)), wanted)
    assert not close(pool(HIDDEN[:, ::-1] * 2, mask, Postprocess(name)), wanted)


def test_every_pooling_of_sentence_transformers_is_known() -> None:
    assert set(POOLS) == set(modules()["Pooling"].POOLING_MODES)


@pytest.mark.parametrize("name", POOLS)
def test_a_text_of_nothing_but_padding_is_no_nan(name: str) -> None:
    assert np.isfinite(pool(HIDDEN, np.zeros((2, 4), np.int64), Postprocess(name, normalize=True))).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_layers(activation: str, bias: bool) -> None:
    torch = pytest.importorskip("torch")
    classes = {"identity": "Identity", "tanh": "Tanh", "relu": "ReLU", "sigmoid": "Sigmoid"}
    layer = modules()["Dense"](WIDTH, 3, bias=bias, activation_function=getattr(torch.nn, classes[activation])())
    wanted = layer({"sentence_embedding": torch.tensor(HIDDEN[:, 0])})["sentence_embedding"].detach().numpy()
    numbers = {name: value.detach().numpy() for name, value in layer.linear.named_parameters()}
    step = Step(Module("dense", "w", "b", activation), numbers["weight"], numbers.get("bias", np.zeros(0, np.float32)))
    assert close(pool(HIDDEN[:, 0], MASKS_OF_ONE, Postprocess("none", modules=[step.module]), [step]), wanted)


def test_layer_norms() -> None:
    torch = pytest.importorskip("torch")
    layer = modules()["LayerNorm"](WIDTH)
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    wanted = layer({"sentence_embedding": torch.tensor(HIDDEN[:, 0])})["sentence_embedding"].detach().numpy()
    step = Step(Module("layer_norm", "w", "b"), layer.norm.weight.detach().numpy(), layer.norm.bias.detach().numpy())
    how = Postprocess("none", modules=[step.module])
    assert close(pool(HIDDEN[:, 0], MASKS_OF_ONE, how, [step]), wanted)
    assert not close(pool(HIDDEN[:, 1], MASKS_OF_ONE, how, [step]), wanted)


MASKS_OF_ONE = np.ones((2, 1), np.int64)


def test_the_first_numbers_are_kept_after_normalization() -> None:
    whole = pool(HIDDEN[:, 0], MASKS_OF_ONE, Postprocess("none", True))
    np.testing.assert_array_equal(pool(HIDDEN[:, 0], MASKS_OF_ONE, Postprocess("none", True, [], 3)), whole[:, :3])


def test_a_layer_is_not_left_out() -> None:
    with pytest.raises(BundleError, match="1 layers follow the pooling, 0 are at hand"):
        pool(HIDDEN, np.ones((2, 4), np.int64), Postprocess("mean", modules=[Module("dense", "w")]))


# --- in a bundle -------------------------------------------------------------------------------------------------


@pytest.fixture
def layered(make_bundle: Callable[..., Path]) -> Callable[..., Path]:
    """layered(weight, bias, **fields of the module): a bundle whose mean goes through a dense layer."""

    def make(numbers: Any, bias: Any = None, **fields: Any) -> Path:
        folder = make_bundle("layered", normalize=False)
        (folder / "postprocess").mkdir()
        arrays = {"w.npy": numbers, **({} if bias is None else {"b.npy": bias})}
        values = json.loads((folder / "saten_edge.json").read_text())
        for name, array in arrays.items():
            path = folder / "postprocess" / name
            path.write_bytes(array) if isinstance(array, bytes) else np.save(path, array)
            entry = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            values["files"][f"postprocess/{name}"] = entry
        module = Module("dense", "postprocess/w.npy", "" if bias is None else "postprocess/b.npy")
        values["postprocess"]["modules"] = [{**module.__dict__, **fields}]
        (folder / "saten_edge.json").write_text(json.dumps(values))
        return folder

    return make


def test_a_bundle_brings_its_layers(layered: Callable[..., Path], tiny: Path, make_bundle: Callable[..., Path]) -> None:
    width = Runner.load(tiny).predict(["w1"]).shape[1]
    weight = np.random.default_rng(1).standard_normal((3, width)).astype(np.float32)
    bias = np.arange(3, dtype=np.float32)
    plain = Runner.load(make_bundle("bare", normalize=False)).predict(["w1 w2", "w3"])
    got = Runner.load(layered(weight, bias, activation="tanh")).predict(["w1 w2", "w3"])
    np.testing.assert_allclose(got, np.tanh(plain @ weight.T + bias), atol=64 * EPS)


def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("weight", "bias", "fields", "words"),
    [
        (np.ones((3, 8), np.float32), None, {"kind": "lstm"}, "of kind 'lstm'"),
        (np.ones((3, 8), np.float32), None, {"activation": "gelu"}, "of activation 'gelu'"),
        (np.ones((3, 8), np.float32), None, {"weight": "../other.npy"}, "lists no"),
        (np.ones((3, 8), np.float32), np.ones(4, np.float32), {}, r"a dense of \(3, 8\) with a bias of \(4,\)"),
        (np.ones(8, np.float32), None, {}, "a dense of"),
        (np.ones((3, 8), np.float64), None, {}, "is not what the file holds"),
        (np.full((3, 8), np.nan, np.float32), None, {}, "NaN or infinity"),
        (header((2**40, 2**20)) + bytes(64), None, {}, "is not what the file holds"),
        (header((4, -4)) + bytes(64), None, {}, "no array|is not what the file holds"),
        (header((16,), "|O") + bytes(64), None, {}, "is not what the file holds"),
        (b"PK\x03\x04", None, {}, "no array"),
    ],
    ids=["kind", "activation", "outside", "bias", "axes", "type", "nan", "huge", "negative", "pickle", "zip"],
)
def test_layers_that_are_none(
    layered: Callable[..., Path], weight: Any, bias: Any, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(BundleError, match=words):
        Runner.load(layered(weight, bias, **fields))


def test_a_layer_of_another_width(layered: Callable[..., Path]) -> None:
    runner = Runner.load(layered(np.ones((3, 5), np.float32)))
    with pytest.raises(BundleError, match="takes vectors of 5 numbers"):
        runner.predict(["w1"])
