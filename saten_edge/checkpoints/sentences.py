"""What a sentence-transformers folder says beside its model: pooling, the layers behind it, prompts, lengths.

`modules.json` lists the modules in their order. A device does a Transformer, a Pooling and the layers of `LAYERS`, then
perhaps Normalize; any other is refused by its name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import Tensor

from saten_edge.checkpoints.guard import WEIGHTS_FILE, read_header
from saten_edge.checkpoints.pickles import convert_pickle
from saten_runtime.bundle.manifest import Module, Postprocess
from saten_runtime.errors import CheckpointError
from saten_runtime.records.files import parse_json, read_json
from saten_runtime.records.plain_text import one_line
from saten_runtime.run.pooling import ACTIVATIONS, POOLS, Step
from saten_runtime.vocabulary.files import (
    CONFIG_FILE,
    MODULES_FILE,
    PROMPTS_FILE,
    TRANSFORMER_FILE,
    TRANSFORMER_FILES,
)

__all__ = [
    "LAYERS",
    "PICKLED_WEIGHTS_FILE",
    "Sentences",
    "is_cross_encoder",
    "lower_case",
    "read_cross_encoder",
    "read_sentences",
    "read_transformer",
]

# Of a module, in its folder, as older versions of sentence-transformers stored them.
PICKLED_WEIGHTS_FILE = "pytorch_model.bin"
# Where the pooling is that no `modules.json` points to.
POOLING_FOLDER = "1_Pooling"

# What every cross-encoder says: the model has a head, and its logits are the scores.
SCORES = {
    "transformer_task": "sequence-classification",
    "module_output_name": "scores",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
}

# As they were spelled before 5.4, one switch each, in the order in which several vectors stand one after the other.
OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Sentences:
    """What follows a model that embeds, and what stands before it.

    steps: the layers of `postprocess.modules` with their numbers. prompt: put before every text; prompts: all of them,
    by name. max_length: tokens that texts are cut to, None where nothing is said. lower: whether texts are made lower
    case. settings: the files as they were read, by their path in the folder. weights: the layers' numbers as they are
    stored, by the path of their safetensors file in the folder and their names there.
    """

    postprocess: Postprocess
    steps: Sequence[Step] = ()
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None
    lower: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Found:
    """A module that the list names: its class, and its folder seen from the model's."""

    kind: str
    path: str


def read_sentences(folder: Path) -> Sentences:
    """Read the files of sentence-transformers; without them it is the mean, normalized.

    Raises:
        CheckpointError: a module, a pooling or an activation that a device does not do, or a damaged file.
    """
    found = _listed(folder)
    transformer = read_transformer(folder)
    prompts = transformer.settings.get(PROMPTS_FILE, {})
    layers = [module for module in found if module.kind in LAYERS]
    weights = {f"{module.path}/{WEIGHTS_FILE}": _tensors(folder / module.path) for module in layers}
    steps = [
        LAYERS[module.kind](folder, module.path, index, tensors)
        for index, (module, tensors) in enumerate(zip(layers, weights.values(), strict=True))
    ]
    pooling = [module.path for module in found if module.kind == "Pooling"] or [POOLING_FOLDER]
    paths = [f"{path}/{CONFIG_FILE}" for path in (*pooling, *(each.path for each in found if each.kind in AFTER))]
    configs = {path: _config(folder, path) for path in paths if (folder / path).is_file()}
    cut = _whole(folder, PROMPTS_FILE, prompts, "truncate_dim")
    listed = {MODULES_FILE: {module.path: module.kind for module in found}} if (folder / MODULES_FILE).is_file() else {}
    return replace(
        transformer,
        postprocess=Postprocess(
            _pooling(folder, paths[0]) if paths[0] in configs else "mean",
            not (folder / MODULES_FILE).is_file() or "Normalize" in [module.kind for module in found],
            [step.module for step in steps],
            cut,
            str(prompts.get("similarity_fn_name") or "cosine"),
        ),
        steps=steps,
        settings={**listed, **transformer.settings, **configs},
        weights=weights,
    )


def read_transformer(folder: Path) -> Sentences:
    """What stands before the model: the default prompt, the length of texts, and whether they are made lower case.

    Raises:
        CheckpointError: a damaged file.
    """
    name = next((each for each in TRANSFORMER_FILES if _config(folder, each)), TRANSFORMER_FILE)
    files = {each: _config(folder, each) for each in (PROMPTS_FILE, name) if (folder / each).is_file()}
    model, prompts = files.get(name, {}), files.get(PROMPTS_FILE, {})
    return Sentences(
        Postprocess(),
        prompt=_default_prompt(folder, prompts),
        prompts={str(each): str(text) for each, text in (prompts.get("prompts") or {}).items() if text},
        max_length=_whole(folder, name, model, "max_seq_length"),
        lower=bool(model.get("do_lower_case")),
        settings=files,
    )


def is_cross_encoder(folder: Path) -> bool:
    """Whether sentence-transformers wrote the folder as a classifier of pairs of texts."""
    return bool(_config(folder, PROMPTS_FILE).get("model_type") == "CrossEncoder")


def read_cross_encoder(folder: Path) -> Sentences:
    """What stands before a cross-encoder; what every one of them says is none of its settings.

    Raises:
        CheckpointError: a damaged file.
    """
    found = read_transformer(folder)
    own = {
        name: {key: value for key, value in said.items() if SCORES.get(key) != value}
        for name, said in found.settings.items()
    }
    return replace(found, settings=own)


def lower_case(tokenizer: Any) -> None:
    """Make a tokenizer read all texts in lower case, as `do_lower_case` of sentence-transformers does."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    present = backend.normalizer
    several = isinstance(present, normalizers.Sequence)
    parts = [] if present is None else list(present) if several else [present]
    if not any(isinstance(part, normalizers.Lowercase) for part in parts):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *parts])


def _default_prompt(folder: Path, config: Mapping[str, Any]) -> str:
    name, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise CheckpointError(f"{folder / PROMPTS_FILE}: prompts are {prompts!r:.60}; expected a text for each name")
    if name is None:
        return ""
    if name not in prompts:
        raise CheckpointError(
            f"{folder / PROMPTS_FILE}: default_prompt_name is {name!r}, prompts are {sorted(prompts)}"
        )
    return str(prompts[name] or "")


def _listed(folder: Path) -> list[_Found]:
    """The modules of a folder in their order, none where it lists none.

    Raises:
        CheckpointError: one that a device does not do, or another order.
    """
    path = folder / MODULES_FILE
    if not path.is_file():
        return []
    try:
        found = [_module(path, entry) for entry in parse_json(path.read_bytes())]
    except (ValueError, TypeError, KeyError, RecursionError) as cause:
        raise CheckpointError(f"{path}: no list of modules ({one_line(cause)}); download it again") from None
    kinds = [module.kind for module in found if module.kind != "Dropout"]  # it does nothing but in training
    layers = kinds[2:-1] if kinds[-1:] == ["Normalize"] else kinds[2:]
    if kinds and (kinds[:2] != ["Transformer", "Pooling"] or not set(layers) <= set(LAYERS) or found[0].path):
        known = ("Transformer", "Pooling", "Normalize", *LAYERS)
        odd = next((kind for kind in kinds if kind not in known), "this order")
        raise CheckpointError(
            f"{path}: {odd} cannot be expressed in {' → '.join(kinds)}; expected Transformer (in the folder itself) → "
            f"Pooling → any of {', '.join(LAYERS)} → Normalize or not"
        )
    return found


def _module(path: Path, entry: Mapping[str, Any]) -> _Found:
    package, _, kind = str(entry["type"]).rpartition(".")
    place = PurePosixPath(str(entry["path"]))
    if package.partition(".")[0] != "sentence_transformers":
        raise CheckpointError(f"{path}: {entry['type']!r:.80} is code of its own, which is not run")
    if place.is_absolute() or len(place.parts) > 1 or ".." in place.parts:
        raise CheckpointError(f"{path}: path {entry['path']!r:.80} is no folder in this one")
    return _Found(kind, place.name)


def _config(folder: Path, name: str) -> dict[str, Any]:
    """One of the folder's files; a module without settings has none."""
    return read_json(folder / name, CheckpointError) if (folder / name).is_file() else {}


def _whole(folder: Path, name: str, config: Mapping[str, Any], key: str) -> int | None:
    """A whole number above 0 that a file may give."""
    value = config.get(key)
    if value is not None and (type(value) is not int or value < 1):
        raise CheckpointError(f"{folder / name}: {key} is {value!r:.60}; expected a whole number above 0")
    return value


def _pooling(folder: Path, name: str) -> str:
    """The names of the poolings in either spelling, joined by "+"."""
    config = _config(folder, name)
    said = config.get("pooling_mode")
    if said is None:
        names = [new for old, new in OLD_POOLINGS.items() if config.get(old)] or ["mean"]
    else:
        names = [str(name) for name in ([said] if isinstance(said, str) else said)]
    if not names or not set(names) <= set(POOLS):
        raise CheckpointError(f"{folder / name}: pooling by {names}; there are {', '.join(POOLS)}")
    return "+".join(names)


def _dense(folder: Path, path: str, index: int, tensors: Mapping[str, Tensor]) -> Step:
    said = _config(folder, f"{path}/{CONFIG_FILE}").get("activation_function", "torch.nn.Tanh")
    activation = str(said).rpartition(".")[2].lower()
    if activation not in ACTIVATIONS or not str(said).startswith("torch."):
        raise CheckpointError(
            f"{folder / path / CONFIG_FILE}: activation_function {said!r:.80} cannot be expressed; "
            f"there are {', '.join(ACTIVATIONS)}"
        )
    return _step(folder / path, Module("dense", "", activation=activation), "linear", index, tensors)


def _layer_norm(folder: Path, path: str, index: int, tensors: Mapping[str, Tensor]) -> Step:
    return _step(folder / path, Module("layer_norm", ""), "norm", index, tensors)


Layer = Callable[[Path, str, int, Mapping[str, Tensor]], Step]
LAYERS: Mapping[str, Layer] = {"Dense": _dense, "LayerNorm": _layer_norm}
"""What may stand between pooling and Normalize, by the names of sentence-transformers."""
AFTER = (*LAYERS, "Normalize", "Dropout")


def _step(path: Path, module: Module, prefix: str, index: int, tensors: Mapping[str, Tensor]) -> Step:
    """A layer with the numbers of its own weight file; a bundle keeps them by its index."""
    weight, bias = f"{prefix}.weight", f"{prefix}.bias"
    if not {weight} <= tensors.keys() <= {weight, bias}:
        raise CheckpointError(f"{path}: holds {', '.join(sorted(tensors))}; expected {weight}, and {bias} or not")
    numbers = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    place = f"postprocess/{index}"
    named = replace(module, weight=f"{place}.weight.npy", bias=f"{place}.bias.npy" if bias in tensors else "")
    return Step(named, numbers[weight], numbers.get(bias, np.zeros(0, np.float32)))


def _tensors(path: Path) -> dict[str, Tensor]:
    """The numbers of a module, out of safetensors or of what torch pickled."""
    from safetensors.torch import load_file

    file, pickled = path / WEIGHTS_FILE, path / PICKLED_WEIGHTS_FILE
    if file.is_file():
        read_header(file)
        return dict(load_file(file))
    if not pickled.is_file():
        raise CheckpointError(f"{file}: is missing, and so is {PICKLED_WEIGHTS_FILE}; download the folder again")
    with tempfile.TemporaryDirectory() as aside:
        convert_pickle(pickled, converted := Path(aside) / WEIGHTS_FILE)
        return dict(load_file(converted))
