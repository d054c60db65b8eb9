"""Bundles in transformers' pipelines and under optimum's names, against the models that they were made of."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from saten_edge.checkpoints.models import load_model
from saten_edge.integrations import transformers as ours
from saten_exporters import export
from saten_runtime import Runner, Sampling
from saten_runtime.errors import UsageError
from saten_runtime.vocabulary.tasks import HUB_TASKS, TASKS

# Two float32 evaluations of two layers.
ABSOLUTE = 1e-4
Pair = tuple[Path, Path]

KINDS = {
    "feature-extraction": ("bert", {}),
    "text-classification": ("bert", {"num_labels": 3}),
    "token-classification": ("bert", {"num_labels": 3}),
    "question-answering": ("bert", {}),
    "image-classification": ("vit", {"num_labels": 3}),
    "text-generation": ("llama", {}),
}


@pytest.fixture(scope="module")
def pair(make_tiny: Callable[..., Path], shared: Any) -> Callable[[str], Pair]:
    """pair(task) -> a tiny model and the bundle that was made of it."""

    def get(task: str) -> Pair:
        model_type, options = KINDS[task]
        model = make_tiny(model_type, task, **options)
        return model, shared(
            f"bundles/integrations-{task}", lambda out: export(load_model(model, task), out, name=task)
        )

    return get


def auto(task: str, model: Path) -> Any:
    return getattr(transformers, HUB_TASKS[task].auto).from_pretrained(model).eval()


def test_every_task_has_a_model() -> None:
    assert set(ours.MODELS) == set(TASKS)
    assert set(KINDS) == {task.hub for task in TASKS.values()}


@pytest.mark.parametrize("task", [task for task in KINDS if task not in ("image-classification", "text-generation")])
def test_outputs_are_those_of_the_model_by_name(task: str, pair: Callable[[str], Pair], texts: list[str]) -> None:
    model, bundle = pair(task)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundle)
    batch = tokenizer(texts[:4], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = auto(task, model)(**batch)
    found = ours.load_bundle(bundle)(**batch)
    kept = batch["attention_mask"].bool()
    for name in TASKS[task].outputs:
        got, wanted = found[name], expected[name]
        got, wanted = (got, wanted) if TASKS[task].per_item else (got[kept], wanted[kept])
        torch.testing.assert_close(got, wanted, atol=ABSOLUTE, rtol=0)
        assert (got.flip(0) - wanted).abs().max() > 10 * ABSOLUTE  # another order would be seen
    assert type(found).__name__.endswith("Output")


CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "feature-extraction": (["gar bel tor", "kin"], {}),
    "text-classification": (["gar bel tor", "kin"], {"top_k": None}),
    "token-classification": (["gar bel tor", "kin"], {"aggregation_strategy": "simple"}),
    "text-generation": (["gar bel", "kin tor lin gar"], {"max_new_tokens": 6, "do_sample": False}),
}


def rounded(value: Any) -> Any:
    """With numbers to four digits, which is what two evaluations have in common."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return pytest.approx(float(value), abs=1e-3) if isinstance(value, float | np.floating) else value


@pytest.mark.parametrize("task", CALLS)
def test_a_pipeline_says_what_it_says_of_the_model(
    task: str, pair: Callable[[str], Pair], caplog: pytest.LogCaptureFixture
) -> None:
    model, bundle = pair(task)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    theirs = transformers.pipeline(task, model=auto(task, model), tokenizer=tokenizer, device="cpu")
    given, how = CALLS[task]
    found = ours.pipeline(task, bundle)(given, **how)
    assert found == rounded(theirs(given, **how))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert ours.pipeline(model=bundle).task == task


def test_a_pipeline_of_pictures(pair: Callable[[str], Pair], images: list[Any]) -> None:
    model, bundle = pair("image-classification")
    processor = transformers.AutoImageProcessor.from_pretrained(model)
    theirs = transformers.pipeline(
        "image-classification", model=auto("image-classification", model), image_processor=processor, device="cpu"
    )
    found = ours.pipeline("image-classification", bundle)(images[:3])
    assert found == rounded(theirs(images[:3]))
    assert found != rounded(theirs(images[3:6]))


def test_generate_is_that_of_the_model_and_of_the_runner(pair: Callable[[str], Pair]) -> None:
    model, bundle = pair("text-generation")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundle)
    batch = tokenizer(["gar bel", "kin tor lin gar"], return_tensors="pt", padding=True, padding_side="left")
    batch.pop("token_type_ids", None)
    decoder = ours.ORTModelForCausalLM.from_pretrained(bundle, provider="CPUExecutionProvider")
    for how in ({"do_sample": False}, {"do_sample": False, "repetition_penalty": 1.5}):
        expected = auto("text-generation", model).generate(**batch, max_new_tokens=8, **how)
        assert torch.equal(decoder.generate(**batch, max_new_tokens=8, **how), expected)
    alone = tokenizer(["gar bel"], return_tensors="pt")["input_ids"]
    by_runner = list(Runner.load(bundle).generate_ids("gar bel", Sampling(8, 0.0)))
    made = decoder.generate(alone, max_new_tokens=8, do_sample=False)[0, alone.shape[1] :].tolist()
    assert made[: len(by_runner)] == by_runner
    assert len(by_runner) > 2


def test_logits_of_padded_rows_and_of_a_cache_are_those_of_the_model(pair: Callable[[str], Pair]) -> None:
    model, bundle = pair("text-generation")
    decoder, theirs = ours.load_bundle(bundle), auto("text-generation", model)
    ids = torch.arange(10, 22).reshape(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    with torch.no_grad():
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        padded = theirs(ids, attention_mask=mask, position_ids=position_ids).logits
        whole = theirs(ids).logits
    kept = mask.bool()
    told = decoder(ids, attention_mask=mask, position_ids=position_ids).logits
    torch.testing.assert_close(told[kept], padded[kept], atol=ABSOLUTE, rtol=0)
    assert torch.equal(decoder(ids, attention_mask=mask).logits[kept], told[kept])
    torch.testing.assert_close(decoder(ids).logits, whole, atol=ABSOLUTE, rtol=0)
    assert (padded[kept] - whole[kept]).abs().max() > 10 * ABSOLUTE
    first = decoder(ids[:1, :4], use_cache=True)
    second = decoder(ids[:1, 4:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole[:1], atol=ABSOLUTE, rtol=0)
    torch.testing.assert_close(decoder(ids, logits_to_keep=1).logits, whole[:, -1:], atol=ABSOLUTE, rtol=0)


def test_what_a_bundle_cannot_is_refused(pair: Callable[[str], Pair], tmp_path: Path) -> None:
    _, classifier = pair("text-classification")
    _, writer = pair("text-generation")
    decoder, model = ours.load_bundle(writer), ours.load_bundle(classifier)
    ids = torch.ones(1, 3, dtype=torch.int64)
    for words, call in {
        "is of the task text-classification; ORTModelForCausalLM takes text-generation": lambda: (
            ours.ORTModelForCausalLM.from_pretrained(classifier)
        ),
        "provider='CUDAExecutionProvider' is not followed": lambda: ours.ORTModelForCausalLM.from_pretrained(
            writer, provider="CUDAExecutionProvider"
        ),
        "one text of a prompt": lambda: decoder.generate(ids, num_beams=2),
        "a bundle runs on the CPU": lambda: model.to("cuda"),
        "input_ids is missing": lambda: model(attention_mask=ids),
        "position_ids are not those": lambda: decoder(ids, position_ids=torch.arange(1, 4)[None]),
        "takes no pixel_values": lambda: model(ids, pixel_values=ids),
        "transformers 5 has no pipeline for question-answering": lambda: ours.pipeline(
            model=pair("question-answering")[1]
        ),
        "model is missing": lambda: ours.pipeline("text-classification"),
    }.items():
        with pytest.raises(UsageError, match=words.replace("(", r"\(")):
            call()
    model.save_pretrained(tmp_path / "copy")
    again = ours.ORTModelForSequenceClassification.from_pretrained(tmp_path / "copy")
    assert torch.equal(again(ids).logits, model(ids).logits)
