"""Graphs that tests read in place of tracing: those of the same model, and the same to the last byte."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trace_once import name_of, read, traced_once

from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_exporters.bundles import export as exporting
from saten_exporters.choice.targets import TARGETS, Target

MakeTiny = Callable[..., Path]

X86 = TARGETS["x86-64"]


@pytest.fixture
def decoder(make_tiny: MakeTiny) -> LoadedModel:
    return load_model(make_tiny("llama", "text-generation"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_is_the_same_to_the_last_byte(
    decoder: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saten_exporters.tracing.trace import trace

    calls: list[Any] = []
    once = traced_once(tmp_path / "traces", lambda *given: calls.append(given) or trace(*given))
    for name, tracer in (("traced", once), ("read", once)):
        monkeypatch.setattr(exporting, "trace", tracer)
        exporting.export(decoder, tmp_path / name, name="same", max_loss=float("inf"))
    assert len(calls) == 1
    assert content(tmp_path / "traced") == content(tmp_path / "read")
    assert read(next((tmp_path / "traces").iterdir()), decoder.model.config).config is decoder.model.config


def test_the_name_is_that_of_the_content(decoder: LoadedModel, make_tiny: MakeTiny, tmp_path: Path) -> None:
    shutil.copytree(make_tiny("llama", "text-generation"), tmp_path / "elsewhere")
    assert name_of(decoder, X86) == name_of(load_model(tmp_path / "elsewhere"), X86)


def another_weight(source: LoadedModel) -> None:
    with torch.no_grad():
        source.model.model.norm.weight[3] += 1


def another_setting(source: LoadedModel) -> None:
    source.model.config.rms_norm_eps = 1e-3


def another_attribute(source: LoadedModel) -> None:
    source.model.model.norm.variance_epsilon = 1e-3


def another_class(source: LoadedModel) -> None:
    source.model.model.norm.__class__ = torch.nn.Identity


def another_length(source: LoadedModel) -> None:
    source.max_length = 5


def a_tied_head(source: LoadedModel) -> None:
    source.model.lm_head.weight = source.model.model.embed_tokens.weight


def a_head_of_its_own_that_is_equal(source: LoadedModel) -> None:
    source.model.lm_head.weight = torch.nn.Parameter(source.model.model.embed_tokens.weight.detach().clone())


def another_attention(source: LoadedModel) -> None:
    source.model.set_attn_implementation("eager")


CHANGES = [
    *(another_weight, another_setting, another_attribute, another_class, another_length, another_attention),
    *(a_tied_head, a_head_of_its_own_that_is_equal),
]


def test_another_model_has_another_name(make_tiny: MakeTiny) -> None:
    names = list[str | None]()
    for change in [None, *CHANGES]:
        source = load_model(make_tiny("llama", "text-generation"))
        if change is not None:
            change(source)
        names.append(name_of(source, X86))
    assert None not in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("row", [dataclasses.replace(X86, opset=X86.opset + 1)])
def test_another_opset_is_another_graph(row: Target, decoder: LoadedModel) -> None:
    assert name_of(decoder, row) not in (None, name_of(decoder, X86))


def test_what_cannot_be_pickled_is_traced_each_time(decoder: LoadedModel, tmp_path: Path) -> None:
    decoder.model.model.norm.forward = lambda hidden: hidden
    calls: list[Any] = []
    once = traced_once(tmp_path / "traces", lambda *given: calls.append(given))
    once(decoder, X86)
    once(decoder, X86)
    assert len(calls) == 2
    assert not (tmp_path / "traces").exists()


def test_warm_commands_read_them_too(warm_python: list[str], offline: dict[str, str]) -> None:
    code = "from saten_exporters.bundles import export; print(export.trace.__module__)"
    done = subprocess.run([*warm_python, "-c", code], env=offline, capture_output=True, text=True)
    assert done.stdout == "trace_once\n"
