"""Builders of tiny bundles: an embedding table, a matrix, and a word tokenizer."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer as WordTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from saten_runtime.bundle.manifest import CacheEntry, FileEntry, Generation, Image, Manifest, Postprocess, Tokenizer
from saten_runtime.records.files import sha256_file

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{index}" for index in range(60))]
WIDTH = 8
MAX_LENGTH = 48


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a tiny bundle is like; `table` (words, WIDTH) and `matrix` (WIDTH, outputs) are its weights."""

    name: str
    task: str = "feature-extraction"
    pooling: str = "mean"
    normalize: bool = True
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
    work: int = 0  # columns of a superfluous product, to make a model slow
    table: np.ndarray = dataclasses.field(default_factory=lambda: seeded(len(WORDS), WIDTH))
    matrix: np.ndarray = dataclasses.field(default_factory=lambda: seeded(WIDTH, WIDTH))
    opset: int = 20
    domain: str = ""


def seeded(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def _save_graph(folder: Path, spec: Spec) -> None:
    ids, mask, types = (_input(name) for name in ("input_ids", "attention_mask", "token_type_ids"))
    weights = {"table": spec.table, "matrix": spec.matrix, "axes": np.array([1], np.int64)}
    nodes: list[ir.Node] = []
    values: dict[str, ir.Value] = {}

    def add(operator: str, *inputs: ir.Value, domain: str = "", **attributes: Any) -> ir.Value:
        nodes.append(ir.node(operator, list(inputs), attributes, domain=domain))
        nodes[-1].outputs[0].name = f"{operator}_{len(nodes)}"
        return nodes[-1].outputs[0]

    def constant(name: str, array: np.ndarray) -> ir.Value:
        values[name] = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        values[name].shape, values[name].type = (
            ir.Shape(array.shape),
            ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        return values[name]

    hidden = add("Gather", constant("table", weights["table"]), ids)  # (batch, tokens, WIDTH)
    if spec.work:
        wide = add("MatMul", hidden, constant("wide", np.full((WIDTH, spec.work), 1e-3, np.float32)))
        back = add("MatMul", wide, constant("back", np.zeros((spec.work, WIDTH), np.float32)))
        hidden = add("Add", hidden, back)
    if spec.task == "text-classification":
        hidden = add("ReduceMean", hidden, constant("axes", weights["axes"]), keepdims=0)
    if spec.domain:
        hidden = add("Strange", hidden, domain=spec.domain)
    output = add("MatMul", hidden, constant("matrix", weights["matrix"]))
    output.name = "logits" if spec.task == "text-classification" else "last_hidden_state"
    output.type = ir.TensorType(ir.DataType.FLOAT)
    imports = {"": spec.opset, **({spec.domain: 1} if spec.domain else {})}
    inputs = [value for value in (ids, mask, types) if value.name in spec.inputs]
    graph = ir.Graph(inputs, [output], nodes=nodes, initializers=list(values.values()), opset_imports=imports, name="g")
    ir.save(
        ir.Model(graph, ir_version=10), folder / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=64
    )


def _input(name: str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "tokens"]))


def _save_tokenizer(folder: Path) -> None:
    tokenizer = WordTokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=MAX_LENGTH)  # as some published files have it; the runtime must not follow
    tokenizer.save(str(folder / "tokenizer.json"))


def _save_manifest(folder: Path, spec: Spec, **changes: Any) -> None:
    files = {path.name: FileEntry(path.stat().st_size, sha256_file(path)) for path in sorted(folder.iterdir())}
    manifest = Manifest(
        schema_version=4,
        made_by={"saten-edge": "0.1.0"},
        name=spec.name,
        source={"model": "tiny"},
        task=spec.task,
        precision="fp32",
        opset=spec.opset,
        ir_version=10,
        smallest_onnxruntime="1.23",
        inputs=list(spec.inputs),
        outputs=["logits" if spec.task == "text-classification" else "last_hidden_state"],
        tokenizer=Tokenizer("tokenizer.json", 0, MAX_LENGTH),
        postprocess=Postprocess(spec.pooling, spec.normalize),
        tolerance={"max_abs": 1e-5},
        files=files,
    )
    values = {**manifest.to_json(), **changes}
    (folder / "saten_edge.json").write_text(json.dumps(values))


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_bundle(name, manifest={…}, **fields of Spec) -> folder."""

    def make(name: str, *, manifest: dict[str, Any] | None = None, **fields: Any) -> Path:
        folder = tmp_path_factory.mktemp("bundles") / name
        folder.mkdir()
        spec = Spec(name, **fields)
        _save_graph(folder, spec)
        _save_tokenizer(folder)
        _save_manifest(folder, spec, **(manifest or {}))
        return folder

    return make


@dataclasses.dataclass
class Builder:
    """Collects nodes of a graph whose inputs are float32 unless their name says otherwise."""

    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    constants: list[ir.Value] = dataclasses.field(default_factory=list)

    def input(self, name: str, *shape: int | str) -> ir.Value:
        kind = ir.DataType.INT64 if name.endswith(("ids", "mask")) else ir.DataType.FLOAT
        return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
        self.constants.append(value)
        return value

    def add(self, operator: str, *inputs: ir.Value, name: str = "", **attributes: Any) -> ir.Value:
        self.nodes.append(ir.node(operator, list(inputs), attributes))
        output = self.nodes[-1].outputs[0]
        output.name, output.type = name or f"{operator}_{len(self.nodes)}", ir.TensorType(ir.DataType.FLOAT)
        return output

    def save(self, folder: Path, inputs: list[ir.Value], outputs: list[ir.Value]) -> None:
        graph = ir.Graph(
            inputs, outputs, nodes=self.nodes, initializers=self.constants, opset_imports={"": 20}, name="g"
        )
        ir.save(ir.Model(graph, ir_version=10), folder / "model.onnx")


def _tagger(build: Builder) -> tuple[list[ir.Value], list[ir.Value]]:
    ids = build.input("input_ids", "batch", "tokens")
    hidden = build.add("Gather", build.constant("table", seeded(len(WORDS), WIDTH)), ids)
    return [ids], [build.add("MatMul", hidden, build.constant("matrix", seeded(WIDTH, 5)), name="logits")]


def _rater(build: Builder) -> tuple[list[ir.Value], list[ir.Value]]:
    ids = build.input("input_ids", "batch", "tokens")
    hidden = build.add("Gather", build.constant("table", seeded(len(WORDS), WIDTH)), ids)
    mean = build.add("ReduceMean", hidden, build.constant("axes", np.array([1])), keepdims=0)
    return [ids], [build.add("MatMul", mean, build.constant("matrix", seeded(WIDTH, 1)), name="logits")]


def _reader(build: Builder) -> tuple[list[ir.Value], list[ir.Value]]:
    """Logits of a token by its id alone: w10 begins an answer, w12 ends it."""
    ids = build.input("input_ids", "batch", "tokens")
    sides = {"start_logits": 4 + 10, "end_logits": 4 + 12}
    tables = {name: np.zeros(len(WORDS), np.float32) for name in sides}
    for name, index in sides.items():
        tables[name][index] = 5
    return [ids], [build.add("Gather", build.constant(f"{n}_table", t), ids, name=n) for n, t in tables.items()]


def _seer(build: Builder) -> tuple[list[ir.Value], list[ir.Value]]:
    pixels = build.input("pixel_values", "batch", 3, 4, 6)
    mean = build.add("ReduceMean", pixels, build.constant("axes", np.array([2, 3])), keepdims=0)
    return [pixels], [build.add("MatMul", mean, build.constant("matrix", seeded(3, 4)), name="logits")]


def _writer(build: Builder) -> tuple[list[ir.Value], list[ir.Value]]:
    """logits[t] = (sum of the embeddings of tokens 0 … t) @ matrix; the cache holds the embeddings."""
    ids, past = build.input("input_ids", "batch", "new"), build.input("past.key", "batch", 1, "past", WIDTH)
    mask = build.input("attention_mask", "batch", "all")
    hidden = build.add("Gather", build.constant("table", seeded(len(WORDS), WIDTH)), ids)  # (batch, new, WIDTH)
    before = build.add("ReduceSum", past, build.constant("axes", np.array([1, 2])), keepdims=0)  # (batch, WIDTH)
    before = build.add("Unsqueeze", before, build.constant("one", np.array([1])))
    sums = build.add("Add", build.add("CumSum", hidden, build.constant("tokens", np.array(1))), before)
    key = build.add("Unsqueeze", hidden, build.constant("head", np.array([1])))
    present = build.add("Concat", past, key, name="present.key", axis=2)
    logits = build.add("MatMul", sums, build.constant("matrix", seeded(WIDTH, len(WORDS))), name="logits")
    return [ids, mask, past], [logits, present]


PICTURE = Image(resize=[4, 6], crop=[], resample="bilinear", rescale=1 / 255, mean=[0.5] * 3, std=[0.25] * 3)
DECODER = Generation([CacheEntry("past.key", "present.key", 1, WIDTH)], [2])
OTHER_TASKS: dict[str, tuple[Callable[[Builder], Any], dict[str, Any]]] = {
    "text-regression": (_rater, {"labels": ["score"]}),
    "token-classification": (_tagger, {"labels": ["O", "B-A", "I-A", "B-B", "I-B"]}),
    "question-answering": (_reader, {}),
    "image-classification": (_seer, {"image": dataclasses.asdict(PICTURE), "tokenizer": None}),
    "text-generation": (_writer, {"generation": dataclasses.asdict(DECODER)}),
}


@pytest.fixture(scope="session")
def task_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """task_bundle(task, **changes of the manifest) -> folder of a tiny bundle of a task in OTHER_TASKS."""

    def make(task: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("tasks") / task
        folder.mkdir()
        build, (construct, fields) = Builder(), OTHER_TASKS[task]
        inputs, outputs = construct(build)
        build.save(folder, inputs, outputs)
        _save_tokenizer(folder)
        names = {"inputs": [value.name for value in inputs], "outputs": [value.name for value in outputs]}
        _save_manifest(folder, Spec(task, task=task), **{**names, **fields, **changes})
        return folder

    return make


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock that keeps benchmarks apart lies there; other tests of this machine must not hold it."""
    folder = str(tmp_path_factory.mktemp("tmp"))
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)


@pytest.fixture(scope="session")
def tiny(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("tiny")


@pytest.fixture(scope="session")
def slow(make_bundle: Callable[..., Path]) -> Path:
    """The numbers of `tiny`, later."""
    return make_bundle("slow", work=4096)


@pytest.fixture(scope="session")
def wrong(make_bundle: Callable[..., Path]) -> Path:
    """Another embedding table, so other numbers."""
    return make_bundle("wrong", table=seeded(len(WORDS), WIDTH)[::-1].copy())


@pytest.fixture(scope="session")
def classifier(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("classifier", task="text-classification", matrix=seeded(WIDTH, 3), pooling="none")


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A private copy of a bundle, to be damaged."""
    return lambda folder: shutil.copytree(folder, tmp_path / folder.name)


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """write_lines(rows) -> a JSON Lines file; rows that are text are written as they are."""

    def write(rows: list[Any], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def fake_root(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """fake_root({"proc/meminfo": …}) -> a folder to read instead of /."""

    def make(files: dict[str, str]) -> Path:
        root = tmp_path / "root"
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return root

    return make


@pytest.fixture(scope="session")
def saten_run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """saten_run(*arguments, env=…, cwd=…) -> the finished `python -m saten_runtime`."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "saten_runtime", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)

    return run


@pytest.fixture(scope="session")
def blocked_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which no Python process can import what the device does not have."""
    folder = tmp_path_factory.mktemp("blocker")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in"
        " {'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxscript', 'saten_edge', 'saten_exporters'}:\n"
        "            raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}
