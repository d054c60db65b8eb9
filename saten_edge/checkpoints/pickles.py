"""Reading a pickled state dict in a process of its own, which leaves it as a safetensors file.

torch's reader is told to make tensors and nothing else, but it has failed at that before, and it takes sizes as they
are written. So it runs in another process, under limits of memory, processor time and written bytes. What that leaves
is read as every safetensors file from elsewhere is.

The authors of Saten pickle a dict of dicts, with torch's `ParameterList` and numbers of numpy in it. Those classes are
known by name alone: an object of ours that does nothing takes the place of each.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from saten_edge.checkpoints.guard import TENSOR_NAME
from saten_runtime.errors import CheckpointError, DeviceError, SatenError
from saten_runtime.machine.child import Child, answer_requests
from saten_runtime.records.files import open_regular
from saten_runtime.records.plain_text import one_line

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["convert_pickle", "main"]

_CONVERTER = "from saten_edge.checkpoints.pickles import main; main()"
# What a sound state dict may need per byte of its file: read, each tensor by itself, written.
_MEMORY_PER_BYTE, _MORE_MEMORY = 4, 512 << 20
# Tensors that share their values are written once each.
_MOST_GROWTH, _MORE_BYTES = 4, 1 << 20
_SECONDS, _BYTES_PER_SECOND = 60, 10 << 20
# The wall clock of a machine with other work.
_PATIENCE = 4


class _Inert:
    """Stands for an object of a class that only its name is known of; `state` is what the pickle gives it."""

    state: Any = None

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Parameters(_Inert):
    """Stands for torch's `ParameterList`."""

    @property
    def tensors(self) -> dict[str, Any]:
        """By their numbers; nothing where the state is none of that class."""
        state = self.state if isinstance(self.state, Mapping) else {}
        found = state.get("_parameters")
        return dict(found) if isinstance(found, Mapping) else {}


_STAND_INS = (
    (_Parameters, "torch.nn.modules.container.ParameterList"),
    *((_Inert, f"numpy.{name}") for name in ("core.multiarray.scalar", "_core.multiarray.scalar", "dtype")),
)


def convert_pickle(file: Path, target: Path) -> bool:
    """Write the state dict that torch pickled to `file` as a safetensors file, in another process.

    Returns whether it is a state dict, and not the authors' dict of compressed layers, whose entries are then written
    as a state dict names them.

    Raises:
        CheckpointError: it is not a state dict of dense tensors, is hostile, or needs more than one of its size does.
    """
    patience = _PATIENCE * _seconds(file)
    try:
        with Child(_CONVERTER) as child:
            return bool(child.ask("convert", timeout_s=patience, source=str(file), target=str(target)))
    except DeviceError as cause:
        raise CheckpointError(f"{file}: the process that read it died ({cause}); refused") from None
    except SatenError as cause:
        raise CheckpointError(str(cause)) from None


def main() -> None:
    """Answer the request of `convert_pickle`."""
    answer_requests(lambda: {"convert": lambda source, target: _convert(Path(source), Path(target))})


def _convert(source: Path, target: Path) -> bool:
    torch.set_num_threads(1)  # each more would reserve address space
    _limit(source)
    try:
        _refuse_zip_bomb(source)
        with _strict_torch(), torch.serialization.safe_globals(list(_STAND_INS)):
            state = torch.load(source, map_location="cpu", weights_only=True)
        whole = not _are_layers(state)
        state = state if whole else _flattened(source, state)
        if not isinstance(state, Mapping) or not all(_is_plain(key, value) for key, value in state.items()):
            raise CheckpointError(f"{source}: is not a state dict; expected names and dense tensors")
        size = sum(tensor.nbytes for tensor in state.values())
        if size > _most_bytes(source):
            raise CheckpointError(f"{source}: its tensors have {size} bytes, more than {_MOST_GROWTH} of such files")
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, target, {"format": "pt"})
        return whole
    except SatenError:
        raise
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile) as cause:
        reason = one_line(cause, 120)
        raise CheckpointError(f"{source}: cannot be read as a state dict ({reason})") from None
    except Exception as cause:  # a pickle that wants more than tensors ends in an error class of its own
        raise CheckpointError(
            f"{source}: refused, it holds more than tensors ({type(cause).__name__}); where it was made, save "
            'the numbers alone: torch.save(model.state_dict(), "state.pt")'
        ) from None


def _are_layers(state: object) -> bool:
    """Whether this is what the authors' `save_model_params` leaves: by the name of each layer, what it consists of."""
    return isinstance(state, Mapping) and state != {} and all(isinstance(layer, Mapping) for layer in state.values())


def _flattened(source: Path, layers: Mapping[object, Mapping[object, Any]]) -> dict[str, Tensor]:
    """The tensors of the authors' layers, as a state dict names them; their sizes and ratios are left out."""
    found: dict[str, Tensor] = {}
    for name, parts in layers.items():
        if parts.get("decomp_format", "tt") != "tt":
            raise CheckpointError(f"{source}: {name} is of the format {parts['decomp_format']!r:.40}; expected tt")
        if parts.get("diag_weight") is not None:
            raise CheckpointError(f"{source}: {name} has diag_weight, which is not read")
        for part, value in parts.items():
            tensors = value.tensors if isinstance(value, _Parameters) else {"": value}
            inner = {f"{name}.{part}{'.' * bool(number)}{number}": tensor for number, tensor in tensors.items()}
            found |= {
                key: tensor.detach() for key, tensor in inner.items() if isinstance(tensor, Tensor) and tensor.ndim
            }
    return found


@contextlib.contextmanager
def _strict_torch() -> Iterator[None]:
    """Let torch check the indices of sparse tensors, and keep its advice on pickles to itself."""
    with torch.sparse.check_sparse_tensor_invariants(), warnings.catch_warnings():  # type: ignore[no-untyped-call]
        warnings.simplefilter("ignore")
        yield


def _refuse_zip_bomb(file: Path) -> None:
    """Refuse an archive that holds more than its bytes; torch stores tensors as they are."""
    with open_regular(file.resolve(), CheckpointError) as opened:
        if zipfile.is_zipfile(opened):
            unpacked = sum(entry.file_size for entry in zipfile.ZipFile(opened).infolist())
            if unpacked > os.fstat(opened.fileno()).st_size:
                raise CheckpointError(f"{file}: unpacks to {unpacked} bytes, more than it has; torch packs nothing")


def _is_plain(key: object, value: object) -> bool:
    """Whether a name stands for a dense tensor all of whose values are stored."""
    named = isinstance(key, str) and TENSOR_NAME.fullmatch(key) is not None
    if not named or not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _limit(source: Path) -> None:
    """Limit this process to what a sound file of this size needs.

    Raises:
        CheckpointError: the system has no limits.
    """
    if resource is None:
        raise CheckpointError(
            f"{source}: this system has not the limits that a pickle is read within; save safetensors where it was made"
        )
    with contextlib.suppress(OSError):  # no such file but on Linux; elsewhere the other limits hold
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        needed = _MEMORY_PER_BYTE * source.stat().st_size + _MORE_MEMORY
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + needed)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + 1 + _seconds(source))
    _lower(resource.RLIMIT_FSIZE, _most_bytes(source))
    _lower(resource.RLIMIT_CORE, 0)


def _lower(kind: int, limit: int) -> None:
    """Set a limit that this process cannot raise again, where it has no lower one."""
    hard = resource.getrlimit(kind)[1]
    lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (lower, lower))


def _seconds(source: Path) -> int:
    return _SECONDS + source.stat().st_size // _BYTES_PER_SECOND


def _most_bytes(source: Path) -> int:
    return _MOST_GROWTH * source.stat().st_size + _MORE_BYTES
