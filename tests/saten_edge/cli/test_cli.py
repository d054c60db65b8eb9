"""The command line: data on stdout, talk on stderr, one line and exit code 2 for what cannot be used."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from saten_edge.cli import commands as cli
from saten_edge.texts import write_lines

Command = Callable[..., subprocess.CompletedProcess[str]]
COMMANDS = typer.main.get_command(cli.app).commands
NAMES = [
    "trim",
    "compress",
    "import",
    "finetune",
    "export",
    "layout",
    "push",
    "explain",
    "validate",
    "bench",
    "eval",
    "phone",
    "report",
    "compare",
]
NAMES += ["demo", "optimize", "devices"]


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: path → bytes, None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def processor_seconds(command: list[str], runs: int) -> float:
    """The least of some runs, so that a busy machine does not count."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    seconds = []
    for _ in range(runs):
        before = spent()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(spent() - before)
    return min(seconds)


class TestBadInput:
    """One clear line on stderr, exit code 2, nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["{tmp}/nowhere", "-o", "out"], "nowhere: no such folder"),
            (["{tiny_bert}", "-o", "out", "--include", "*nowhere*"], "BertModel has no weight matrix of at least 4096"),
            (["{tiny_bert}", "-o", "out", "--budget", "0.001"], "embeddings.word_embeddings: 307 bytes for a matrix"),
            (["{tiny_bert}", "-o", "folder"], "folder: already exists; choose another output path or pass --overwrite"),
        ],
        ids=["no such folder", "nothing to compress", "budget", "output exists"],
    )
    def test_compress(self, arguments, message, tiny_bert, saten_edge_command: Command, tmp_path: Path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file.txt").write_text("mine")
        before = content(tmp_path)
        arguments = [argument.format(tmp=tmp_path, tiny_bert=tiny_bert) for argument in arguments]
        done = saten_edge_command("compress", *arguments, "--quiet", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("saten-edge: error: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert content(tmp_path) == before

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--budget", "1.5"], "--budget 1.5: expected a share of the dense bytes between 0 and 1"),
            (["--budget", "nan"], "expected a share"),
            (["--pattern", "blocky"], "no residual pattern 'blocky'; there are: N:M, grouped, none, unstructured"),
            (["--allocation", "sensitivity"], "needs calibration texts"),
            (["--calibration", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_options_of_compress(self, options, message, run, tiny_bert, tmp_path):
        code, out, shown = run("compress", tiny_bert, "-o", tmp_path / "out", "--quiet", "--rounds", 1, *options)
        assert (code, out) == (2, "")
        assert shown.startswith("saten-edge: error: ")
        assert message in shown
        assert shown.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
    def test_the_output_is_refused_before_the_model_is_read(self, kind, run, tmp_path):
        out = tmp_path / "out"
        make = {"folder": out.mkdir, "file": out.touch, "dangling link": lambda: out.symlink_to("nowhere")}
        make[kind]()
        code, printed, shown = run("compress", tmp_path / "nowhere", "-o", out)
        assert (code, printed) == (2, "")
        assert f"{out}: already exists" in shown
        assert list(tmp_path.iterdir()) == [out]

    def test_a_dense_model_is_fine_tuned_and_never_told_to_be_compressed_first(self, run, tiny_bert, tmp_path):
        write_lines(tmp_path / "data.jsonl", [{"text": "gar men"}])
        before = content(tmp_path)
        options = ["--teacher", tiny_bert, "--data", tmp_path / "data.jsonl", "--quiet"]
        code, out, shown = run("finetune", tiny_bert, "-o", tmp_path / "out", *options)
        assert (code, out) == (2, "")
        assert "1 examples to train on, expected at least one batch of 32" in shown
        assert content(tmp_path) == before

    def test_fine_tuning_on_too_few_texts(self, run, tiny_bert, tiny_saten, tmp_path):
        write_lines(tmp_path / "data.jsonl", [{"text": "gar men"}])
        before = content(tmp_path)
        options = ["--teacher", tiny_bert, "--data", tmp_path / "data.jsonl", "--quiet"]
        code, out, shown = run("finetune", tiny_saten, "-o", tmp_path / "out", *options)
        assert (code, out) == (2, "")
        assert "1 examples to train on, expected at least one batch of 32" in shown
        assert content(tmp_path) == before

    @pytest.mark.parametrize("command", ["export", "validate", "bench", "eval", "phone", "report"])
    def test_a_model_or_bundle_that_is_not_there(self, command, run, tmp_path):
        write_lines(tmp_path / "data.jsonl", [{"query": "a", "answer": "b"}])
        before = content(tmp_path)
        out = ["-o", tmp_path / "out"]
        options = {"export": out, "phone": [*out, "--host", "127.0.0.1"], "eval": ["--data", tmp_path / "data.jsonl"]}
        code, out, shown = run(command, tmp_path / "nowhere", *options.get(command, []))
        assert (code, out) == (2, "")
        errors = [line for line in shown.splitlines() if line.startswith("saten-edge: error: ")]
        assert len(errors) == 1
        assert "nowhere" in errors[0]
        assert "Traceback" not in shown
        assert content(tmp_path) == before

    @pytest.mark.parametrize(
        ("refusal", "said"),
        [
            (OSError(28, "No space left on device", "/out/file"), "/out/file: No space left on device"),
            (OSError(28, "No space left on device"), "output: No space left on device"),
            (OSError("30720 requested and 0 written"), "output: 30720 requested and 0 written"),
        ],
    )
    def test_a_full_disk_is_one_line_too(self, refusal, said, run, tiny_bert, monkeypatch, tmp_path):
        def full(*_: object, **__: object) -> None:
            raise refusal

        monkeypatch.setattr("saten_edge.checkpoints.compress.compress", full)
        code, _, shown = run("compress", tiny_bert, "-o", tmp_path / "out", "--quiet")
        assert (code, shown) == (2, f"saten-edge: error: {said}\n")

    @pytest.mark.parametrize("arguments", [[], ["compress"], ["unheard-of"], ["compress", "x", "--nonsense"]])
    def test_a_wrong_call_is_no_traceback(self, arguments, run):
        code, _, shown = run(*arguments)
        assert code == 2
        assert "Traceback" not in shown


class TestStages:
    def test_compress_prints_its_table_to_stdout_only(self, run, tiny_bert, texts, tmp_path):
        write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in texts[:40]])
        out = tmp_path / "saten"
        options = ["--budget", 0.3, "--group", 8, "--rounds", 1, "--calibration", tmp_path / "texts.jsonl"]
        code, printed, shown = run("compress", tiny_bert, "-o", out, *options, "--json", "--quiet")
        assert (code, shown) == (0, "")
        table = json.loads(printed)
        rows = table["layers"]
        assert len(rows) == 14
        assert sum(row["bytes"] for row in rows) <= 0.3 * sum(row["dense_bytes"] for row in rows)
        assert json.loads((out / "saten_layers.json").read_text()) == table
        assert [path.name for path in sorted(tmp_path.iterdir())] == ["saten", "texts.jsonl"]

    def test_the_table_for_people_has_a_line_per_layer_and_the_sum(self, run, tiny_bert, tmp_path):
        options = ["--pattern", "unstructured", "--rounds", 1, "--share", 0.6, "--budget", 0.3]
        code, out, shown = run("compress", tiny_bert, "-o", tmp_path / "saten", *options)
        assert code == 0
        compressed, dense = (block.splitlines() for block in out.split("\n\n"))
        assert len(compressed) == 1 + 14 + 1
        assert compressed[-1].split()[0] == dense[-1].split()[0] == "all"
        assert 0 < float(compressed[-1].split()[-1]) <= 0.3
        assert 0 < float(dense[-1].split()[-1]) < 1
        assert "compress 14 matrices to 0.3 of their bytes" in shown
        assert "\x1b" not in out + shown

    def test_overwrite_replaces_the_output(self, run, tiny_bert, tmp_path):
        options = ["--rounds", 1, "--share", 0.6, "--quiet", "--overwrite"]
        assert run("compress", tiny_bert, "-o", tmp_path / "saten", "--group", 8, *options)[0] == 0
        before = content(tmp_path / "saten")
        assert run("compress", tiny_bert, "-o", tmp_path / "saten", "--group", 16, *options)[0] == 0
        assert content(tmp_path / "saten") != before
        assert [path.name for path in tmp_path.iterdir()] == ["saten"]

    def test_finetune_says_how_the_loss_went_and_keeps_the_table(self, run, tiny_bert, tiny_saten, texts, tmp_path):
        write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
        out = tmp_path / "tuned"
        options = ["--teacher", tiny_bert, "--data", tmp_path / "texts.jsonl", "--steps", 3, "--batch-size", 8]
        code, printed, shown = run("finetune", tiny_saten, "-o", out, *options, "--quiet")
        assert (code, shown) == (0, "")
        assert printed.startswith("3 steps, loss 0.")
        history = json.loads((out / "metrics.json").read_text())["history"]
        assert [step["step"] for step in history] == [1, 2, 3]
        assert (out / "saten_layers.json").read_text() == (tiny_saten / "saten_layers.json").read_text()
        assert (out / "1_Pooling" / "config.json").is_file()


class TestHelp:
    def test_the_commands_are_those_of_the_readme(self):
        assert list(COMMANDS) == NAMES

    @pytest.mark.parametrize("name", NAMES)
    def test_every_command_has_help(self, name, run):
        code, out, shown = run(name, "--help")
        assert (code, shown) == (0, "")
        assert COMMANDS[name].help.partition("\n")[0].split()[0] in out
        assert "--help" in out

    @pytest.mark.parametrize("name", NAMES)
    def test_every_option_but_the_plainest_is_explained(self, name):
        bare = {parameter.name for parameter in COMMANDS[name].params if not getattr(parameter, "help", None)}
        assert not bare

    def test_version(self, run):
        assert run("--version") == (0, "saten-edge 0.1.0\n", "")

    def test_it_answers_at_once(self):
        command = [sys.executable, "-m", "saten_edge", "--help"]
        assert processor_seconds(command, runs=3) < 0.3
        slow = [sys.executable, "-c", "import runpy, torch; runpy.run_module('saten_edge.cli.commands')"]
        assert processor_seconds(slow, runs=1) > 0.3

    @pytest.mark.parametrize("statement", ["import saten_edge", "import saten_edge.cli.commands"])
    def test_nothing_heavy_is_imported_for_it(self, statement):
        heavy = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "matplotlib", "optimum"}
        code = f"import sys, json\n{statement}\nprint(json.dumps([name for name in sys.modules if '.' not in name]))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert not heavy & set(json.loads(done.stdout))

    def test_the_scan_would_see_a_heavy_import(self):
        code = "import sys, json, onnxruntime\nprint(json.dumps([name for name in sys.modules if '.' not in name]))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "onnxruntime" in json.loads(done.stdout)


def test_the_console_script_is_the_module(saten_edge_command: Command):
    script = Path(sys.executable).with_name("saten-edge")
    if not script.is_file():
        pytest.skip("saten-edge is not installed as a script here")
    done: Any = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, saten_edge_command("--version").stdout)


def test_a_command_under_its_old_name_says_its_new_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", str(tmp_path / "nowhere"), "-o", str(tmp_path / "out"), "--host", "127.0.0.1"])
    stderr = capsys.readouterr().err
    assert caught.value.code == 2
    assert stderr.startswith("saten-edge: serve is now called phone\nsaten-edge: error: ")
    with pytest.raises(SystemExit):
        cli.main(["phone", str(tmp_path / "nowhere"), "-o", str(tmp_path / "out"), "--host", "127.0.0.1"])
    assert "now called" not in capsys.readouterr().err
