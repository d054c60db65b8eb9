"""The bundle: the folder that travels to the device.

    model.onnx, model.onnx.data   the graph and its weights
    saten_edge.json               its manifest, see `saten_runtime.bundle.manifest`
    tokenizer.json                for `tokenizers`
    export.json, config.json      as transformers wrote them
    README.md                     model card
    validation/*.npy              inputs, and the outputs torch gave for them
    validation/report.json        how far ONNX Runtime was from them at export

Reading is strict: unknown or missing fields, wrong types, files whose size or sha256 differ and
graphs that `saten_runtime.bundle.graph` refuses are refused before ONNX Runtime sees a byte.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saten_runtime.bundle.graph import Graph, read_graph
from saten_runtime.bundle.manifest import (
    FileEntry,
    Generation,
    Image,
    Manifest,
    Tokenizer,
    read_manifest,
)
from saten_runtime.errors import BundleError
from saten_runtime.records.files import open_regular, sha256_of
from saten_runtime.vocabulary.files import MODEL_FILE
from saten_runtime.vocabulary.tasks import IMAGES, TASKS, Task

__all__ = ["VALIDATION_FOLDER", "Bundle", "open_bundles"]

VALIDATION_FOLDER = "validation"
_NOT_ON_THE_DEVICE = (f"{VALIDATION_FOLDER}/", "variants/")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest was read and whose files were checked."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, check_content: bool = True) -> Bundle:
        """Read the manifest, compare every file with it, and check the graph.

        `check_content=False` compares sizes only: for a process whose start is measured, after the
        process that started it checked hashes and graph.

        Raises:
            BundleError: no such folder, no manifest, a newer schema, a file that is missing, of
                another size, or of another sha256, or a graph that `read_graph` refuses.
        """
        folder = Path(path)
        bundle = cls(folder, read_manifest(folder))
        for name, entry in bundle.manifest.files.items():
            _check_file(folder, name, entry, check_content)
        if check_content:
            bundle.read_graph()
        return bundle

    @property
    def name(self) -> str:
        """The name results are reported under."""
        return self.manifest.name

    @property
    def model(self) -> Path:
        """The ONNX graph."""
        return self.path / MODEL_FILE

    @property
    def task(self) -> Task:
        """What the bundle is for.

        Raises:
            BundleError: a task that is not known here.
        """
        name = self.manifest.task
        if name not in TASKS:
            raise BundleError(f"{self.path}: task {name!r}; this saten-runtime runs {', '.join(TASKS)}")
        return TASKS[name]

    @property
    def items(self) -> str:
        """What the bundle reads, a name in `ITEMS`.

        Raises:
            BundleError: a task that is not known here.
        """
        return self.task.takes[0] if self.manifest.image is None else IMAGES

    @property
    def tokenizer(self) -> Tokenizer:
        """How text becomes ids.

        Raises:
            BundleError: the bundle has no tokenizer.
        """
        if self.manifest.tokenizer is None:
            raise BundleError(f"{self.path}: has no tokenizer; the task {self.manifest.task} takes no text")
        return self.manifest.tokenizer

    @property
    def image(self) -> Image:
        """How a picture becomes pixel values.

        Raises:
            BundleError: the bundle takes no pictures.
        """
        if self.manifest.image is None:
            raise BundleError(f"{self.path}: has no image settings; export it again for the task {self.manifest.task}")
        return self.manifest.image

    @property
    def generation(self) -> Generation:
        """What a decoder hands on from run to run.

        Raises:
            BundleError: the bundle is not a decoder.
        """
        if self.manifest.generation is None:
            raise BundleError(f"{self.path}: is not a decoder; the task {self.manifest.task} generates nothing")
        return self.manifest.generation

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of what the device needs: graph, weights, tokenizer, configs.

        Without the validation's arrays, and without variants, which other devices take instead.
        """
        return sum(
            entry.bytes for name, entry in self.manifest.files.items() if not name.startswith(_NOT_ON_THE_DEVICE)
        )

    @property
    def model_bytes(self) -> int:
        """Bytes on disk of the graph and its weights alone."""
        return sum(entry.bytes for name, entry in self.manifest.files.items() if name.startswith(MODEL_FILE))

    def read_graph(self) -> Graph:
        """What the graph is made of.

        Raises:
            BundleError: `read_graph` refuses it, or it is of another opset or IR version than the
                manifest says.
        """
        if MODEL_FILE not in self.manifest.files:
            raise BundleError(f"{self.path}: the manifest lists no {MODEL_FILE}; export the bundle again")
        graph = read_graph(self.model, self.manifest.files)
        found = (graph.opsets.get("", graph.opsets.get("ai.onnx", 0)), graph.ir_version)
        said = (self.manifest.opset, self.manifest.ir_version)
        if found != said:
            raise BundleError(
                f"{self.model}: opset {found[0]}, IR version {found[1]}; the manifest says {said[0]} and {said[1]}; "
                "export the bundle again"
            )
        return graph


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


def _check_file(folder: Path, name: str, entry: FileEntry, check_content: bool) -> None:
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise BundleError(f"{folder}: the manifest names {name!r}, which is not a path inside the bundle")
    path = folder / name
    with open_regular(path, BundleError) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.bytes:
            raise BundleError(f"{path}: {size} bytes, the manifest says {entry.bytes}; copy the bundle again")
        if check_content and sha256_of(file) != entry.sha256:
            raise BundleError(f"{path}: its sha256 differs from the manifest's; it is damaged, copy the bundle again")
