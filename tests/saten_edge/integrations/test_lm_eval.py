"""lm-eval measures a decoder's bundle as it measures the model: likelihoods and continuations."""

from __future__ import annotations

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


@pytest.mark.slow  # it is lm-eval that takes long to import
@pytest.mark.filterwarnings("ignore")  # of lm-eval's own
def test_lm_eval_finds_in_a_bundle_what_it_finds_in_the_model(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    folder = make_tiny("llama", "text-generation")
    export(load_model(folder, "text-generation"), tmp_path / "bundle")
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

    ours = asked(ORTModelForCausalLM.from_pretrained(tmp_path / "bundle"), tmp_path / "bundle")
    theirs = asked(transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), folder)
    assert [value for value, _ in ours[0]] == pytest.approx([value for value, _ in theirs[0]], abs=ABSOLUTE)
    assert [value for value, _ in ours[0]] != pytest.approx([value for value, _ in theirs[0]][::-1], abs=ABSOLUTE)
    assert ours[1] == pytest.approx(theirs[1], abs=ABSOLUTE)
    assert ours[2] == theirs[2]
    assert ours[2][0]
