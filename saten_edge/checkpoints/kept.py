"""What an interrupted compression keeps: what calibration found, and each layer as soon as it is done."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from saten_edge.checkpoints.mapped import in_file, map_file, write_tensors
from saten_edge.decomposition.allocation import Measured
from saten_edge.decomposition.decompose import Decomposition
from saten_edge.decomposition.residual import Residual
from saten_edge.decomposition.tt import TensorTrain
from saten_runtime.errors import CheckpointError, DeviceError, SatenError, UsageError
from saten_runtime.records.files import key_of, parse_json, read_json, replacing, write_json

__all__ = ["Kept", "keeping", "write_parts"]

SETTINGS_FILE, MEASURED_FILE = "settings.json", "measured.safetensors"


@dataclasses.dataclass
class Kept:
    """The folder of one compression, or None, where nothing is kept. layers: how many are done, kept or new."""

    folder: Path | None = None
    layers: int = 0

    def measured(self, measure: Callable[[], Measured]) -> Measured:
        """What was measured before, but for its texts; else what `measure` measures."""
        if self.folder is None:
            return measure()
        path = self.folder / MEASURED_FILE
        if path.is_file():
            return Measured.load(path)
        found = measure()
        found.save(path)
        return found

    def layer(self, name: str, decompose: Callable[[], Decomposition]) -> Decomposition:
        """The layer as it was kept, else as `decompose` makes it; its numbers stay in their file."""
        if self.folder is None:
            return decompose()
        path = self.folder / self.file(name)
        if not path.is_file():
            write_parts(decompose(), path)
        self.layers += 1
        return _read(path)

    def file(self, name: str) -> str:
        """Where the parts of a layer lie in the folder."""
        return f"{key_of(name)}.safetensors"

    def widened(self, name: str, tensor: Tensor) -> Tensor:
        """What stays dense, in float32; where a folder is, a large tensor stays in a file of it."""
        if self.folder is None or tensor.dtype == torch.float32:
            return tensor.float()
        return in_file(tensor, self.folder / f"dense.{key_of(name)}.safetensors")


@contextlib.contextmanager
def keeping(out: Path, settings: dict[str, Any], *, resume: bool) -> Iterator[Kept]:
    """A folder beside `out` while the block compresses; it goes when the block ends, and stays after Ctrl-C or a kill.

    settings: tell one compression from another.

    Raises:
        UsageError: `resume`, and what was interrupted had other settings.
        KeyboardInterrupt: Ctrl-C; its text says what is kept.
    """
    folder = out.with_name(f".{out.name}.compression")
    made = [parent for parent in folder.parents if not parent.exists()]
    _claim(folder, settings, resume=resume)
    kept = Kept(folder)
    try:
        yield kept
    except KeyboardInterrupt:
        if kept.layers:
            raise KeyboardInterrupt(
                f"interrupted; --resume goes on after {kept.layers} layers, kept in {folder}"
            ) from None
        _drop(folder, made)
        raise
    except DeviceError as cause:  # a worker or its cluster was lost, and not what others did
        if not any(folder.glob("*.safetensors")):
            _drop(folder, made)
            raise
        raise DeviceError(f"{cause}; --resume goes on with what is kept in {folder}") from None
    except (SatenError, OSError):  # its options must change, or the disk is full
        _drop(folder, made)
        raise
    _drop(folder, made)


def _claim(folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
    if resume and (folder / SETTINGS_FILE).is_file():
        found = read_json(folder / SETTINGS_FILE, CheckpointError)
        other = sorted(name for name in settings if found.get(name) != settings[name])
        if other:
            raise UsageError(
                f"{folder}: the interrupted compression had another {', '.join(other)}; repeat its options, or leave "
                "out --resume to start anew"
            )
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / SETTINGS_FILE, settings)


def _drop(folder: Path, made: Sequence[Path]) -> None:
    """Remove the folder, and those around it that were made for it and hold nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        for parent in made:
            parent.rmdir()


def write_parts(parts: Decomposition, path: Path) -> None:
    """Write what `Kept.layer` reads: the whole file, or none."""
    tensors = {f"core.{k}": core for k, core in enumerate(parts.train.cores)}
    tensors |= {f"index.{name}": tensor for name, tensor in parts.residual.indices.items()}
    tensors["values"] = parts.residual.values
    numbers = {name: getattr(parts, name) for name in ("bytes", "error", "share", "solver")}
    numbers |= {"inputs": parts.train.inputs, "true_shape": parts.train.true_shape}
    plain = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    with replacing(path) as aside:
        write_tensors(plain, aside, {"parts": json.dumps(numbers, allow_nan=False)})


def _read(path: Path) -> Decomposition:
    try:
        tensors, metadata = map_file(path)
        numbers = parse_json(metadata["parts"].encode())
        cores = tuple(tensors[f"core.{k}"] for k in range(sum(name.startswith("core.") for name in tensors)))
        shape = numbers.pop("true_shape")
        train = TensorTrain(cores, numbers.pop("inputs"), None if shape is None else (shape[0], shape[1]))
        indices = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith("index.")}
        return Decomposition(train, Residual(tensors["values"], indices), **numbers)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as cause:
        raise CheckpointError(f"{path}: cannot be read ({cause}); leave out --resume to start anew") from None
