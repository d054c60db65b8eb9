"""Model folders that are not as transformers writes them today: read where the numbers are there, else refused."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from saten_edge.checkpoints.adapters import ADAPTER_FILE
from saten_edge.checkpoints.gguf_header import is_gguf
from saten_edge.checkpoints.gguf_models import unpacked_gguf
from saten_edge.checkpoints.guard import INDEX_FILE, WEIGHTS_FILE, read_header
from saten_edge.checkpoints.pickles import convert_pickle
from saten_edge.checkpoints.sentences import PICKLED_WEIGHTS_FILE
from saten_runtime.errors import CheckpointError, SatenError
from saten_runtime.records.files import read_json, write_json
from saten_runtime.vocabulary.files import PREPROCESSOR_CONFIG_FILE, TOKENIZER_FILE

__all__ = ["PICKLE_FILES", "refuse_adapter", "refuse_bare", "refuse_rounded", "with_safetensors"]

PICKLE_FILES = "pytorch_model*.bin"
# What a tokenizer, or a processor of images, is read from. Without it transformers makes up a tokenizer that knows no
# word, or names a place on the hub.
PREPARING = {
    "vision": ("an image processor", (PREPROCESSOR_CONFIG_FILE,), "AutoImageProcessor"),
    "text": ("a tokenizer", (TOKENIZER_FILE, "vocab.txt", "vocab.json", "*.model"), "AutoTokenizer"),
}
# What a copy of a folder leaves out: weights, which other programs wrote.
WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.msgpack", "*.h5", "*.onnx", "*.ot")


@contextlib.contextmanager
def with_safetensors(folder: Path) -> Iterator[Path]:
    """A folder with the same model whose weights are safetensors: itself, a copy of what torch pickled, or a GGUF's.

    Raises:
        CheckpointError: the pickle is no state dict, see `convert_pickle`; the GGUF is damaged, see `unpacked_gguf`.
        ExportError, UsageError: as `unpacked_gguf`.
    """
    if is_gguf(folder):
        with unpacked_gguf(folder) as unpacked:
            yield unpacked
        return
    pickled = sorted(folder.glob(PICKLE_FILES))
    if not pickled or any(folder.glob("*.safetensors")):
        _refuse_weightless(folder)
        yield folder
        return
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(aside) / folder.resolve().name
        shutil.copytree(folder, copy, ignore=partial(_left_out, folder))
        names = {
            file.name: f"model-{number:05}-of-{len(pickled):05}.safetensors" for number, file in enumerate(pickled, 1)
        }
        for file in pickled:
            convert_pickle(file, copy / names[file.name])
        _write_index(copy, list(names.values()))
        try:
            yield copy
        except SatenError as cause:  # names what was given, not its copy
            raise type(cause)(str(cause).replace(str(copy), str(folder))) from cause


def _refuse_weightless(folder: Path) -> None:
    if not (folder / WEIGHTS_FILE).exists() and not (folder / INDEX_FILE).exists():
        found = ", ".join(sorted(path.name for pattern in WEIGHTS for path in folder.glob(pattern))) or "none"
        raise CheckpointError(
            f"{folder}: holds no weights that are read: {WEIGHTS_FILE}, shards with {INDEX_FILE}, or "
            f"{PICKLE_FILES}; found {found}"
        )


def _left_out(folder: Path, at: str, names: list[str]) -> set[str]:
    """Of the names in a folder at or below `folder`: weights, but those of a module of sentence-transformers."""
    found = shutil.ignore_patterns(*WEIGHTS)(at, names)
    return found if Path(at) == folder else found - {PICKLED_WEIGHTS_FILE}


def _write_index(folder: Path, files: Sequence[str]) -> None:
    """What transformers reads a model of several files by; of a single file it reads the file."""
    if len(files) == 1:
        (folder / files[0]).rename(folder / WEIGHTS_FILE)
        return
    places = {name: file for file in files for name in read_header(folder / file)}
    write_json(folder / INDEX_FILE, {"metadata": {}, "weight_map": places})


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder of peft's, which holds no model.

    Raises:
        CheckpointError: naming the model that the adapter belongs to.
    """
    if (folder / ADAPTER_FILE).is_file():
        base = read_json(folder / ADAPTER_FILE, CheckpointError).get("base_model_name_or_path")
        raise CheckpointError(
            f"{folder}: is an adapter of {base}, no model; merge the two first: "
            f"saten-edge import {folder} --base {base} -o MERGED"
        )


def refuse_bare(folder: Path, kind: str) -> None:
    """Refuse a folder that has weights alone. kind: of its family, see `Architecture`.

    Raises:
        CheckpointError: naming what is missing, and what to do.
    """
    what, patterns, kept_by = PREPARING.get(kind, PREPARING["text"])
    if not any(any(folder.glob(pattern)) for pattern in patterns):
        raise CheckpointError(
            f"{folder}: holds no file of {what} ({', '.join(patterns)}); put that of the model it was trained from "
            f"there, such as by {kept_by}.from_pretrained(NAME).save_pretrained({str(folder)!r})"
        )


def refuse_rounded(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights that another program has rounded already.

    Raises:
        CheckpointError: naming the program.
    """
    how = config.get("quantization_config")
    if not isinstance(how, Mapping) or how.get("quant_method") == "saten":
        return
    method = how.get("quant_method") or ("bitsandbytes" if any("load_in" in str(key) for key in how) else "unknown")
    raise CheckpointError(
        f"{folder}: its weights are quantized already (quant_method {method}); take the model that was quantized, "
        "compress it, and export that with --precision int8 or int4"
    )
