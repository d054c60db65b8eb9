"""The bundle: the folder that travels to the device, and its manifest `saten_edge.json`.

    model.onnx, model.onnx.data   the graph and its weights
    saten_edge.json               this manifest
    tokenizer.json                for `tokenizers`
    export.json, config.json      as transformers wrote them
    README.md                     model card
    validation/*.npy              inputs, and the outputs torch gave for them
    validation/report.json        how far ONNX Runtime was from them at export

The dataclasses below are the schema. Reading is strict: unknown or missing fields, wrong types and
files whose size or sha256 differ are refused before ONNX Runtime sees a byte.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saten_runtime.errors import BundleError
from saten_runtime.files import read_json, sha256_file

__all__ = [
    "MANIFEST_FILE",
    "SCHEMA_VERSION",
    "VALIDATION_FOLDER",
    "Bundle",
    "FileEntry",
    "Layer",
    "Manifest",
    "Postprocess",
    "Tokenizer",
    "open_bundles",
]

MANIFEST_FILE = "saten_edge.json"
SCHEMA_VERSION = 1
VALIDATION_FOLDER = "validation"


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Layer:
    """One weight matrix of the model and what became of it.

    shape: (out, in) of a linear, (rows, width) of an embedding. ranks: of the tensor train, the
    outer ones (always 1) left out. nnz: stored residual values. bytes: in the bundle, indices
    included. macs_per_row: multiply-accumulates for one token.
    """

    name: str
    kind: str
    form: str
    shape: list[int]
    ranks: list[int]
    nnz: int
    bytes: int
    dense_fp32_bytes: int
    macs_per_row: int


@dataclass(frozen=True)
class Tokenizer:
    """How text becomes ids: a `tokenizers` file, the padding id, and the length texts are cut to."""

    file: str
    pad_id: int
    max_length: int


@dataclass(frozen=True)
class Postprocess:
    """What follows the graph. pooling: "mean", "cls" or "none"; normalize: to unit Euclidean length."""

    pooling: str = "none"
    normalize: bool = False


@dataclass(frozen=True)
class Manifest:
    """Content of `saten_edge.json`.

    source: what was exported (model, sha256 …); tolerance: the bound the validation held (see
    `validation/report.json`); smallest_onnxruntime: "major.minor"; files: by path inside the bundle.
    """

    schema_version: int
    made_by: dict[str, str]
    name: str
    source: dict[str, str]
    task: str
    precision: str
    opset: int
    ir_version: int
    smallest_onnxruntime: str
    inputs: list[str]
    outputs: list[str]
    tokenizer: Tokenizer
    postprocess: Postprocess
    tolerance: dict[str, float]
    layers: list[Layer] = field(default_factory=list)
    files: dict[str, FileEntry] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest was read and whose files were checked."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, check_hashes: bool = True) -> Bundle:
        """Read the manifest and compare every file with it.

        `check_hashes=False` compares sizes only: for a process whose start is measured, after the
        process that started it checked the hashes.

        Raises:
            BundleError: no such folder, no manifest, a newer schema, or a file that is missing,
                of another size, or of another sha256.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BundleError(f"{folder}: no such folder; expected a bundle written by `saten-edge export`")
        if not (folder / MANIFEST_FILE).is_file():
            raise BundleError(f"{folder}: has no {MANIFEST_FILE}; expected a bundle written by `saten-edge export`")
        values = read_json(folder / MANIFEST_FILE, BundleError)
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{folder}: schema version {version!r}, this saten-runtime reads {SCHEMA_VERSION}; "
                "install the version that wrote it"
            )
        manifest = _parse(Manifest, values, MANIFEST_FILE)
        for name, entry in manifest.files.items():
            _check_file(folder, name, entry, check_hashes)
        return cls(folder, manifest)

    @property
    def name(self) -> str:
        """The name results are reported under."""
        return self.manifest.name

    @property
    def model(self) -> Path:
        """The ONNX graph."""
        return self.path / "model.onnx"

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of what the device needs: graph, weights, tokenizer, configs; not the validation's arrays."""
        return sum(
            entry.bytes for name, entry in self.manifest.files.items() if not name.startswith(f"{VALIDATION_FOLDER}/")
        )

    @property
    def model_bytes(self) -> int:
        """Bytes on disk of the graph and its weights alone."""
        return sum(entry.bytes for name, entry in self.manifest.files.items() if name.startswith("model.onnx"))


def open_bundles(bundles: Sequence[Bundle | str | Path]) -> dict[str, Bundle]:
    """Open what is not open yet; keyed by name, where a name met again becomes "name#2", then "name#3".

    Raises:
        BundleError: as `Bundle.open`.
    """
    named: dict[str, Bundle] = {}
    for item in bundles:
        bundle = item if isinstance(item, Bundle) else Bundle.open(item)
        same = sum(other.name == bundle.name for other in named.values())
        named[f"{bundle.name}#{same + 1}" if same else bundle.name] = bundle
    return named


def _check_file(folder: Path, name: str, entry: FileEntry, check_hashes: bool) -> None:
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise BundleError(f"{folder}: the manifest names {name!r}, which is no path inside the bundle")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path}: the manifest lists it, but it is no regular file; copy the bundle again")
    size = path.stat().st_size
    if size != entry.bytes:
        raise BundleError(f"{path}: {size} bytes, the manifest says {entry.bytes}; copy the bundle again")
    if check_hashes and sha256_file(path) != entry.sha256:
        raise BundleError(f"{path}: its sha256 differs from the manifest's; it is damaged, copy the bundle again")


def _parse(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a dataclass, list, dict or scalar type, checked recursively.

    Raises:
        BundleError: naming the field by its path.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise BundleError(f"{where}: expected an object, found {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        if set(value) != set(hints):
            odd = sorted(set(value) ^ set(hints))
            raise BundleError(f"{where}: fields missing or unknown: {', '.join(map(repr, odd[:5]))}")
        return typing.cast(Any, kind)(**{name: _parse(hints[name], value[name], f"{where}.{name}") for name in hints})
    if origin is list and isinstance(value, list):
        return [_parse(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _parse(arguments[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if origin in (typing.Union, types.UnionType) and value is None and type(None) in arguments:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str, bool) and type(value) is kind:
        return value
    raise BundleError(f"{where}: expected {getattr(kind, '__name__', kind)}, found {value!r:.60}")
