"""Tensors in files: the bytes of safetensors, and memory that is given back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saten_edge.checkpoints.mapped import compact, in_file, map_file, release, write_tensors

TYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.complex64,
)
MANY = 1 << 20

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives memory back")


def resident_bytes(path: Path) -> int:
    """Of a file's mappings in this process."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"of": "é"}])
def test_the_bytes_are_those_of_safetensors(metadata, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {f"layer.{k}": torch.randint(0, 2, (7, 3)).to(kind) for k, kind in enumerate(TYPES)}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 4), "a": torch.arange(5.0)}
    save_file(tensors, tmp_path / "theirs", metadata)
    write_tensors(tensors, tmp_path / "ours", metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    write_tensors({**tensors, "a": tensors["a"] + 1}, tmp_path / "ours", metadata)
    assert (tmp_path / "ours").read_bytes() != (tmp_path / "theirs").read_bytes()


def test_what_is_no_piece_of_memory_is_written_as_it_reads(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    write_tensors({"turned": matrix.T, "part": matrix[:, 1:3]}, tmp_path / "file")
    found, metadata = map_file(tmp_path / "file")
    assert metadata == {}
    assert torch.equal(found["turned"], matrix.T)
    assert torch.equal(found["part"], matrix[:, 1:3])


@linux
def test_a_mapped_tensor_gives_its_memory_back_and_keeps_its_values(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors({"tensor": torch.arange(MANY, dtype=torch.float32)}, path)
    os.sync()  # memory of what is not on the disk yet is not given back
    tensor = map_file(path)[0]["tensor"]
    total = float(tensor.double().sum())
    assert resident_bytes(path) >= tensor.nbytes
    release(tensor.reshape(2, -1).T)
    assert resident_bytes(path) < tensor.nbytes / 8
    assert float(tensor.double().sum()) == total == MANY * (MANY - 1) / 2


@linux
def test_what_was_changed_in_memory_stays_changed(tmp_path: Path) -> None:
    write_tensors({"tensor": torch.ones(MANY)}, tmp_path / "file")
    tensor = map_file(tmp_path / "file")[0]["tensor"]
    tensor[1000] = 7
    release(tensor)
    assert float(tensor[1000]) == 7


def test_memory_of_ones_own_is_left_alone() -> None:
    tensor = torch.arange(MANY)
    release(tensor)
    assert int(tensor[-1]) == MANY - 1


@pytest.mark.parametrize("count", [10, MANY])
def test_a_tensor_in_a_file_is_the_tensor_in_float32(count: int, tmp_path: Path) -> None:
    tensor = torch.randn(count).bfloat16()
    found = in_file(tensor, tmp_path / "file")
    assert found.dtype == torch.float32
    assert torch.equal(found, tensor.float())
    assert (tmp_path / "file").exists() is (count == MANY)


def test_a_part_of_a_tensor_leaves_the_rest_behind() -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    for part in (matrix[:2], matrix[:, :2], matrix.T):
        assert torch.equal(compact(part), part)
        assert compact(part).untyped_storage().nbytes() == part.nbytes
    assert compact(matrix).data_ptr() == matrix.data_ptr()
