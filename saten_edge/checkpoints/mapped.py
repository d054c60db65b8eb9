"""Tensors that stay in files: read where they are needed, let go, and written one at a time.

A model may be larger than memory. Its weights are mapped from their files, and every page of them that was read counts
as memory of the process until the system wants it back. So what was read is given back at once.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open
from torch import Tensor

from saten_runtime.records.files import replacing

__all__ = ["compact", "in_file", "map_file", "release", "streamed_saving", "write_tensors"]

# Smaller tensors are kept: the pages of all of them are few.
SMALLEST_BYTES = 1 << 16
WRITTEN_AT_ONCE = 1 << 24
_PAGEOUT = 21  # of madvise, since Linux 5.4: what is in a file leaves memory, and what is nowhere else stays
_LENGTH, _ALIGNMENT = struct.Struct("<Q"), 8
# The order of safetensors: no tensor is aligned to less than its values, and files of the same tensors are the same.
_TYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def release(tensor: Tensor) -> None:
    """Give back the memory of a tensor that is mapped from a file; its values are read again when they are asked for.

    Of any other tensor, and on other systems than Linux, nothing happens.
    """
    madvise = _madvise()
    if madvise is None or tensor.nbytes < SMALLEST_BYTES or tensor.device.type != "cpu":
        return
    storage = tensor.untyped_storage()
    start = storage.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    if _is_mapped(storage.data_ptr()):  # other memory would go to the swap file
        madvise(start, storage.data_ptr() + storage.nbytes() - start, _PAGEOUT)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def _is_mapped(address: int) -> bool:
    """Whether a file is behind an address. A line of the list: start-end, permissions, offset, device, inode, path."""
    try:
        listed = Path("/proc/self/maps").read_text("utf-8", "replace")
    except OSError:  # another system, or one that hides it
        return False
    for line in listed.splitlines():
        ends, _, _, _, inode, *_ = line.split(maxsplit=5)
        start, _, end = ends.partition("-")
        if int(start, 16) <= address < int(end, 16):
            return inode != "0"
    return False


def compact(tensor: Tensor) -> Tensor:
    """The same values in memory of their own, if they have not got that already."""
    whole = tensor.detach().contiguous()
    return whole if whole.untyped_storage().nbytes() == whole.nbytes else whole.clone()


def map_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, mapped from it, and its metadata.

    Raises:
        OSError, SafetensorError: it cannot be read.
    """
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def in_file(tensor: Tensor, path: Path) -> Tensor:
    """A tensor in float32, mapped from a new file where it is large."""
    if tensor.nbytes < SMALLEST_BYTES:
        return tensor.float()
    with replacing(path) as aside:  # memory of what is not on the disk yet is not given back
        write_tensors({"tensor": tensor.float()}, aside)
    return map_file(path)[0]["tensor"]


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """The bytes that `safetensors.torch.save_file` writes; of mapped tensors one at a time is in memory.

    Format: https://github.com/huggingface/safetensors#format

    Raises:
        OSError: the system refuses.
    """
    places = {kind: place for place, kind in enumerate(_TYPES)}
    order = sorted(tensors, key=lambda name: (places[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    words = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    words += b" " * (-len(words) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(_LENGTH.pack(len(words)) + words)
        for name in order:
            for piece in _pieces(tensors[name]):
                file.write(piece)
            release(tensors[name])


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    for start in range(0, len(values), WRITTEN_AT_ONCE):
        yield values[start : start + WRITTEN_AT_ONCE].data


@contextmanager
def streamed_saving() -> Iterator[None]:
    """Within the block transformers writes weight files by `write_tensors`."""
    with mock.patch("transformers.modeling_utils.safe_save_file", write_tensors):
        yield
