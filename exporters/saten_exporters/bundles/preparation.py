"""What stands before and after the graph, as the manifest says it: tokenizer, pictures, labels, generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from saten_exporters.exportable import Exportable
from saten_exporters.sources.chat import chat_of
from saten_exporters.tracing.signatures import kind_of, task_of
from saten_runtime.bundle.manifest import CacheEntry, Choice, Generation, Image, Tokenizer
from saten_runtime.errors import ExportError
from saten_runtime.records.reader import Reader
from saten_runtime.vocabulary.files import GENERATION_CONFIG_FILE, PREPROCESSOR_CONFIG_FILE, TOKENIZER_FILE

__all__ = [
    "Preparation",
    "generation_of",
    "image_of",
    "labels_of",
    "prepare",
    "save_settings",
    "save_steps",
    "save_tokenizer",
]

# Steps of an image processor that a device does, too; any other that is switched on is refused.
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
HARMLESS = ("do_convert_rgb",)  # pictures arrive with the channels that the model takes
CHANNELS = (1, 3)
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers


@dataclass(frozen=True)
class Preparation:
    """What the manifest says of a model's files, whatever its graph; each is None or empty where the task has none."""

    tokenizer: Tokenizer | None
    image: Image | None
    labels: list[str]
    choice: Choice | None


def prepare(source: Exportable, folder: Path) -> Preparation:
    """Read it off, so that what no bundle expresses is refused before the minutes that tracing takes.

    folder: gets the tokenizer's files.

    Raises:
        ExportError: as the functions below.
    """
    kind = kind_of(source)
    return Preparation(
        tokenizer=None if kind.pictures else save_tokenizer(source, folder),
        image=image_of(source) if kind.pictures else None,
        labels=labels_of(source) if task_of(source).labels else [],
        choice=_choice(source) if kind.cached else None,
    )


def save_tokenizer(source: Exportable, folder: Path) -> Tokenizer:
    """Write tokenizer.json for `tokenizers`, and beside it the settings that transformers and transformers.js read.

    Raises:
        ExportError: the tokenizer has no such form.
    """
    backend = getattr(source.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(
            f"{source.source['model']}: {type(source.tokenizer).__name__} has no `tokenizers` form; "
            "use a fast tokenizer"
        )
    # Where the last call cut texts, and what it padded them to, is no setting of the model.
    backend.no_truncation()
    backend.no_padding()
    source.tokenizer.save_pretrained(folder)
    return Tokenizer(
        TOKENIZER_FILE,
        source.pad_id,
        source.max_length,
        split_special_tokens=bool(source.tokenizer.split_special_tokens),
        truncation_side=str(source.tokenizer.truncation_side),
        prompt=source.prompt,
        prompts=dict(source.prompts),
    )


def save_steps(source: Exportable, folder: Path) -> None:
    """Write the numbers of the layers that follow pooling."""
    for step in source.steps:
        (folder / step.module.weight).parent.mkdir(exist_ok=True)
        np.save(folder / step.module.weight, np.ascontiguousarray(step.weight))
        if step.module.bias:
            np.save(folder / step.module.bias, step.bias)


def save_settings(source: Exportable, folder: Path) -> None:
    """Write what transformers and transformers.js read beside a graph of pictures, and of one that generates."""
    if source.processor is not None:
        source.processor.to_json_file(folder / PREPROCESSOR_CONFIG_FILE)
    if kind_of(source).cached:
        source.model.generation_config.to_json_file(folder / GENERATION_CONFIG_FILE)


def image_of(source: Exportable) -> Image:
    """How the image processor prepares a picture.

    Raises:
        ExportError: it does something that a device does not, or makes another size than the model takes.
    """
    settings = source.processor.to_dict()
    odd = sorted(
        name for name, on in settings.items() if name.startswith("do_") and on and name not in (*STEPS, *HARMLESS)
    )
    if odd:
        raise _inexpressible(source, odd[0], settings[odd[0]], f"only {', '.join(STEPS)}")
    resize, crop, rescale, normalize = (bool(settings.get(step)) for step in STEPS)
    channels = _channels(source, settings)
    image = Image(
        resize=_sizes(source, "size", settings.get("size")) if resize else [],
        crop=_sizes(source, "crop_size", settings.get("crop_size")) if crop else [],
        resample=_resampling(source, settings.get("resample")) if resize else "nearest",
        rescale=float(settings["rescale_factor"]) if rescale else 1.0,
        mean=_by_channel(source, settings, "image_mean", channels) if normalize else [0.0] * channels,
        std=_by_channel(source, settings, "image_std", channels) if normalize else [1.0] * channels,
    )
    wanted = source.model.config.image_size
    made, taken = image.crop or image.resize, list(wanted) if isinstance(wanted, (list, tuple)) else [wanted] * 2
    if made != taken:
        raise ExportError(f"{source.source['model']}: its image processor makes {made}, its model takes {taken}")
    return image


def labels_of(source: Exportable) -> list[str]:
    """Names of the classes by index.

    Raises:
        ExportError: the config does not name each class once.
    """
    names: Mapping[Any, str] = source.model.config.id2label
    numbered = {int(index): str(name) for index, name in names.items()}
    if sorted(numbered) != list(range(len(names))):
        raise ExportError(f"{source.source['model']}: id2label names the classes {sorted(numbered)[:9]}, not 0, 1, 2 …")
    return [numbered[index] for index in range(len(numbered))]


def generation_of(source: Exportable, graph: ir.Graph, choice: Choice) -> Generation:
    """The graph's cache, the ids that end a text, how the next token is chosen, and how messages become one text.

    Raises:
        ExportError: cache inputs and outputs do not pair up.
    """
    taken, given = (
        [value for value in side if "past_key_values" in (value.name or "")] for side in (graph.inputs, graph.outputs)
    )
    paired = [(str(a.name), str(b.name)) for a, b in zip(taken, given, strict=False)]
    if len(taken) != len(given) or any(a.partition(".")[2] != b.partition(".")[2] for a, b in paired):
        raise ExportError(f"{source.source['model']}: {len(taken)} tensors of the cache go in, {len(given)} come out")
    entries = []
    for (a, b), value in zip(paired, taken, strict=True):
        _, heads, _, width = map(str, value.shape or ())
        entries.append(CacheEntry(a, b, heads=int(heads), width=int(width)))
    stops = source.model.generation_config.eos_token_id
    stops = source.model.config.eos_token_id if stops is None else stops
    stop_ids = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
    return Generation(entries, stop_ids, choice, chat_of(source.tokenizer)[0])


def _choice(source: Exportable) -> Choice:
    """What the model's generation config says of the next token; where it is silent, what `generate` does then."""
    from transformers import GenerationConfig

    config, usual = source.model.generation_config, GenerationConfig._get_default_generation_params()
    said = {entry.name: getattr(config, entry.name, None) for entry in fields(Choice)}
    chosen = {name: usual.get(name) if value is None else value for name, value in said.items()}
    known = {name: value for name, value in chosen.items() if value is not None}
    return Reader(ExportError).read(Choice, known, f"{source.source['model']}: generation_config.json")


def _sizes(source: Exportable, name: str, size: Any) -> list[int]:
    """[height, width], or [shorter side]."""
    given = {key: value for key, value in dict(size or {}).items() if value is not None}
    if set(given) == {"height", "width"}:
        return [int(given["height"]), int(given["width"])]
    if set(given) == {"shortest_edge"} and name == "size":
        return [int(given["shortest_edge"])]
    raise _inexpressible(source, name, given, "height and width, or the shortest edge of a resize")


def _channels(source: Exportable, settings: Mapping[str, Any]) -> int:
    """How many the model takes; the processor must not make another number of them."""
    channels = int(source.model.config.num_channels)
    if channels not in CHANNELS:
        raise ExportError(f"{source.source['model']}: num_channels = {channels} cannot be expressed; expected 1 or 3")
    if channels == 1 and settings.get("do_convert_rgb"):
        raise _inexpressible(source, "do_convert_rgb", True, "False, as the model takes one channel")
    return channels


def _by_channel(source: Exportable, settings: Mapping[str, Any], name: str, channels: int) -> list[float]:
    given = settings[name]
    values = list(given) if isinstance(given, (list, tuple)) else [given] * channels
    if len(values) != channels:
        raise _inexpressible(source, name, given, f"as many numbers as the model takes channels, {channels}")
    return [float(value) for value in values]


def _resampling(source: Exportable, number: Any) -> str:
    if number is None or int(number) not in RESAMPLING:
        raise _inexpressible(source, "resample", number, ", ".join(f"{k} ({v})" for k, v in RESAMPLING.items()))
    return RESAMPLING[int(number)]


def _inexpressible(source: Exportable, option: str, value: object, expected: str) -> ExportError:
    return ExportError(
        f"{source.source['model']}: an image processor with {option} = {value!r} cannot be expressed; "
        f"expected {expected}"
    )
