"""What the manifest says of pictures, labels and generation, and what it cannot say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import transformers

from saten_exporters.bundles.preparation import generation_of, image_of, labels_of, save_settings
from saten_exporters.tracing.signatures import kind_of, task_of
from saten_runtime.bundle.manifest import Choice
from saten_runtime.errors import ExportError
from saten_runtime.run.image import pixel_values
from saten_runtime.vocabulary.tasks import HUB_TASKS

SIDE = 32
PROCESSORS = {
    "vit": lambda: transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}),
    "no normalization": lambda: transformers.ViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_normalize=False, resample=3
    ),
    "no rescaling": lambda: transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_rescale=False),
    "nearest": lambda: transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, resample=0),
    "shorter side and crop": lambda: transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 36}, crop_size={"height": SIDE, "width": SIDE}
    ),
}


def source(**fields: Any) -> Any:
    """A loaded model with these entries of its config, and the rest of it given by name."""
    entries = {"image_size": SIDE, "num_channels": 3, "id2label": {0: "no", 1: "yes"}, "problem_type": None}
    config = SimpleNamespace(**entries, num_labels=2, eos_token_id=3)
    known = {
        "task": "text-classification",
        "processor": None,
        "tokenizer": None,
        "source": {"model": "m", "architecture": "A"},
    }
    given = {name: fields.pop(name) for name in (*known, "generation_config") if name in fields}
    for name, value in fields.items():
        setattr(config, name, value)
    stops = given.pop("generation_config", SimpleNamespace(eos_token_id=None))
    return SimpleNamespace(**{**known, **given}, model=SimpleNamespace(config=config, generation_config=stops))


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_device_prepares_pictures_as_transformers_does(name: str, images: list[Any]) -> None:
    processor = PROCESSORS[name]()
    image = image_of(source(processor=processor))
    wanted = np.asarray(processor(images=images, return_tensors="np")["pixel_values"])
    got = pixel_values([np.asarray(each) for each in images], image)
    assert got.shape == wanted.shape == (len(images), 3, SIDE, SIDE)
    # Resized pixels are whole numbers; where Pillow's integers and the device's floats tie, they are one apart.
    level = image.rescale / np.array(image.std)[:, None, None]
    levels = np.abs(got - wanted) / level
    assert levels.max() < 1.01
    assert (levels > 0.01).mean() < 0.1
    assert np.abs(got[:, ::-1] - wanted).max() > 10 * level.max()  # channels in another order would be seen


def test_transformers_reads_the_settings_beside_a_graph(tmp_path: Path) -> None:
    processor = PROCESSORS["shorter side and crop"]()
    save_settings(source(task="image-classification", processor=processor), tmp_path)
    assert transformers.CLIPImageProcessorPil.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessor_config.json"]
    generation = transformers.GenerationConfig(eos_token_id=[3, 4], max_new_tokens=7)
    save_settings(source(task="text-generation", generation_config=generation), tmp_path)
    found = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (found.eos_token_id, found.max_new_tokens) == ([3, 4], 7)


def test_a_graph_of_texts_needs_no_other_settings(tmp_path: Path) -> None:
    save_settings(source(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"do_pad": True}, r"do_pad = True cannot be expressed"),
        ({"resample": 9}, r"resample = .*9.* cannot be expressed; expected 0 \(nearest\)"),
        ({"size": {"longest_edge": 40}}, r"size = \{'longest_edge': 40\} cannot be expressed"),
        ({"size": {"height": 16, "width": 16}}, r"makes \[16, 16\], its model takes \[32, 32\]"),
        ({"do_resize": False}, r"makes \[\], its model takes"),
        ({"image_mean": [0.5]}, r"image_mean = \[0\.5\] cannot be expressed; expected as many .* channels, 3"),
        ({"image_std": (0.5, 0.5, 0.5, 1.0)}, r"image_std = \(0\.5, .* cannot be expressed; expected as many"),
    ],
)
def test_what_a_device_does_not_do(change: dict[str, Any], words: str) -> None:
    settings = {**PROCESSORS["vit"]().to_dict(), **change}
    with pytest.raises(ExportError, match=words):
        image_of(source(processor=SimpleNamespace(to_dict=lambda: settings)))


@pytest.mark.parametrize("mean", [[0.25], 0.25])
def test_grey_pictures_as_transformers_prepares_them(mean: Any, images: list[Any]) -> None:
    grey = [image.convert("L") for image in images]
    size = {"height": SIDE, "width": SIDE}
    processor = transformers.ViTImageProcessorPil(size=size, image_mean=[0.25], image_std=[0.5])
    settings = {**processor.to_dict(), "image_mean": mean}
    image = image_of(source(num_channels=1, processor=SimpleNamespace(to_dict=lambda: settings)))
    wanted = np.asarray(
        processor(images=[np.asarray(each)[:, :, None] for each in grey], return_tensors="np").pixel_values
    )
    got = pixel_values([np.asarray(each) for each in grey], image)
    assert got.shape == wanted.shape == (len(images), 1, SIDE, SIDE)
    assert np.abs(got - wanted).max() < 1.01 * image.rescale / 0.5
    assert np.abs(got[::-1] - wanted).max() > 10 * image.rescale / 0.5


@pytest.mark.parametrize(
    ("channels", "change", "words"),
    [
        (1, {}, r"image_mean = .*, 0\.5, 0\.5.* cannot be expressed; expected as many numbers .* channels, 1"),
        (1, {"image_mean": 0.5, "image_std": 1.0, "do_convert_rgb": True}, "do_convert_rgb = True cannot be expressed"),
        (2, {}, "num_channels = 2 cannot be expressed; expected 1 or 3"),
        (4, {}, "num_channels = 4 cannot be expressed; expected 1 or 3"),
    ],
)
def test_channels_that_no_picture_has(channels: int, change: dict[str, Any], words: str) -> None:
    settings = {**PROCESSORS["vit"]().to_dict(), **change}
    with pytest.raises(ExportError, match=words):
        image_of(source(num_channels=channels, processor=SimpleNamespace(to_dict=lambda: settings)))


def test_labels_by_index() -> None:
    assert labels_of(source(id2label={1: "b", 0: "a", "2": "c"})) == ["a", "b", "c"]


@pytest.mark.parametrize("names", [{0: "a", 2: "c"}, {1: "a"}, {0: "a", "0": "b"}])
def test_labels_that_leave_a_class_unnamed(names: dict[Any, str]) -> None:
    with pytest.raises(ExportError, match="id2label names the classes"):
        labels_of(source(id2label=names))


def cache(inputs: list[str], outputs: list[str]) -> ir.Graph:
    def values(names: list[str]) -> list[ir.Value]:
        return [ir.Value(name=name, shape=ir.Shape(["batch", 2, "past", 16])) for name in names]

    return ir.Graph(values(["input_ids", *inputs]), values(["logits", *outputs]), nodes=[], name="g")


@pytest.mark.parametrize(
    ("said", "config", "stops"), [(None, 3, [3]), (None, None, []), (7, 3, [7]), ([7, 8], 3, [7, 8])]
)
def test_what_ends_a_text(said: Any, config: Any, stops: list[int]) -> None:
    graph = cache(["input.past_key_values.0.keys"], ["output.past_key_values.0.keys"])
    given = source(eos_token_id=config, generation_config=SimpleNamespace(eos_token_id=said))
    generation = generation_of(given, graph, Choice())
    assert generation.stop_ids == stops
    (entry,) = generation.cache
    assert (entry.input, entry.output) == ("input.past_key_values.0.keys", "output.past_key_values.0.keys")
    assert (entry.heads, entry.width, entry.dtype) == (2, 16, "float32")


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["input.past_key_values.0.keys"], []),
        (["input.past_key_values.0.keys"], ["output.past_key_values.0.values"]),
        (
            ["input.past_key_values.0.keys", "input.past_key_values.0.values"],
            ["output.past_key_values.0.values", "output.past_key_values.0.keys"],
        ),
    ],
)
def test_a_cache_that_does_not_pair_up(inputs: list[str], outputs: list[str]) -> None:
    with pytest.raises(ExportError, match="tensors of the cache go in"):
        generation_of(source(), cache(inputs, outputs), Choice())


def test_the_row_of_a_task() -> None:
    assert task_of(source()) is HUB_TASKS["text-classification"]


def test_a_task_that_there_is_not() -> None:
    with pytest.raises(ExportError, match="no task 'translation'; there are: feature-extraction"):
        task_of(source(task="translation"))


TEXTS, WORDS, PICTURES = "text-classification", "token-classification", "image-classification"


@pytest.mark.parametrize(
    ("task", "labels", "problem", "words"),
    [
        *((task, 2, "multi_label_classification", "with 2 labels cannot") for task in (TEXTS, WORDS, PICTURES)),
        (TEXTS, 1, "multi_label_classification", "with 1 label cannot"),
        *((task, 3, "regression", "problem_type = 'regression' with 3 labels") for task in (TEXTS, WORDS, PICTURES)),
        *((task, 1, problem, "1") for task in (WORDS, PICTURES) for problem in (None, "regression")),
        (TEXTS, 0, None, "num_labels = 0"),
    ],
)
def test_several_classes_at_once(task: str, labels: int, problem: str | None, words: str) -> None:
    with pytest.raises(ExportError, match=f"{words}.*a bundle says one class per item, or of a text one number"):
        task_of(source(task=task, num_labels=labels, problem_type=problem))


@pytest.mark.parametrize(
    ("task", "labels", "problem"),
    [
        (TEXTS, 1, None),
        (TEXTS, 1, "regression"),
        *((task, 2, problem) for task in (TEXTS, WORDS, PICTURES) for problem in (None, "single_label_classification")),
    ],
)
def test_one_class_or_one_number(task: str, labels: int, problem: str | None) -> None:
    assert task_of(source(task=task, num_labels=labels, problem_type=problem)) is HUB_TASKS[task]


def test_kinds_of_inputs() -> None:
    pictures = source(task="feature-extraction", processor=object())
    assert kind_of(pictures).pictures
    assert not kind_of(source(task="feature-extraction")).pictures
    assert kind_of(source(task="text-generation")).cached
    assert [name for name, row in HUB_TASKS.items() if row.pooled] == ["feature-extraction"]


def test_half_precision_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    import torch

    from saten_edge.checkpoints.models import load_model
    from saten_exporters import export

    with pytest.raises(ExportError, match=r"has weights in torch.float16; load it with dtype=torch.float32"):
        export(load_model(tiny_bert, dtype=torch.float16), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
