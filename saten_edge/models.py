"""Reading models and tokenizers from a folder or the Hugging Face hub, and saving them whole."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saten_edge.checkpoint import SatenConfig  # importing it registers the "saten" method with transformers
from saten_edge.modules import saten_layers
from saten_exporters.parts import LayerParts
from saten_runtime.bundle import Postprocess
from saten_runtime.errors import CheckpointError, SatenError
from saten_runtime.files import new_folder, read_json, sha256_file

__all__ = ["LoadedModel", "load_model", "save_model"]

# What sentence-transformers keeps beside the weights; without it the pooling would be guessed.
SIDE_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json")


@dataclass
class LoadedModel:
    """A model in evaluation mode, its tokenizer, and what follows the model to make an embedding."""

    model: Any
    tokenizer: Any
    postprocess: Postprocess
    max_length: int
    source: dict[str, str]
    folder: Path

    def encode(self, texts: list[str], max_length: int | None = None) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask …, each (texts, longest) int64."""
        cut = min(self.max_length, max_length or self.max_length)
        return dict(self.tokenizer(texts, padding=True, truncation=True, max_length=cut, return_tensors="pt"))

    def layer_parts(self) -> dict[str, LayerParts]:
        """The numbers of every compressed layer, for the exporter; none for a dense model."""
        return {name: layer.parts() for name, layer in saten_layers(self.model).items()}

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(n, t, width), (n, t) → (n, width), as `saten_runtime` does it on the device."""
        if self.postprocess.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = mask[..., None].to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)
        return nn.functional.normalize(pooled, dim=-1) if self.postprocess.normalize else pooled


def load_model(name: str | Path) -> LoadedModel:
    """A dense or Saten model from a folder, or by name from the Hugging Face hub.

    Raises:
        CheckpointError: there is no such model, or its files cannot be read.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = _resolve(str(name))
    try:
        model, missing = _without_pooler(AutoModel, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except SatenError:
        raise
    except Exception as cause:  # transformers raises almost anything on a bad folder
        raise CheckpointError(f"{name}: cannot be loaded as a transformers model ({_one_line(cause)})") from cause
    if missing:  # transformers would go on with random numbers
        raise CheckpointError(f"{name}: {_some(missing)} missing from its safetensors files; download it again")
    source = _source(str(name), folder, model)
    return LoadedModel(model.eval(), tokenizer, _postprocess(folder), _max_length(folder, model), source, folder)


def save_model(
    loaded: LoadedModel, path: Path, *, extra: dict[str, Any] | None = None, overwrite: bool = False
) -> None:
    """Write model, tokenizer and side files into a new folder; it appears complete or not at all.

    extra: file name → JSON data to put beside them.
    """
    with new_folder(path, overwrite=overwrite) as folder:
        with _silent_transformers():
            loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        for name in SIDE_FILES:
            if (loaded.folder / name).is_file():
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(loaded.folder / name, folder / name)
        for name, data in (extra or {}).items():
            (folder / name).write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _resolve(name: str) -> Path:
    """The folder of a model: as given, or downloaded from the hub."""
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise CheckpointError(f"{name}: has no config.json; expected a transformers model folder")
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except HFValidationError:
        raise CheckpointError(f"{name}: no such folder, and no name of a model on the hub either") from None
    except Exception as cause:  # the hub client raises many kinds, offline ones too
        raise CheckpointError(
            f"{name}: no such folder, and it cannot be fetched from the hub ({_one_line(cause)})"
        ) from None


def _without_pooler(auto: Any, folder: Path) -> tuple[Any, list[str]]:
    """The model and the weights it lacks. BERT's pooler, which embeddings do not read, is left out where it can be."""
    options = {"dtype": torch.float32, "output_loading_info": True}
    with _silent_transformers():  # a pooler left unread is reported as unexpected keys
        try:
            model, loaded = auto.from_pretrained(folder, add_pooling_layer=False, **options)
        except TypeError:
            model, loaded = auto.from_pretrained(folder, **options)
    return model, sorted(loaded["missing_keys"])


@contextlib.contextmanager
def _silent_transformers() -> Iterator[None]:
    """No progress bars and no advice from transformers; `Talk` says what is going on."""
    from transformers import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _source(name: str, folder: Path, model: Any) -> dict[str, str]:
    """Where the weights come from; of a Saten checkpoint, which model was compressed."""
    weights = sorted(folder.glob("*.safetensors"))
    own = {
        "model": Path(name).name if Path(name).exists() else name,
        "architecture": type(model).__name__,
        "sha256": sha256_file(weights[0]) if weights else "",
    }
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, SatenConfig):
        return own
    return {**own, "model": config.source["model"], "checkpoint": own["model"]}


def _postprocess(folder: Path) -> Postprocess:
    """Pooling as sentence-transformers configured it; the mean, normalized, where nothing is said."""
    pooling = folder / "1_Pooling" / "config.json"
    if not pooling.is_file():
        return Postprocess("mean", True)
    modes = read_json(pooling, CheckpointError)
    chosen = {name for name in modes if name.startswith("pooling_mode_") and modes[name] is True}
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(chosen) != 1 or not chosen <= set(known):
        raise CheckpointError(f"{pooling}: pooling by {sorted(chosen)}; expected one of {sorted(known)}")
    modules = folder / "modules.json"
    return Postprocess(known[chosen.pop()], not modules.is_file() or "Normalize" in modules.read_text("utf-8"))


def _max_length(folder: Path, model: Any) -> int:
    """The length texts are cut to: sentence-transformers' choice, or the model's positions."""
    positions = int(getattr(model.config, "max_position_embeddings", 512))
    side = folder / "sentence_bert_config.json"
    if not side.is_file():
        return positions
    return min(positions, int(read_json(side, CheckpointError).get("max_seq_length") or positions))


def _some(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    return f"{names[0]} and {len(names) - 1} more weights are" if len(names) > 1 else f"{names[0]} is"


def _one_line(cause: BaseException) -> str:
    return " ".join(str(cause).split())[:200] or type(cause).__name__
