"""What a model folder from elsewhere may hold, looked at before transformers opens a file of it.

transformers follows links, waits at pipes, and takes the sizes in config.json as they are; safetensors keeps the last
of two tensors of one name and gives names to whoever asks. So everything is looked at here first. `read_headers`
refuses

- links that lead out of the folder (but to the hub's own store), pipes and devices,
- a safetensors file whose header is above 16 MiB, names a tensor twice or by what is no name, holds more than 100 000
  of them, or does not describe exactly the bytes that are there,
- an index that names other files or other tensors than there are,
- a config.json with more layers than there are tensors, or a number no size of a model has.

Source of the format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saten_runtime.errors import CheckpointError
from saten_runtime.records.files import open_regular, parse_object, read_regular_json
from saten_runtime.vocabulary.files import CONFIG_FILE

__all__ = [
    "INDEX_FILE",
    "TENSOR_NAME",
    "WEIGHTS_FILE",
    "Entry",
    "check_sizes",
    "files_read",
    "read_header",
    "read_headers",
    "refuse_bomb",
    "refuse_odd_files",
]

TENSOR_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# What `resolve_model` fetches from the hub, and so all that is read of a folder but what torch pickled.
READ_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*/*.json", "*/*.safetensors")

_MOST_HEADER_BYTES = 16 << 20
_MOST_TENSORS = 100_000
_MOST_AXES = 16
_LENGTH = struct.Struct("<Q")
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers")
# Above any vocabulary, length or width there is: Llama 4 reads ten million tokens.
_MOST_SIZE = 1 << 24
_NO_SIZES = ("rope_theta",)  # a period, and written as a whole number by some
# Buffers that are computed, tables that are tied, and a new head are in the model and not in its files.
_MODEL_VALUES_PER_STORED, _MORE_MODEL_VALUES = 2, 1 << 22
_ADVICE = "the file is damaged, download it again"


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file: its type as the format names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Values in it."""
        return math.prod(self.shape)


def read_headers(folder: Path) -> dict[str, Entry]:
    """The tensors of all weight files of a folder whose every file was looked at, by name.

    Raises:
        CheckpointError: see the module.
    """
    refuse_odd_files(folder)
    files = {path.name: read_header(path) for path in sorted(folder.glob("*.safetensors"))}
    if (folder / INDEX_FILE).exists():
        _check_index(folder / INDEX_FILE, files)
    found: dict[str, Entry] = {}
    for name, entries in files.items():
        twice = sorted(found.keys() & entries.keys())
        if twice:
            raise CheckpointError(f"{folder / name}: holds {twice[0]!r}, which another file of the folder holds too")
        found |= entries
    check_sizes(folder / CONFIG_FILE, len(found))
    return found


def files_read(folder: Path) -> list[Path]:
    """The files of a model folder that anything is read from, sorted."""
    return sorted({path for pattern in READ_FILES for path in folder.glob(pattern)})


def refuse_odd_files(folder: Path) -> None:
    """Refuse a folder in which a file that is read is no file of its own.

    The hub's cache keeps files under their hashes in `blobs` and links to them; those links are followed.

    Raises:
        CheckpointError: naming the file.
    """
    store = folder.resolve().parent.parent / "blobs"
    for path in files_read(folder):
        target = path.resolve()
        if path.is_symlink() and not target.is_relative_to(folder.resolve()) and target.parent != store:
            raise CheckpointError(f"{path}: is a link that leads out of the folder; copy the file instead")
        if not path.is_dir():
            open_regular(target, CheckpointError).close()


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors that a safetensors file says it holds, if that is exactly what it holds.

    Nothing is allocated by what a number says but the header itself, up to 16 MiB.

    Raises:
        CheckpointError: it does not, see the module.
    """
    with open_regular(path.resolve(), CheckpointError) as file:
        there = os.fstat(file.fileno()).st_size
        size = _LENGTH.unpack(file.read(8))[0] if there >= _LENGTH.size else 0
        if not 2 <= size <= min(_MOST_HEADER_BYTES, there - _LENGTH.size):
            raise CheckpointError(f"{path}: {there} bytes with a header of {size}; {_ADVICE}")
        header = parse_object(file.read(size), f"{path}: its header", CheckpointError, _ADVICE)
    header.pop("__metadata__", None)
    if len(header) > _MOST_TENSORS:
        raise CheckpointError(f"{path}: {len(header)} tensors, more than the {_MOST_TENSORS} that are read")
    entries, ends = {}, []
    for name, value in header.items():
        if not TENSOR_NAME.fullmatch(name):
            raise CheckpointError(f"{path}: a tensor is called {name!r:.80}, expected letters, digits, _ and .")
        entries[name], start, end = _entry(f"{path}: {name}", value)
        ends.append((start, end))
    _check_ends(path, sorted(ends), there - _LENGTH.size - size)
    return entries


def _entry(where: str, value: Any) -> tuple[Entry, int, int]:
    """One entry of the header, and where its bytes begin and end."""
    if not isinstance(value, Mapping) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets; {_ADVICE}")
    dtype, shape, ends = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise CheckpointError(f"{where}: is of type {dtype!r:.40}; there are {', '.join(_BYTES)}")
    if not _are_sizes(shape) or len(shape) > _MOST_AXES or not _are_sizes(ends) or len(ends) != 2:
        raise CheckpointError(f"{where}: shape {shape!r:.60} at {ends!r:.60}, expected whole numbers; {_ADVICE}")
    entry = Entry(dtype, tuple(shape))
    needed = entry.numel * _BYTES[dtype]
    if ends[1] - ends[0] != needed:
        raise CheckpointError(f"{where}: {ends[1] - ends[0]} bytes, its shape {shape} needs {needed}; {_ADVICE}")
    return entry, ends[0], ends[1]


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_ends(path: Path, ends: list[tuple[int, int]], there: int) -> None:
    """Refuse holes, overlaps, and bytes that nothing or nobody claims."""
    position = 0
    for start, end in ends:
        if start != position:
            raise CheckpointError(f"{path}: a tensor begins at byte {start}, the one before ends at {position}")
        position = end
    if position != there:
        raise CheckpointError(
            f"{path}: its tensors have {position} bytes, there are {there}; it is cut off or damaged, download it again"
        )


def _check_index(path: Path, files: Mapping[str, Mapping[str, Entry]]) -> None:
    """Refuse an index that says another thing than the files do."""
    listed = read_regular_json(path.resolve(), CheckpointError).get("weight_map")
    if not isinstance(listed, dict):
        raise CheckpointError(f"{path}: has no weight_map; {_ADVICE}")
    for name, file in listed.items():
        if not isinstance(file, str) or file not in files:
            raise CheckpointError(f"{path}: {name!r:.80} is in {file!r:.80}, which is not a file of the folder")
        if name not in files[file]:
            raise CheckpointError(f"{path}: {name!r:.80} is not in {file}; download the folder again")


def check_sizes(path: Path, tensors: int) -> None:
    """Refuse a config.json that would keep the making of an empty model busy for hours.

    tensors: that there are; a layer has at least one.

    Raises:
        CheckpointError: naming the entry.
    """
    config = read_regular_json(path.resolve(), CheckpointError)
    for key in _LAYER_COUNTS:
        layers = config.get(key, 0)
        if type(layers) is not int or layers < 0 or (tensors and layers > tensors):
            raise CheckpointError(f"{path}: {key} is {layers!r:.40}, and the weight files hold {tensors} tensors")
    for key, value in _numbers({name: value for name, value in config.items() if name != "quantization_config"}):
        if isinstance(value, int) and abs(value) > _MOST_SIZE and key not in _NO_SIZES:
            raise CheckpointError(f"{path}: {key} is {value!r:.40}, which is not a size of a model")


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number in JSON data with the key it stands under."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, key)
    elif isinstance(value, (int, float)):
        yield key, value


def refuse_bomb(where: str, model: Any, tensors: Mapping[str, Entry]) -> None:
    """Refuse a model, made without memory, that is much larger than the files its weights shall come from.

    Raises:
        CheckpointError: naming both sizes.
    """
    values = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    stored = sum(entry.numel for entry in tensors.values())
    if values > _MODEL_VALUES_PER_STORED * stored + _MORE_MODEL_VALUES:
        raise CheckpointError(
            f"{where}: describes a model of {values} values, and its weight files hold {stored}; is it another model's?"
        )
