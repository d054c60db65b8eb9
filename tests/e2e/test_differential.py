"""Random small models, tokenizers and settings: a device says of a batch what transformers says of each item alone.

transformers' own classes read the folder and take one item at a time, so that nothing is padded; pooling is plain
torch, and sentence-transformers where it is installed. The examples are the same in every run, and each prints what it
was made of.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import tempfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st
from random_models import CELLS, Case, cases, length_of, save_model
from tokenizers import normalizers

from saten_edge.checkpoints.architectures import ARCHITECTURES
from saten_edge.checkpoints.models import load_model
from saten_edge.checkpoints.sentences import OLD_POOLINGS
from saten_exporters import export
from saten_runtime.errors import UsageError
from saten_runtime.run.generation import Sampling
from saten_runtime.run.runner import Runner
from saten_runtime.run.text import stride_of
from saten_runtime.vocabulary.tasks import HUB_TASKS, IMAGES

LONGEST_ANSWER, NEW_TOKENS = 30, 6
# Rounding of a sum depends on the length that it is padded to, so that items of a batch get a multiple of the bound
# that their bundle was verified with.
MARGIN = 8.0


# --- what transformers says of one item --------------------------------------------------------------------------


@dataclass
class Oracle:
    """The folder as transformers reads it."""

    case: Case
    model: Any
    tokenizer: Any
    processor: Any
    library: Any = None  # of sentence-transformers

    def outputs(self, item: Any) -> Any:
        with torch.no_grad():
            return self.model(**self.inputs(item))

    def inputs(self, item: Any) -> Any:
        if self.processor is not None:
            # Otherwise a picture of few pixels is taken for one of many channels.
            return self.processor(images=[item], input_data_format="channels_last", return_tensors="pt")
        parts = item if isinstance(item, tuple) else (item,)
        if self.case.task == "text-generation":
            return self.tokenizer(item, return_tensors="pt")
        if self.case.task == "feature-extraction":
            parts = ((self.case.how["prompt"] or "") + item,)
        # As columns: a call with two texts would take an empty second one for none.
        columns = [[part] for part in parts]
        return self.tokenizer(*columns, truncation=True, max_length=length_of(self.case), return_tensors="pt")

    def windows(self, question: str, context: str) -> Any:
        """All of a context, in windows of the length that a device reads."""
        longest = length_of(self.case)
        return self.tokenizer(
            [question],
            [context],
            truncation="only_second",
            max_length=longest,
            stride=stride_of(longest),
            return_overflowing_tokens=True,
            padding=False,
        )


def read(case: Case, folder: Path) -> Oracle:
    model = getattr(transformers, HUB_TASKS[case.task].auto).from_pretrained(folder).eval()
    if ARCHITECTURES[case.family].kind == "vision":
        return Oracle(case, model, None, transformers.AutoImageProcessor.from_pretrained(folder))
    tokenizer, library = transformers.AutoTokenizer.from_pretrained(folder), None
    if case.task == "feature-extraction" and case.how["do_lower_case"]:
        backend = tokenizer.backend_tokenizer
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), backend.normalizer])
    if case.task == "feature-extraction" and importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers import SentenceTransformer

        library = SentenceTransformer(str(folder), device="cpu")
    return Oracle(case, model, tokenizer, None, library)


def places(hidden: torch.Tensor) -> torch.Tensor:
    return torch.arange(1, len(hidden) + 1, dtype=hidden.dtype)[:, None]


# Of the vectors of one text's tokens, (tokens, width), without padding.
POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cls": lambda hidden: hidden[0],
    "lasttoken": lambda hidden: hidden[-1],
    "max": lambda hidden: hidden.max(0).values,
    "mean": lambda hidden: hidden.mean(0),
    "mean_sqrt_len_tokens": lambda hidden: hidden.sum(0) / math.sqrt(len(hidden)),
    "weightedmean": lambda hidden: (hidden * places(hidden)).sum(0) / places(hidden).sum(),
}


def pooled(oracle: Oracle, item: Any) -> np.ndarray:
    hidden, how = oracle.outputs(item).last_hidden_state[0].double(), oracle.case.how
    names = how.get("pooling", ["mean"])
    # In the order of the switches, where it was written by switches.
    names = [name for name in OLD_POOLINGS.values() if name in names] if how.get("old_spelling") else names
    vector = torch.cat([POOLS[name](hidden) for name in names])
    vector = vector / vector.norm() if how.get("normalize", True) else vector
    return vector[: how.get("truncate_dim")].numpy()


def close(found: Any, wanted: Any, bound: float) -> None:
    found, wanted = np.asarray(found, float), np.asarray(wanted, float)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= bound * max(1.0, np.abs(wanted).max())


def compare_vectors(oracle: Oracle, runner: Runner, items: list[Any], bound: float) -> None:
    found = runner.predict(items, batch_size=oracle.case.batch)
    for vector, item in zip(found, items, strict=True):
        close(vector, pooled(oracle, item), bound)
        if oracle.library is not None:
            close(vector, oracle.library.encode([item])[0], bound)


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
        windows = oracle.windows(*item)
        close(answer.score, max(best(oracle, windows, index) for index in range(len(windows["input_ids"]))), 2 * bound)
        assert item[1][answer.start : answer.end] == answer.text


def best(oracle: Oracle, windows: Any, index: int) -> float:
    """The largest sum of a start and an end in one window."""
    names = [name for name in oracle.tokenizer.model_input_names if name in windows]
    with torch.no_grad():
        outputs = oracle.model(**{name: torch.tensor([windows[name][index]]) for name in names})
    starts, ends = outputs.start_logits[0], outputs.end_logits[0]
    places = [place for place, part in enumerate(windows.sequence_ids(index)) if part == 1]
    pairs = itertools.product(places, places)
    return max(float(starts[a] + ends[b]) for a, b in pairs if a <= b < a + LONGEST_ANSWER)


def generated(oracle: Oracle, ids: torch.Tensor, most: int) -> tuple[list[int], list[torch.Tensor]]:
    """The tokens that transformers makes, and the scores of each by the rules of generation_config.json."""
    how = {"max_new_tokens": most, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the shortest length is beyond the longest
        made = oracle.model.generate(ids, attention_mask=torch.ones_like(ids), **how)
    return made.sequences[0, ids.shape[1] :].tolist(), [row[0].double() for row in made.scores]


def compare_tokens(oracle: Oracle, runner: Runner, items: list[Any], bound: float) -> None:
    """The device chooses what transformers chooses; where two tokens are equally likely, either."""
    for item in items:
        ids = oracle.inputs(item)["input_ids"]
        room = oracle.case.how["positions"] - ids.shape[1] + 1
        if room < 1:
            with pytest.raises(UsageError):
                list(runner.generate_ids(item, Sampling(max_tokens=NEW_TOKENS)))
            continue
        wanted, scores = generated(oracle, ids, min(NEW_TOKENS, room))
        made = list(runner.generate_ids(item, Sampling(max_tokens=NEW_TOKENS)))
        made += runner.bundle.generation.stop_ids[:1] * (len(made) < len(scores))
        assert len(made) <= len(scores)
        for token, other, score in zip(made, wanted, scores, strict=False):
            stops = runner.bundle.generation.stop_ids
            if token == other or {token, other} <= set(stops):
                continue
            close(score[token], score.max(), 2 * bound)
            break  # the texts differ from here


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


# A decoder's classifier whose config and tokenizer name different paddings.
PADDED = Case(
    "llama",
    "text-classification",
    seed=1,
    config={"num_labels": 3, "pad_token_id": 0, "tie_word_embeddings": False},
    names={"pad_token": "[SEP]", "padding_side": "right", "masked": True},
    how={
        "model": "wordpiece",
        "normalizer": "lower",
        "template": "[CLS] $A",
        "spare": 0,
        "positions": 32,
        "shorter": 0,
        "added": False,
    },
    items=["the cat", "sat on the mat.", "zap"],
)
GREY = Case(
    "vit",
    "image-classification",
    seed=1,
    config={"num_labels": 4, "num_channels": 1},
    how={"do_normalize": True, "do_rescale": True, "resample": 0, "size": {"height": 32, "width": 32}},
    items=[(32, 32), (9, 50), (1, 1)],
)
# Of a text of one token, the logit of where an answer begins is 0.0015, to which numbers of about 1 cancel.
CANCELLED = Case(
    "distilbert",
    "question-answering",
    seed=7370,
    config={"activation": "gelu", "sinusoidal_pos_embds": True, "n_layers": 1, "pad_token_id": 1},
    names={"pad_token": "[MASK]", "padding_side": "left", "extra_special_tokens": ["sat"], "masked": False},
    how={
        "model": "bytes behind a space",
        "normalizer": "bare",
        "template": "[CLS] $A [SEP]",
        "spare": 0,
        "positions": 41,
        "shorter": 5,
        "added": False,
    },
    items=[("", "Quux sat.")],
)


@settings(max_examples=3, **PATIENT)
@example(case=PADDED)
@example(case=GREY)
@example(case=CANCELLED)
@given(case=st.sampled_from(CELLS).flatmap(lambda cell: cases(*cell)))
def test_six_models_say_on_a_device_what_they_say_in_python(case: Case, tiny_sizes: dict[str, dict[str, Any]]) -> None:
    oracle, runner, bound = check(case, tiny_sizes[case.family])
    spoil(oracle.model)
    with pytest.raises(AssertionError):
        COMPARE[case.task](oracle, runner, items_of(case), bound)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task"), CELLS)
def test_three_hundred_do(family: str, task: str, tiny_sizes: dict[str, dict[str, Any]]) -> None:
    """As many of each family and task, which have a seed of their own; the first of them is the plainest."""

    @seed(zlib.crc32(f"{family} {task}".encode()))
    @settings(max_examples=-(-300 // len(CELLS)), **PATIENT)
    @given(case=cases(family, task))
    def alike(case: Case) -> None:
        check(case, tiny_sizes[family])

    alike()


def test_every_task_is_compared() -> None:
    assert set(COMPARE) == set(HUB_TASKS)
