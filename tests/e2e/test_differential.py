"""Random small models, tokenizers and settings: a device says of a batch what transformers says of each item alone.

transformers' own classes read the folder and take one item at a time, so that nothing is padded; pooling is plain
torch. The examples are the same in every run, and each prints what it was made of.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from saten_edge.checkpoints.architectures import ARCHITECTURES
from saten_edge.checkpoints.models import load_model
from saten_exporters import export
from saten_runtime.run.generation import Sampling
from saten_runtime.run.runner import Runner
from saten_runtime.vocabulary.tasks import HUB_TASKS, IMAGES

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?"
PIECES = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "cat", "sat", "on", "mat"]
ADDED = ["zap", "Quux"]
SIDE, LONGEST_ANSWER, NEW_TOKENS = 32, 30, 6
CELLS = [(family, task) for family, row in ARCHITECTURES.items() for task in row.tasks]
# Rounding of a sum depends on the length that it is padded to, so that items of a batch get a multiple of the bound
# that their bundle was verified with.
MARGIN = 8.0


@dataclass(frozen=True)
class Case:
    """What one example is made of. config: entries of the model's config; names: of the tokenizer's; how: the rest."""

    family: str
    task: str
    seed: int
    config: dict[str, Any]
    names: dict[str, Any] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)
    batch: int = 8


WORDS = st.sampled_from(
    ["the", "cat", "Cat", "MAT", "sat", "zap", "Quux", "quux", "on.", "b4", "éa", "[MASK]", "don't", "日"]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=60).map(" ".join)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    family, task = draw(st.sampled_from(CELLS))
    seed, batch = draw(st.integers(0, 9999)), draw(st.integers(1, 8))
    labels = draw(st.integers(2 if task in ("token-classification", "image-classification") else 1, 4))
    config: dict[str, Any] = {"num_labels": labels} if HUB_TASKS[task].labels else {}
    if ARCHITECTURES[family].kind == "vision":
        config["num_channels"] = draw(st.sampled_from([1, 3]))
        how = {name: draw(st.booleans()) for name in ("do_normalize", "do_rescale")}
        sizes = draw(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=5))
        return Case(family, task, seed, config, how=how, items=sizes, batch=batch)
    decoder = ARCHITECTURES[family].kind == "decoder"
    config["pad_token_id"] = draw(st.sampled_from([0, 1, 2, 4, 11, *[None] * decoder]))
    if decoder:
        config["tie_word_embeddings"] = draw(st.booleans())
    names = {
        "pad_token": draw(st.sampled_from(["[PAD]", "[MASK]", "[SEP]"])),
        "padding_side": draw(st.sampled_from(["left", "right"])),
        "masked": draw(st.booleans()),
    }
    how = {
        "lowercase": draw(st.booleans()),
        "template": draw(st.sampled_from(["$A [SEP]", "[CLS] $A"] if decoder else ["[CLS] $A [SEP]"])),
        "spare": draw(st.integers(0, 4)),
        "positions": draw(st.integers(24, 48)),
        "added": draw(st.booleans()),
        "pooling": draw(st.sampled_from(["cls_token", "mean_tokens"])),
        "normalize": draw(st.booleans()),
        "max_seq_length": draw(st.sampled_from([None, 9, 20])),
    }
    item = st.tuples(st.just("the cat?"), st.just("the cat sat on the mat")) if task == "question-answering" else TEXTS
    item = st.lists(WORDS, min_size=1, max_size=6).map(" ".join) if task == "text-generation" else item
    return Case(family, task, seed, config, names, how, draw(st.lists(item, min_size=1, max_size=9)), batch)


# --- the model, as a folder --------------------------------------------------------------------------------------


def save_tokenizer(case: Case, folder: Path, longest: int) -> int:
    """Write it, and return how many ids it makes."""
    how, names = case.how, dict(case.names)
    made = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=how["lowercase"])
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    ids = [(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single=how["template"], pair=pair, special_tokens=ids)
    if how["added"]:
        made.add_tokens(ADDED)
    taken = ["input_ids", *["token_type_ids"] * (case.family in ("bert", "electra"))]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=longest,
        model_input_names=[*taken, *["attention_mask"] * names.pop("masked")],
        **{"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
        **{"eos_token": "[SEP]", **names},
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def save_sentences(case: Case, folder: Path) -> None:
    """What sentence-transformers keeps beside a model."""
    kinds = {
        "": "Transformer",
        "1_Pooling": "Pooling",
        **({"2_Normalize": "Normalize"} if case.how["normalize"] else {}),
    }
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    modes = {f"pooling_mode_{name}": name == case.how["pooling"] for name in ("cls_token", "mean_tokens")}
    side = {"max_seq_length": case.how["max_seq_length"], "do_lower_case": False}
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **modes}))
    (folder / "sentence_bert_config.json").write_text(json.dumps(side))


def save_model(case: Case, folder: Path, sizes: dict[str, Any]) -> None:
    """The model and what prepares its inputs."""
    entries = {**sizes, "initializer_range": 0.2, **case.config}
    config = transformers.AutoConfig.for_model(case.family, **entries)
    if "image_size" in sizes:
        channels = case.config["num_channels"]
        middle = {"image_mean": [0.4, 0.5, 0.6][:channels], "image_std": [0.2, 0.3, 0.4][:channels]}
        size = {"height": SIDE, "width": SIDE}
        transformers.ViTImageProcessorPil(size=size, resample=0, **middle, **case.how).save_pretrained(folder)
    else:
        # RoBERTa, its kin and MPNet count positions from the one after their padding's.
        kin = dict.fromkeys(("roberta", "xlm-roberta", "camembert"), case.config["pad_token_id"])
        first = {**kin, "mpnet": 1}.get(case.family, -1) + 1
        config.max_position_embeddings = case.how["positions"]
        config.vocab_size = save_tokenizer(case, folder, case.how["positions"] - first) + case.how["spare"]
        if case.task == "feature-extraction":
            save_sentences(case, folder)
    torch.manual_seed(case.seed)
    model = getattr(transformers, HUB_TASKS[case.task].auto).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # no bias is zero, no norm is one
    model.save_pretrained(folder)


# --- what transformers says of one item --------------------------------------------------------------------------


@dataclass
class Oracle:
    """The folder as transformers reads it."""

    case: Case
    model: Any
    tokenizer: Any
    processor: Any

    def outputs(self, item: Any) -> Any:
        with torch.no_grad():
            return self.model(**self.inputs(item))

    def inputs(self, item: Any) -> Any:
        if self.processor is not None:
            return self.processor(images=[item], return_tensors="pt")
        limit = self.case.how["max_seq_length"] if self.case.task == "feature-extraction" else None
        cut = min(limit or 10**9, self.tokenizer.model_max_length)
        parts = item if isinstance(item, tuple) else (item,)
        return self.tokenizer(*parts, truncation=True, max_length=cut, return_tensors="pt")


def read(case: Case, folder: Path) -> Oracle:
    auto = getattr(transformers, HUB_TASKS[case.task].auto)
    if case.family == "deit" and case.task == "image-classification":
        auto = transformers.DeiTForImageClassification
    model = auto.from_pretrained(folder).eval()
    if ARCHITECTURES[case.family].kind == "vision":
        return Oracle(case, model, None, transformers.AutoImageProcessor.from_pretrained(folder))
    return Oracle(case, model, transformers.AutoTokenizer.from_pretrained(folder), None)


def pooled(oracle: Oracle, item: Any) -> np.ndarray:
    hidden, how = oracle.outputs(item).last_hidden_state[0].double(), oracle.case.how
    vector = hidden[0] if how.get("pooling") == "cls_token" else hidden.mean(0)
    return (vector / vector.norm() if how.get("normalize", True) else vector).numpy()


def close(found: Any, wanted: Any, bound: float) -> None:
    found, wanted = np.asarray(found, float), np.asarray(wanted, float)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= bound * max(1.0, np.abs(wanted).max())


def compare_vectors(oracle: Oracle, runner: Runner, items: list[Any], bound: float) -> None:
    found = runner.predict(items, batch_size=oracle.case.batch)
    for vector, item in zip(found, items, strict=True):
        close(vector, pooled(oracle, item), bound)


def compare_classes(oracle: Oracle, runner: Runner, items: list[Any], bound: float) -> None:
    found = runner.predict(items, batch_size=oracle.case.batch)
    rows = found[:, None] if isinstance(found, np.ndarray) else found.probabilities
    for row, item in zip(rows, items, strict=True):
        logits = oracle.outputs(item).logits[0].double()
        # The softmax moves no further than the logits did.
        scale = bound * max(1.0, float(logits.abs().max()))
        close(row, logits if len(logits) == 1 else logits.softmax(0), scale)


def compare_words(oracle: Oracle, runner: Runner, items: list[Any], bound: float) -> None:
    for words, item in zip(runner.predict(items, batch_size=oracle.case.batch), items, strict=True):
        encoded = oracle.inputs(item)
        logits = oracle.outputs(item).logits[0].double()
        of = encoded.word_ids(0)
        assert [word.index for word in words] == sorted({index for index in of if index is not None})
        for word in words:
            first = logits[of.index(word.index)]
            likeliest = first.softmax(0)
            close(word.probability, likeliest.max(), bound * max(1.0, float(first.abs().max())))
            close(likeliest[word.label], likeliest.max(), bound * max(1.0, float(first.abs().max())))
            span = encoded.word_to_chars(0, word.index)
            assert (word.start, word.end) == (span.start, span.end)


def compare_answers(oracle: Oracle, runner: Runner, items: list[Any], bound: float) -> None:
    for answer, item in zip(runner.predict(items, batch_size=oracle.case.batch), items, strict=True):
        outputs, parts = oracle.outputs(item), oracle.inputs(item).sequence_ids(0)
        starts, ends = outputs.start_logits[0], outputs.end_logits[0]
        places = [place for place, part in enumerate(parts) if part == 1]
        pairs = [(a, b) for a, b in itertools.product(places, places) if a <= b < a + LONGEST_ANSWER]
        close(answer.score, max(float(starts[a] + ends[b]) for a, b in pairs), 2 * bound)
        assert item[1][answer.start : answer.end] == answer.text


def compare_tokens(oracle: Oracle, runner: Runner, items: list[Any], bound: float) -> None:
    """Each token that the device chose is likeliest to torch, too, after what came before it."""
    stop = oracle.model.generation_config.eos_token_id
    for item in items:
        ids = oracle.inputs(item)["input_ids"]
        made = list(runner.generate_ids(item, Sampling(max_tokens=NEW_TOKENS, temperature=0.0)))
        assert len(made) <= NEW_TOKENS
        for token in [*made, *([stop] if len(made) < NEW_TOKENS and ids.shape[1] + len(made) < 24 else [])]:
            with torch.no_grad():
                logits = oracle.model(input_ids=ids).logits[0, -1].double()
            close(logits[token], logits.max(), 2 * bound)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


COMPARE: dict[str, Callable[[Oracle, Runner, list[Any], float], None]] = {
    "feature-extraction": compare_vectors,
    "text-classification": compare_classes,
    "image-classification": compare_classes,
    "token-classification": compare_words,
    "question-answering": compare_answers,
    "text-generation": compare_tokens,
}


def items_of(case: Case) -> list[Any]:
    if IMAGES not in HUB_TASKS[case.task].takes or ARCHITECTURES[case.family].kind != "vision":
        return case.items
    random, channels = np.random.default_rng(case.seed), case.config["num_channels"]
    return [random.integers(0, 256, (*size, channels), np.uint8) for size in case.items]


def check(case: Case, sizes: dict[str, Any]) -> tuple[Oracle, Runner, float]:
    print(case)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(case, folder / "model", sizes)
        oracle, bundle = read(case, folder / "model"), folder / "bundle"
        made = export(load_model(folder / "model", case.task), bundle)
        runner, bound = Runner.load(bundle), MARGIN * made.manifest.tolerance["relative"]
        COMPARE[case.task](oracle, runner, items_of(case), bound)
    return oracle, runner, bound


def spoil(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


# An example takes seconds, so that one that fails is not shrunk.
PATIENT: dict[str, Any] = {
    "phases": (Phase.explicit, Phase.generate),
    "suppress_health_check": (HealthCheck.too_slow, HealthCheck.function_scoped_fixture),
}


# A decoder's classifier whose config and tokenizer name different paddings, and pictures of one channel.
PADDED = Case(
    "llama",
    "text-classification",
    seed=1,
    config={"num_labels": 3, "pad_token_id": 0, "tie_word_embeddings": False},
    names={"pad_token": "[SEP]", "padding_side": "right", "masked": True},
    how={"lowercase": True, "template": "[CLS] $A", "spare": 0, "positions": 32, "added": False},
    items=["the cat", "sat on the mat.", "zap"],
)
GREY = Case(
    "vit",
    "image-classification",
    seed=1,
    config={"num_labels": 4, "num_channels": 1},
    how={"do_normalize": True, "do_rescale": True},
    items=[(32, 32), (9, 50), (1, 1)],
)
# Of a text of one token, the logit of where an answer ends is almost 0.
CANCELLED = Case(
    "electra",
    "question-answering",
    seed=3407,
    config={"pad_token_id": 4},
    names={"pad_token": "[MASK]", "padding_side": "left", "masked": True},
    how={"lowercase": False, "template": "[CLS] $A [SEP]", "spare": 0, "positions": 31, "added": True},
    items=[("the cat?", "the cat sat on the mat")],
)


@settings(max_examples=8, **PATIENT)
@example(case=PADDED)
@example(case=GREY)
@example(case=CANCELLED)
@given(case=cases())
def test_ten_models_say_on_a_device_what_they_say_in_python(case: Case, tiny_sizes: dict[str, dict[str, Any]]) -> None:
    oracle, runner, bound = check(case, tiny_sizes[case.family])
    spoil(oracle.model)
    with pytest.raises(AssertionError):
        COMPARE[case.task](oracle, runner, items_of(case), bound)


@pytest.mark.slow
@settings(max_examples=300, **PATIENT)
@given(case=cases())
def test_three_hundred_do(case: Case, tiny_sizes: dict[str, dict[str, Any]]) -> None:
    check(case, tiny_sizes[case.family])


def test_every_task_is_compared() -> None:
    assert set(COMPARE) == set(HUB_TASKS)
