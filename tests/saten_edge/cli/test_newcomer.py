"""What somebody gives who does not know yet what a command expects: it is read, or the message says what to give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saten_edge.checkpoints.models import load_model

Run = Callable[..., tuple[int, str, str]]
TEXTS = ["Gar men der file", "bel dor fit", "the number of it", "reads a path"] * 4


@pytest.fixture
def models(tiny_bert: Path, make_tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with models of a newcomer's, one of them sound."""
    root = tmp_path / "models"
    for name in ("sound", "without a tokenizer", "without an image processor"):
        made = make_tiny("vit", "image-classification") if "image" in name else tiny_bert
        shutil.copytree(made, root / name)
    for file in (root / "without a tokenizer").glob("tokenizer*"):
        file.unlink()
    (root / "without an image processor" / "preprocessor_config.json").unlink()
    (root / "no transformer").mkdir()
    (root / "no transformer" / "config.json").write_text("{}")
    for name, config in (("of another framework", {}), ("of no class", {"architectures": None})):
        told = json.loads((tiny_bert / "config.json").read_text())
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(told | config))
        (root / name / "tf_model.h5").touch()
    for name in ("no transformer", "of no class"):
        shutil.copyfile(tiny_bert / "model.safetensors", root / name / "model.safetensors")
    return root


@pytest.mark.parametrize("command", [("compress",), ("export",)])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("sound/model.safetensors", "{model}: is a file; give the folder of the model, {models}/sound\n"),
        ("sound/1_Pooling/config.json", "{model}: is a file; give the folder of the model, {models}/sound/1_Pooling\n"),
        ("", "such as those in it: no transformer, of another framework, of no class, sound, without a tokenizer, …\n"),
        ("of another framework", "{model}: holds no weights that are read: model.safetensors, "),
        ("of another framework", "; found tf_model.h5\n"),
        (
            "of no class",
            "no task is known for a model of class none; under architectures in its config.json, name its ",
        ),
        ("no transformer", "{model}/config.json: names no model_type; expected a transformers model folder\n"),
        ("without a tokenizer", "{model}: holds no file of a tokenizer (tokenizer.json, vocab.txt, "),
        ("without an image processor", "{model}: holds no file of an image processor (preprocessor_config.json); "),
    ],
)
def test_a_model_that_is_none_says_what_to_give(
    command: tuple[str, ...], model: str, message: str, run: Run, models: Path, tmp_path: Path
) -> None:
    given = models / model if model else models
    code, _, said = run(*command, given, "-o", tmp_path / "out", "-q")
    assert code == 2
    assert message.format(model=given, models=models) in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["compress", "export"])
def test_a_bundle_is_not_the_model_it_was_made_from(
    command: str, run: Run, tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    code, _, said = run(command, bundle := tiny_bundle("dense-int8"), "-o", tmp_path / "out", "-q")
    assert code == 2
    assert f"{bundle}: is a bundle, which holds a graph; give the model that it was exported from" in said


def test_a_compressed_model_may_teach(run: Run, tiny_saten: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text\n" + "\n".join(TEXTS))
    told = ("--teacher", tiny_saten, "--data", tmp_path / "d.csv", "--steps", 1, "--batch-size", 8, "-q")
    code, _, said = run("finetune", tiny_saten, "-o", tmp_path / "out", *told)
    assert (code, said) == (0, "")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["layer_errors"] is None


def test_a_slash_at_the_end_and_a_relative_path(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models / "no transformer")
    code, _, said = run("compress", "../sound/", "-o", "../../out/", "--rounds", 1, "-q")
    assert (code, said) == (0, "")
    assert load_model(tmp_path / "out").architecture.model_type == "bert"


@pytest.mark.parametrize("what", ["model", "output", "calibration"])
def test_a_home_that_the_shell_left_as_it_was(
    what: str, run: Run, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    given = {"model": tiny_bert, "output": "out", "calibration": None} | {what: "~/it"}
    options = ["--calibration", given["calibration"]] if given["calibration"] else []
    code, _, said = run("compress", given["model"], "-o", given["output"], *options)
    assert code == 2
    assert "~/it: the shell did not put your home folder in the place of ~; write /home/me/it" in said
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, said = run("compress", tiny_bert, "-o", tmp_path / "file" / "out")
    assert code == 2
    assert f"{tmp_path / 'file'} is a file, not a folder; choose another output path" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0.001"], "bytes for a matrix of 1200 × 64 are too few for a train of bond 1"),
        (["--budget", "0.01", "--allocation", "uniform"], "are too few for a train of bond 1"),
        (["--tables", "0.9"], "--tables takes "),
        (["--tables", "0.1", "--exclude", "*embeddings*"], "no lookup table of this model is compressed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_said_before_the_calibration(
    options: list[str], message: str, run: Run, tiny_bert: Path, tmp_path: Path
) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    told = ("compress", tiny_bert, "-o", tmp_path / "out", "--calibration", data, "--rounds", 1)
    code, _, said = run(*told, *options)
    assert code == 2
    assert message in said
    assert "calibrate" not in said
    if "--exclude" in options:
        assert "calibrate on 16 texts" in run(*told)[2]  # the twin


def test_an_exclusion_of_nothing_is_refused(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    told = ("compress", tiny_bert, "-o", tmp_path / "out", "--rounds", 1, "-q")
    code, _, said = run(*told, "--exclude", "*embedding.*")
    assert code == 2
    assert "--exclude *embedding.*: matches nothing; layers have names such as " in said
    assert run(*told, "--exclude", "*embedding.*", "--exclude", "*embeddings.*")[0] == 0


def test_damaged_weights_are_said_before_the_calibration(run: Run, models: Path, tmp_path: Path) -> None:
    weights = load_file(models / "sound" / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][0] = torch.nan
    save_file(weights, models / "sound" / "model.safetensors", {"format": "pt"})
    (tmp_path / "texts.jsonl").write_text('{"text": "gar"}\n')
    code, _, said = run("compress", models / "sound", "-o", tmp_path / "out", "--calibration", tmp_path / "texts.jsonl")
    assert code == 2
    assert "embeddings.LayerNorm.weight: holds values that are NaN or infinite" in said
    assert "calibrate" not in said


FILES = {
    "Windows' line ends": ("d.jsonl", "\r\n".join(json.dumps({"text": text}) for text in TEXTS)),
    "empty lines": ("d.jsonl", "\n\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n\n"),
    "CSV with Windows' line ends": ("d.csv", "text\r\n" + "\r\n".join(TEXTS) + "\r\n"),
    "CSV with empty lines": ("d.csv", "text\n\n" + "\n\n".join(TEXTS) + "\n"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_other_systems_and_editors(kind: str, run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    name, content = FILES[kind]
    (tmp_path / name).write_bytes(content.encode())
    told = ("--teacher", tiny_bert, "--steps", 1, "--batch-size", 8)
    code, _, said = run("finetune", tiny_bert, "-o", tmp_path / "out", "--data", tmp_path / name, *told)
    assert code == 0, said
    assert "for feature-extraction on 16 examples" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "text;label\ngar;1\n", "d.csv: has semicolons between its columns; expected commas"),
        ("d.csv", "text\tlabel\ngar\t1\n", "d.csv: has tabs between its columns; expected commas"),
        (
            "d.tsv",
            "text\tlabel\ngar\t1\n",
            '; expected one object per line, such as {"text": "…"}, or a file whose name',
        ),
        (
            "d.txt",
            "gar men\n",
            '; expected one object per line, such as {"text": "…"}, or a file whose name ends in .csv',
        ),
    ],
)
@pytest.mark.parametrize("option", ["--calibration", "--data"])
def test_files_of_another_format(
    option: str, name: str, content: str, message: str, run: Run, tiny_bert: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    command = {"--calibration": "compress", "--data": "finetune"}[option]
    code, _, said = run(command, tiny_bert, "-o", tmp_path / "out", option, tmp_path / name)
    assert code == 2
    assert message in said


def test_a_comma_file_with_a_semicolon_in_a_name_is_read(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    """The twin."""
    rows = "".join(f"{text},x\n" for text in TEXTS)
    (tmp_path / "d.csv").write_text(f"text,a;b\n{rows}")
    told = ("--calibration", tmp_path / "d.csv", "--rounds", 1, "-q")
    assert run("compress", tiny_bert, "-o", tmp_path / "out", *told)[0] == 0
