"""Every option that a message or a page names is one that some command has."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import saten_edge
import saten_exporters
import saten_runtime
from saten_edge.cli.commands import app
from saten_runtime.arguments import make_parser
from saten_runtime.cli import _COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGES = (saten_edge, saten_exporters, saten_runtime)
OPTION = re.compile(r"(?<![\w./-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*(?![a-z0-9_-])")
# Of other programs, which messages and pages name, too.
ELSEWHERE = {
    "--force-reinstall": "pip",
    "--find-links": "pip",
    "--branch": "git",
    "--recursive": "git",
    "--android": "ONNX Runtime's build.sh",
    "--config": "ONNX Runtime's build.sh",
    "--link-dest": "rsync",
    **dict.fromkeys(("--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint"), "torchrun"),
    "--write": "benchmarks/cost_model.py",
    "--strict": "mypy",
}


def declared() -> set[str]:
    """The options of every command of both programs."""
    command: Any = typer.main.get_command(app)
    return {"--help", *_typer_options(command), *_argparse_options(make_parser(_COMMANDS))}


def _typer_options(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for inner in getattr(command, "commands", {}).values():
        yield from _typer_options(inner)


def _argparse_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _argparse_options(inner)


def messages(source: str) -> Iterator[str]:
    """The texts in a file that are more than one word; a word alone is an argument of some program."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def unknown(texts: Iterator[str]) -> set[str]:
    return {option for text in texts for option in OPTION.findall(text)} - declared() - ELSEWHERE.keys()


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted(Path(package.__path__[0]).rglob("*.py"))]


def pages() -> list[Path]:
    """What people read: Markdown anywhere in the sources, and what the page on a phone says."""
    places = {".": "*.md", "docs": "**/*.md", "runtime": "**/*.md", "benchmarks": "*.md"}
    texts = [path for place, pattern in places.items() for path in sorted((ROOT / place).glob(pattern))]
    static = ROOT / "saten_edge" / "phone" / "static"
    return [*texts, *(path for ending in ("html", "js") for path in sorted(static.glob(f"*.{ending}")))]


def test_every_option_in_a_message_exists() -> None:
    found = {path.relative_to(ROOT).as_posix(): unknown(messages(path.read_text("utf-8"))) for path in sources()}
    assert {path: options for path, options in found.items() if options} == {}


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_option_on_a_page_exists(page: Path) -> None:
    assert unknown(iter([page.read_text("utf-8")])) == set()


def test_all_three_packages_and_all_kinds_of_pages_are_read() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in sources()} == {"saten_edge", "exporters", "runtime"}
    assert {"README.md", "SECURITY.md", "settings.md", "index.html"} <= {path.name for path in pages()}


def test_one_that_does_not_exist_is_found() -> None:
    source = 'raise UsageError(f"{name}: name a new head\'s --num-labels, or leave out --task")'
    assert unknown(messages(source)) == {"--num-labels"}
    assert unknown(iter(["so pass `--overwrit`, or --resume"])) == {"--overwrit"}
    assert {"--task", "--budget", "--tokens", "--overwrite", "--columns"} <= declared()
