"""The manifest `saten_edge.json`: what a bundle says of itself, and the strict reading of it.

The dataclasses are the schema, described field by field in docs/bundle.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from saten_runtime.bundle.chat import Chat
from saten_runtime.bundle.recipe import Recipe
from saten_runtime.errors import BundleError
from saten_runtime.records.files import digest_of, read_regular_json, refuse_home
from saten_runtime.records.reader import Bound, Count, Natural, Positive, Reader

__all__ = [
    "DENSE",
    "MANIFEST_FILE",
    "SCHEMA_VERSION",
    "CacheEntry",
    "Choice",
    "FileEntry",
    "Generation",
    "Image",
    "Judgement",
    "Layer",
    "Manifest",
    "Module",
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
_SINCE_4: dict[str, Any] = {"session_entries": {}, "judgement": None, "mixed": {}, "notices": []}
_SINCE_3 = {**_SINCE_4, "recipe": None}
_SINCE_2 = {**_SINCE_3, "target": "cpu", "rows": None}
_SINCE_1 = {**_SINCE_2, "labels": [], "image": None, "generation": None}
_ADDED: dict[int, dict[str, Any]] = {1: _SINCE_1, 2: _SINCE_2, 3: _SINCE_3, 4: _SINCE_4}
_ADDED_TO_LAYERS: dict[int, dict[str, Any]] = {
    version: {"lowering": "", "predicted_us": None, "rejected": []} for version in (1, 2)
} | {3: {}, 4: {}}

_SIDE = Bound('"right" or "left"', lambda value: value in ("right", "left"))
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")  # sentence-transformers' names
_SIMILARITY = Bound(f"one of {', '.join(_SIMILARITIES)}", lambda value: value in _SIMILARITIES)
_SHARE = Bound("a number above 0, 1 at most", lambda value: 0 < value <= 1)
_PART = Bound("a number from 0 to 1", lambda value: 0 <= value <= 1)


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
    """How text becomes ids: a `tokenizers` file, the padding id, and the length texts are cut to.

    split_special_tokens: whether a special token that a text spells is read as text. truncation_side: "right" or
    "left", where what does not fit is cut off; prompts are never cut. prompt: what stands before every text. prompts:
    what may stand there in its place, by the names that sentence-transformers has for them.
    """

    file: str
    pad_id: int
    max_length: int
    split_special_tokens: bool = False
    truncation_side: Annotated[str, _SIDE] = "right"
    prompt: str = ""
    prompts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Module:
    """A layer that follows pooling: activation(x weightᵀ + bias), or the norm of layers.

    kind: "dense" or "layer_norm". weight, bias: names of .npy files of the bundle, (out, in) and (out,) of the first,
    (width,) of the other; "" for no bias. activation: a name in `pooling.ACTIVATIONS`. eps: of the norm.
    """

    kind: str
    weight: str
    bias: str = ""
    activation: str = "identity"
    eps: float = 1e-5


@dataclass(frozen=True)
class Postprocess:
    """What follows the graph, in this order.

    pooling: names in `pooling.POOLS`, joined by "+" where several vectors are one after the other, or "none";
    modules: layers; normalize: to unit Euclidean length; dimensions: how many of a vector's first numbers are kept,
    None for all. similarity: how two vectors are compared.
    """

    pooling: str = "none"
    normalize: bool = False
    modules: list[Module] = field(default_factory=list)
    dimensions: Natural | None = None
    similarity: Annotated[str, _SIMILARITY] = "cosine"


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
class Choice:
    """How a model wants its next token to be chosen, by the names and meanings of transformers' GenerationConfig.

    do_sample: whether tokens are drawn where nobody says a temperature. top_k: 0 for all tokens.
    """

    repetition_penalty: Positive = 1.0
    no_repeat_ngram_size: Count = 0
    bad_words_ids: list[list[Count]] = field(default_factory=list)
    min_length: Count = 0
    min_new_tokens: Count = 0
    suppress_tokens: list[Count] = field(default_factory=list)
    begin_suppress_tokens: list[Count] = field(default_factory=list)
    do_sample: bool = False
    temperature: Positive = 1.0
    top_k: Count = 0
    top_p: Annotated[float, _SHARE] = 1.0
    min_p: Annotated[float, _PART] = 0.0


@dataclass(frozen=True)
class Generation:
    """What a decoder needs beside its graph. stop_ids: generation ends with any of them.

    chat: how messages become a prompt; None where the model has no template, or one that `Chat` cannot say.
    """

    cache: list[CacheEntry]
    stop_ids: list[int]
    choice: Choice = field(default_factory=Choice)
    chat: Chat | None = None


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
    always are. judgement: what the precision costs, None where that was not measured. mixed: layers stored at another
    precision, by name. notices: settings of the model that nothing was made of, a sentence for each. recipe: the stages
    that made it, None where that is not recorded.
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
    notices: list[str] = field(default_factory=list)
    mixed: dict[str, str] = field(default_factory=dict)
    recipe: Recipe | None = None

    @property
    def is_dense(self) -> bool:
        """Whether no layer is stored compressed; a dense model lists none."""
        return all(layer.is_dense for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON data."""
        recipe = None if self.recipe is None else self.recipe.to_json()
        return {**dataclasses.asdict(self), "recipe": recipe}


# What the records in a manifest of any version may lack, with the value that says the same.
_MAY_LACK: dict[str, dict[str, Any]] = {
    "tokenizer": {"split_special_tokens": False, "truncation_side": "right", "prompt": "", "prompts": {}},
    "postprocess": {"modules": [], "dimensions": None, "similarity": "cosine"},
    "generation": {"choice": dataclasses.asdict(Choice()), "chat": None},
}


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
    refuse_home(folder, BundleError)
    if folder.is_file():
        which = f", {folder.parent}" if (folder.parent / MANIFEST_FILE).is_file() else ""
        raise BundleError(f"{folder}: is a file; give the folder of the bundle{which}")
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; expected a bundle written by `saten-edge export`")
    if not (folder / MANIFEST_FILE).is_file():
        raise BundleError(f"{folder}: has no {MANIFEST_FILE}; expected a bundle written by `saten-edge export`")
    values = read_regular_json(folder / MANIFEST_FILE, BundleError)
    seal = values.pop("seal", None)
    if seal is not None and seal != digest_of(values):
        raise BundleError(f"{folder}: {MANIFEST_FILE} does not match its seal; it is damaged, copy the bundle again")
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
    for name, lacking in _MAY_LACK.items():
        if isinstance(values.get(name), dict):
            values[name] = {**lacking, **values[name]}
    return Reader(BundleError, exact=True).read(Manifest, values, MANIFEST_FILE)
