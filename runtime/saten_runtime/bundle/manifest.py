"""The manifest `saten_edge.json`: what a bundle says of itself, and the strict reading of it.

The dataclasses are the schema, described field by field in docs/bundle.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saten_runtime.bundle.recipe import Recipe
from saten_runtime.errors import BundleError
from saten_runtime.records.files import digest_of, read_regular_json
from saten_runtime.records.reader import Reader

__all__ = [
    "DENSE",
    "MANIFEST_FILE",
    "SCHEMA_VERSION",
    "CacheEntry",
    "FileEntry",
    "Generation",
    "Image",
    "Judgement",
    "Layer",
    "Manifest",
    "Postprocess",
    "Rejected",
    "Tokenizer",
    "read_manifest",
    "sealed",
]

MANIFEST_FILE = "saten_edge.json"
SCHEMA_VERSION = 4
DENSE = "Dense"
"""How the names of forms begin that store a whole matrix: "DenseLinear", "DenseEmbeddingInt8" …"""

# What manifests of a version may lack, with the value that says the same: each what the next lacks, and more.
_SINCE_4: dict[str, Any] = {"session_entries": {}, "judgement": None}
_SINCE_3 = {**_SINCE_4, "recipe": None}
_SINCE_2 = {**_SINCE_3, "target": "cpu", "rows": None}
_SINCE_1 = {**_SINCE_2, "labels": [], "image": None, "generation": None}
_ADDED: dict[int, dict[str, Any]] = {1: _SINCE_1, 2: _SINCE_2, 3: _SINCE_3, 4: _SINCE_4}
_ADDED_TO_LAYERS: dict[int, dict[str, Any]] = {
    version: {"lowering": "", "predicted_us": None, "rejected": []} for version in (1, 2)
} | {3: {}, 4: {}}


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Rejected:
    """A way to write a layer that was not taken, and the time it was predicted to take."""

    lowering: str
    form: str
    predicted_us: float


@dataclass(frozen=True)
class Layer:
    """One weight matrix of the model and what became of it.

    shape: (out, in) of a linear, (rows, width) of an embedding. ranks: of the tensor train, the
    outer ones (always 1) left out. nnz: stored residual values. bytes: in the bundle, indices
    included. macs_per_row: multiply-accumulates for one token. lowering: the name under which the form is chosen,
    or empty; predicted_us: of one call with as many rows as the manifest says, or None; rejected: the others.
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
    lowering: str = ""
    predicted_us: float | None = None
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def is_dense(self) -> bool:
        """Whether the whole matrix is stored, not factors and a residual."""
        return self.form.startswith(DENSE)


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
class Image:
    """How a picture becomes `pixel_values` (batch, channels, height, width) float32, in this order.

    resize: [height, width], or [shorter side], or [] for none. crop: [height, width] around the
    centre, or [] for none. resample: a name in `image.KERNELS`. Then x · rescale, minus mean,
    divided by std, by channel: red, green and blue, or grey alone.
    """

    resize: list[int]
    crop: list[int]
    resample: str
    rescale: float
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class CacheEntry:
    """One tensor that a decoder hands on from run to run.

    input: its name as an input, (batch, heads, past tokens, width); output: its name as an output,
    with the new tokens appended; dtype: "float32" or "float16".
    """

    input: str
    output: str
    heads: int
    width: int
    dtype: str = "float32"


@dataclass(frozen=True)
class Generation:
    """What a decoder needs beside its graph. stop_ids: generation ends with any of them."""

    cache: list[CacheEntry]
    stop_ids: list[int]


@dataclass(frozen=True)
class Judgement:
    """What a precision costs on real text, against float32.

    by: name of the file, or what else it was; sha256: of it; items, tokens: that were read. loss: by its measure, the
    mean over items or tokens. "kl": Kullback-Leibler divergence, in nats, from the distributions of float32;
    agreement: share of those whose likeliest outcome is the same. "cosine": what is missing from 1 to the cosine of
    an item's vectors, which is the agreement. "error": of numbers, the squared error in units of their squares.
    """

    by: str
    sha256: str
    items: int
    tokens: int
    measure: str
    loss: float
    agreement: float

    def text(self) -> str:
        """In words."""
        losses = {"kl": "KL divergence {:.4f}", "cosine": "1 − cosine {:.4f}", "error": "relative squared error {:.4f}"}
        loss = losses.get(self.measure, f"{self.measure} {{:.4f}}").format(self.loss)
        return f"{loss}, agreement {self.agreement:.3f} ({self.by}: {self.items} items, {self.tokens:,} tokens)"


@dataclass(frozen=True)
class Manifest:
    """Content of `saten_edge.json`.

    source: what was exported (model, sha256 …); tolerance: the bound the validation held (see
    `validation/report.json`); smallest_onnxruntime: "major.minor"; files: by path inside the
    bundle; target, rows: what forms were chosen for, rows None where that is not known; labels: names
    of the classes by index, or empty. tokenizer, image, generation: None where the task has none.
    session_entries: what a session of ONNX Runtime must be configured with to be right on every machine; ours
    always are. judgement: what the precision costs, None where that was not measured. recipe: the stages that made it,
    None where that is not recorded.
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
    tokenizer: Tokenizer | None
    postprocess: Postprocess
    tolerance: dict[str, float]
    target: str = "cpu"
    rows: int | None = None
    layers: list[Layer] = field(default_factory=list)
    files: dict[str, FileEntry] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    image: Image | None = None
    generation: Generation | None = None
    session_entries: dict[str, str] = field(default_factory=dict)
    judgement: Judgement | None = None
    recipe: Recipe | None = None

    @property
    def is_dense(self) -> bool:
        """Whether no layer is stored compressed; a dense model lists none."""
        return all(layer.is_dense for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON data."""
        recipe = None if self.recipe is None else self.recipe.to_json()
        return {**dataclasses.asdict(self), "recipe": recipe}


def sealed(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON data with its own digest, `seal`, so that a changed one is seen."""
    values = manifest.to_json()
    return {**values, "seal": digest_of(values)}


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle folder.

    Raises:
        BundleError: there is none, it is of a version not known here, it was changed since it was
            sealed, or a field is missing, unknown or of a wrong type.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; expected a bundle written by `saten-edge export`")
    if not (folder / MANIFEST_FILE).is_file():
        raise BundleError(f"{folder}: has no {MANIFEST_FILE}; expected a bundle written by `saten-edge export`")
    values = read_regular_json(folder / MANIFEST_FILE, BundleError)
    seal = values.pop("seal", None)
    if seal is not None and seal != digest_of(values):
        raise BundleError(
            f"{folder}: {MANIFEST_FILE} is not the one that was sealed; it is damaged, copy the bundle again"
        )
    version = values.get("schema_version")
    if type(version) is not int or version not in _ADDED:
        raise BundleError(
            f"{folder}: schema version {version!r:.60}, this saten-runtime reads {', '.join(map(str, _ADDED))}; "
            "install the version that wrote it"
        )
    values = {**_ADDED[version], **values}
    if isinstance(values.get("layers"), list):
        added = _ADDED_TO_LAYERS[version]
        values["layers"] = [{**added, **each} if isinstance(each, dict) else each for each in values["layers"]]
    return Reader(BundleError, exact=True).read(Manifest, values, MANIFEST_FILE)
