from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_runtime import Runner, __version__
from saten_runtime.cli import main

SatenRun = Callable[..., subprocess.CompletedProcess[str]]
COMMANDS = (
    *("predict", "generate", "chat", "bench", "eval", "profile", "validate", "serve", "floor", "doctor"),
    *("device", "calibrate"),
)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that ends with exit code 2 and no data."""
    assert main([str(argument) for argument in arguments]) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("saten-run: error: ")
    assert stderr.count("\n") == 1
    return stderr


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: saten-run" in capsys.readouterr().out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"saten-run {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["dance"], "'dance'"),
        (["bench"], "BUNDLE"),
        (["bench", "b", "-t", "two"], "'two': expected whole numbers with commas between them"),
        (["bench", "b", "--rounds", "0"], "rounds 0"),
        (["floor", "b", "-s", "1,,2"], "'1,,2': expected whole numbers"),
        (["bench", "b", "-s", "0,5"], "--tokens 0,5: expected different numbers of at least 1"),
        (["bench", "b", "--memory", "big"], "'big'"),
        (["bench", "nowhere"], "nowhere: no such folder"),
        (["predict", "nowhere"], "no text given"),
        (["predict", "nowhere", "x"], "nowhere: no such folder"),
        (["predict", "nowhere", "--file", "missing.txt"], "missing.txt: cannot be read (No such file"),
        (["eval", "nowhere"], "--data"),
        (["eval", "nowhere", "--data", "x"], "nowhere: no such folder"),
        (["serve"], "BUNDLE"),
    ],
)
def test_bad_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused(capsys, *arguments)


def test_predict_prints_json_lines(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("w3 w4\nw5 é\n", encoding="utf-8")
    assert main(["predict", str(tiny), "w1", "--file", str(file)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["w1", "w3 w4", "w5 é"]
    vectors = Runner.load(tiny).predict([row["text"] for row in rows])
    assert [row["embedding"] for row in rows] == vectors.tolist()


def test_predict_reads_standard_input(classifier: Path, saten_run: SatenRun) -> None:
    done = saten_run("predict", classifier, "--file", "-", input="w1 w2\n")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"text", "label", "probabilities"}


def predicted(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    """The lines of JSON that `saten-run predict` prints."""
    assert main(["predict", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "order",
    [
        ("BUNDLE", "w1", "w2", "-t", "1"),
        ("BUNDLE", "-t", "1", "w1", "w2"),
        ("-t", "1", "BUNDLE", "w1", "w2"),
        ("BUNDLE", "w1", "-t", "1", "w2"),
        ("-t", "1", "BUNDLE", "--batch", "2", "w1", "--memory", "fast", "w2", "-q"),
        ("-t", "1", "--", "BUNDLE", "w1", "w2"),
    ],
)
def test_options_may_stand_anywhere(order: tuple[str, ...], tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = predicted(capsys, *(tiny if word == "BUNDLE" else word for word in order))
    assert [row["text"] for row in rows] == ["w1", "w2"]


def test_an_unknown_option_is_refused_wherever_it_stands(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--thread-count", "2", tiny, "w1"), (tiny, "w1", "--thread-count")):
        assert "--thread-count" in refused(capsys, "predict", *words)
    assert "BUNDLE" in refused(capsys, "predict", "-t", "1")


def test_bundles_may_stand_on_both_sides_of_an_option(slow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["floor", str(slow), "-s", "8", str(slow), "--json"]) == 0
    assert {row["bundle"] for row in json.loads(capsys.readouterr().out)["floors"]} == {"slow", "slow#2"}


def test_predict_takes_two_texts_in_three_ways(
    classifier: Path, write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"text_a": "w1 w2", "text_b": "w3"}
    by_option = predicted(capsys, "--pair", *pair.values(), classifier, "--pair", "w3", "w1 w2")
    (by_line,) = predicted(capsys, classifier, "--file", write_lines([pair]))
    labelled = write_lines(["text_a,text_b,label", "w1 w2,w3,1"], "pairs.csv")
    (by_csv,) = predicted(capsys, classifier, "--file", labelled)
    assert by_option[0] == by_line == by_csv
    assert {name: by_line[name] for name in pair} == pair
    expected = Runner.load(classifier).predict([tuple(pair.values())]).probabilities.tolist()
    assert [by_line["probabilities"]] == expected
    assert by_option[1]["probabilities"] != by_option[0]["probabilities"]


def test_predict_answers_questions_in_every_order(
    task_bundle: Callable[..., Path], write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    reader, question, context = task_bundle("question-answering"), "w5", "w1 w10 w12"
    data = write_lines([{"question": question, "context": context, "answers": ["w10 w12"]}])
    orders = (
        (reader, question, "--context", context),
        (reader, "--context", context, question),
        ("--context", context, reader, question),
        (reader, "--pair", question, context),
        (reader, "--file", data),
    )
    for order in orders:
        (row,) = predicted(capsys, *order)
        assert (row["question"], row["text"]) == (question, "w10 w12")
    assert "--context" in refused(capsys, "predict", reader, question)
    assert "--context" in refused(capsys, "predict", reader, "--context", context, "--file", data)


# What `eval` scores a bundle on is what `predict` reads, and the inputs of each item are printed with it.
PREDICTED = {
    "tiny": [{"query": "w1", "answer": "w2"}, {"text_a": "w1", "text_b": "w2", "label": 0.5}, {"text": "w1"}],
    "classifier": [{"text": "w1", "label": 2}, {"text_a": "w1", "text_b": "w2", "label": 0}, {"text": "w1"}],
    "token-classification": [{"words": ["w1", "w2"], "labels": ["O", "B-A"]}, {"text": "w1 w2"}],
    "text-generation": [{"text": "w1"}],
    "image-classification": [{"image": "picture.npy", "label": 1}],
}


@pytest.mark.parametrize("name", PREDICTED)
def test_predict_reads_what_eval_reads(
    name: str,
    request: pytest.FixtureRequest,
    task_bundle: Callable[..., Path],
    write_lines: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = request.getfixturevalue(name) if name in ("tiny", "classifier") else task_bundle(name)
    for example in PREDICTED[name]:
        file = write_lines([example, example], "data.txt")  # the name says nothing: the first line does
        np.save(file.parent / "picture.npy", np.zeros((5, 7, 3), np.uint8))
        rows = predicted(capsys, bundle, "--file", file)
        assert len(rows) in (2, 4)
        assert rows[0] == rows[len(rows) // 2]
    for wrong in ({"strange": "w1"}, {**PREDICTED[name][0], next(iter(PREDICTED[name][0])): 5}):
        assert "data.jsonl:2: " in refused(
            capsys, "predict", bundle, "--file", write_lines([PREDICTED[name][0], wrong])
        )


def test_png_is_predicted_and_evaluated(
    task_bundle: Callable[..., Path], write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    bundle, pixels = task_bundle("image-classification"), np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    data = write_lines([{"image": "a.png", "label": 1}])
    png, npy = data.parent / "a.png", data.parent / "a.npy"
    pillow.fromarray(pixels).save(png)
    np.save(npy, pixels)
    (of_png,), (of_npy,), (of_data,) = (
        predicted(capsys, bundle, *words) for words in ((png,), (npy,), ("--file", data))
    )
    assert of_png["probabilities"] == of_npy["probabilities"] == of_data["probabilities"]
    assert main(["eval", str(bundle), "--data", str(data), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["rows"][0]["metrics"]
    assert metrics["top_1"] == float(of_png["label"] == 1)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--pair", "a", "b"), "--pair: the task feature-extraction takes texts, each by itself"),
        (("--context", "c", "w1"), "--context: is for questions"),
        (("--file", "missing.txt"), "missing.txt: cannot be read"),
    ],
)
def test_what_the_task_does_not_take(
    words: tuple[str, ...], found: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found in refused(capsys, "predict", tiny, *words)


def test_text_that_is_not_utf8(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"caf\xe9")
    assert "not UTF-8 text (byte 3)" in refused(capsys, "predict", tiny, "--file", file)


def bench_arguments(tiny: Path, slow: Path) -> list[str]:
    return [
        "bench",
        str(tiny),
        str(slow),
        "--baseline",
        str(tiny),
        "-s",
        "8",
        "--min-time",
        "0.01",
        "--rounds",
        "1",
        "--no-floor",
    ]


def test_bench_prints_a_table_or_json(
    tiny: Path, slow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = bench_arguments(tiny, slow)
    code = main(arguments)
    stdout, stderr = capsys.readouterr()
    assert stderr == ""
    assert "cold load ms" in stdout
    assert code == (0 if stdout.endswith("\nVALID\n") else 4)
    main([*arguments, "--json", "-o", str(tmp_path / "out")])
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out/bench.json").read_text())
    assert "already exists" in refused(capsys, *arguments, "-o", tmp_path / "out")


def test_invalid_run_ends_with_4(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saten_runtime.bench.verdict.throttle_reasons", lambda states: ["throttled"])
    assert main(["bench", str(tiny), "-s", "8", "--min-time", "0", "--rounds", "1", "--no-floor"]) == 4
    assert "INVALID: throttled" in capsys.readouterr().out


def test_progress_is_for_terminals_only(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["bench", str(tiny), "-s", "8", "--min-time", "0", "--rounds", "1", "--no-floor"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(arguments)
    assert "[3/3] tiny (1 threads, fast, batch 1, 8 tokens), round 1" in capsys.readouterr().err
    main([*arguments, "--quiet"])
    assert capsys.readouterr().err == ""


def test_eval(tiny: Path, wrong: Path, write_lines: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    data = write_lines([{"query": f"w{k}", "answer": f"w{k} w{k + 1}"} for k in range(12)])
    out = tmp_path / "new/eval.json"
    arguments = ["eval", tiny, wrong, "--data", data, "--reference", tiny]
    assert main([*map(str, arguments), "-o", str(out), "--json"]) == 0
    written = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == written
    assert written["rows"][0]["metrics"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert "already exists" in refused(capsys, *arguments, "-o", out)
    out.write_text("old")
    assert main([*map(str, arguments), "-o", str(out), "--overwrite"]) == 0
    assert json.loads(out.read_text())["task"] == "search"
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["bundle", "recall_at_1", "recall_at_10", "mrr_at_10", "cosine", "seconds"]
    assert first.split()[0] == "tiny"


def test_bad_data_line_is_named(
    tiny: Path, write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines([{"query": "a", "answer": "b"}, {"query": "a"}])
    assert "data.jsonl:2: has no field 'answer'" in refused(capsys, "eval", tiny, "--data", data)


def test_no_place_to_write(tiny: Path, write_lines: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    data = write_lines([{"query": "a", "answer": "b"}])
    (tmp_path / "file").write_text("")
    assert "file: File exists" in refused(capsys, "eval", tiny, "--data", data, "-o", tmp_path / "file/eval.json")


def test_full_disk_keeps_what_was_written(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    def fsync(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):  # not a folder, whose names are synced too
            synced.append(handle)
        if len(synced) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    arguments = ["bench", tiny, "-s", "8", "--min-time", "0", "--rounds", "2", "--no-floor", "-o", tmp_path / "out"]
    assert "samples.jsonl: No space left on device" in refused(capsys, *arguments)
    lines = (tmp_path / "out/samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines[:2]] == ["environment", "memory"]


def test_ctrl_c_is_one_line(tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "load", press)
    assert main(["predict", str(tiny), "w1"]) == 130
    assert capsys.readouterr() == ("", "saten-run: interrupted\n")


def test_reader_that_goes_away(tiny: Path) -> None:
    command = [sys.executable, "-m", "saten_runtime", "predict", str(tiny), *["w1"] * 3000]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=20) == 0


def test_readme_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    readme = Path(__file__).parents[2].joinpath("runtime/README.md").read_text()
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        section = readme.partition(f"### `saten-run {command}")[2].partition("\n### ")[0]
        options = {word.strip(",[]") for word in capsys.readouterr().out.split() if word.startswith(("--", "[--"))}
        missing = {option for option in options - {"--help"} if option not in section}
        assert not missing, f"README, saten-run {command}: {missing}"


def test_a_file_of_a_bundle_is_not_the_bundle(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "predict", str(tiny / "model.onnx"), "x")
    assert f"{tiny / 'model.onnx'}: is a file; give the folder of the bundle, {tiny}" in said
    assert "write /" in refused(capsys, "predict", "~/bundle", "x")
