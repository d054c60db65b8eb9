"""lm-eval measures a decoder's bundle as it measures the model: likelihoods and continuations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from saten_edge.checkpoints.models import load_model
from saten_edge.integrations.transformers import ORTModelForCausalLM
from saten_exporters import export

pytest.importorskip("lm_eval", reason="needs lm-eval (extra saten-edge[lm-eval])")
# Sums over ten tokens of two float32 evaluations of two layers.
ABSOLUTE = 1e-3


Made = tuple[Path, Path]


@pytest.fixture(scope="module")
def made(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A decoder's folder, and its bundle."""
    folder, bundle = make_tiny("llama", "text-generation"), tmp_path_factory.mktemp("lm-eval") / "bundle"
    export(load_model(folder, "text-generation"), bundle)
    return folder, bundle


@pytest.mark.filterwarnings("ignore")  # of lm-eval's own
def test_lm_eval_finds_in_a_bundle_what_it_finds_in_the_model(made: Made) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    folder, bundle = made
    ends = {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    pairs = [("gar bel", " tor kin"), ("kin tor lin gar bel", " gar"), ("gar", " bel lin")]
    settings = {"max_gen_toks": 5, "until": ["zz"], "do_sample": False}

    def asked(model: Any, place: Path) -> tuple[list[Any], list[float], list[str]]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **ends)
        measured = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu", max_length=64)
        return (
            measured.loglikelihood([Instance("loglikelihood", {}, pair, k) for k, pair in enumerate(pairs)]),
            measured.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("gar bel tor kin lin",), 0)]),
            measured.generate_until([Instance("generate_until", {}, ("gar bel", settings), 0)]),
        )

    ours = asked(ORTModelForCausalLM.from_pretrained(bundle), bundle)
    theirs = asked(transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), folder)
    assert [value for value, _ in ours[0]] == pytest.approx([value for value, _ in theirs[0]], abs=ABSOLUTE)
    assert [value for value, _ in ours[0]] != pytest.approx([value for value, _ in theirs[0]][::-1], abs=ABSOLUTE)
    assert ours[1] == pytest.approx(theirs[1], abs=ABSOLUTE)
    assert ours[2] == theirs[2]
    assert ours[2][0]


@pytest.mark.filterwarnings("ignore")  # of lm-eval's own
def test_lm_evals_own_loop_measures_a_task_of_local_texts(
    made: Made, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    (folder, bundle), texts = made, ["gar bel tor kin", "lin tor", "bel gar lin kin tor gar"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "texts.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }

    def perplexity(model: Any) -> float:
        ends = {"bos_token": "[CLS]", "eos_token": "[SEP]"}
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **ends)
        measured = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu", max_length=64)
        found = evaluate(measured, {"local": ConfigurableTask(config=settings)}, bootstrap_iters=0)
        return float(found["results"]["local"]["word_perplexity,none"])

    def of(place: Path) -> float:
        return perplexity(transformers.AutoModelForCausalLM.from_pretrained(place).eval())

    ours, wanted = perplexity(ORTModelForCausalLM.from_pretrained(bundle)), of(folder)
    assert ours == pytest.approx(wanted, rel=ABSOLUTE)
    assert ours != pytest.approx(of(make_tiny("llama", "text-generation", seed=1)), rel=ABSOLUTE)  # the twin
