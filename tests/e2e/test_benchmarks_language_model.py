"""The table of language models: each row is judged once, by the same windows, and what is missing is told."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("language_model")


def test_every_row_has_a_name_an_engine_and_a_model(program):
    rows = program.ROWS.values()
    assert {row.engine for row in rows} == set(program.MODULES)
    assert {row.model.removesuffix(program.AFTER) for row in rows} == {"dense", *program.METHODS, *program.GPTQ}
    assert len({program.slug(row.name) for row in rows}) == len(rows)
    assert set(program.QUICK) <= set(program.ROWS)
    assert [row.kernels for row in rows if row.engine == "onnxruntime" and row.model == "dense"] == [None] * 6


def test_windows_do_not_overlap_and_are_of_the_text(program, tmp_path):
    from decoder import random_llama
    from tokenizers import Tokenizer

    texts = program.python_corpus(1, docstrings=False).train
    random_llama(program.TINY, texts, tmp_path / "model")
    data = tmp_path / "data" / "wikitext2"
    data.mkdir(parents=True)
    for name in ("train", "validation"):
        (data / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:40]))
    maker = program.Maker(tmp_path / "model", data.parent, tmp_path / "work", quick=True)
    first, second = maker.windows()["wikitext2"]
    whole = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    ids = [one for text in texts[:40] for one in whole.encode(text).ids]
    assert (first, second) == (ids[: program.CONTEXT], ids[program.CONTEXT : 2 * program.CONTEXT])
    assert list(program.Maker(tmp_path / "model", None, tmp_path / "work", quick=True).windows()) == ["docstrings"]


def test_the_table_of_language_models_has_every_result_and_the_times_that_there_are(program, tmp_path):
    for place, name in enumerate(("ORT dense fp32", "saten-u 0.50 int4")):
        judged = {"perplexity": 20.0 + place, "kl": place / 8, "agreement": 1 - place / 4, "tokens": 9}
        found = {"row": name, "bytes": 4e6, "wikitext2": judged, "docstrings": judged}
        (tmp_path / f"{program.slug(name)}.json").write_text(json.dumps(found))
    lines = program.table_text([*program.rows_of(tmp_path)]).splitlines()
    untimed = "| – | – | – | – | – |"
    assert lines[2] == f"| ORT dense fp32 | 4.0 | 20 | 0.000 | 100.0 | 20 | 0.000 | 100.0 {untimed}"
    assert lines[3] == f"| saten-u 0.50 int4 | 4.0 | 21 | 0.125 | 75.0 | 21 | 0.125 | 75.0 {untimed}"
    times = {"ms": {"pp512": 256.0, "tg64": 5.0}, "of_file": {"pp512": [0.5, 0.4, 0.6], "tg64": None}}
    (tmp_path / "times.json").write_text(
        json.dumps({"saten-u 0.50 int4": {**times, "peak_anon_bytes": 7e6, "failed": None}})
    )
    lines = program.table_text([*program.rows_of(tmp_path)]).splitlines()
    assert lines[2].endswith(untimed)
    assert lines[3].endswith("| 2000 | 0.50 (0.40–0.60) | 200 | – | 7 |")
    assert "<svg" in program.picture([*program.rows_of(tmp_path)])


def test_a_run_makes_what_is_missing_and_tells_what_it_cannot(program, warm_python, offline, tmp_path):
    environment = {**offline, "SATEN_WARM_PYTHON": shlex.join(warm_python)}
    out = tmp_path / "table.json"
    command = [*warm_python, str(FOLDER / "language_model.py"), "--quick", "--work", str(tmp_path / "work")]
    command += ["--rows", "dense|file|0.50", "-o", str(out)]
    peers = int(find_spec("llama_cpp") is not None)
    for again in (False, True):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(": done") == (0 if again else 3 + peers)
        assert done.stderr.count(f"{program.FILE}: No module named 'llama_cpp'") == 1 - peers
    rows = {row["row"]: row for row in json.loads(out.read_text())["rows"]}
    dense, int8, svd = (rows[name] for name in ("ORT dense fp32", "ORT dense int8", "svd 0.50 int8"))
    assert dense["docstrings"]["kl"] == pytest.approx(0, abs=1e-6)
    assert dense["docstrings"]["tokens"] == 2 * 511
    assert 0 < int8["docstrings"]["kl"] < svd["docstrings"]["kl"]
    assert svd["bytes"] < int8["bytes"] < dense["bytes"]
    if peers:
        assert rows[program.FILE]["docstrings"]["kl"] == pytest.approx(0, abs=1e-4)
    assert all(row["times"]["ms"]["tg64"] > 0 and row["times"]["failed"] is None for row in rows.values())
    assert done.stdout == out.with_suffix(".md").read_text()
