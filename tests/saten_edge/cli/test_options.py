"""Commands are built from dataclasses of options, the same for both programs."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import typer
import typer.main
import typer.testing

from saten_edge.cli.commands import app
from saten_edge.cli.options import Only, expanded
from saten_runtime.arguments import make_parser
from saten_runtime.options import numbers, option

# What a command has besides, on the workstation only.
WORKSTATION = {"--device", "--wheels", "--no-kernels"}


def commands(group: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command of `saten-edge`, by the words that call it."""
    found = {}
    for name, command in group.commands.items():
        within = hasattr(command, "commands")
        found |= commands(command, (*path, name)) if within else {(*path, name): command}
    return found


def device_commands() -> dict[str, argparse.ArgumentParser]:
    class Any_(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            return lambda _: 0

    (chosen,) = (each for each in make_parser(Any_())._actions if isinstance(each, argparse._SubParsersAction))
    return dict(chosen.choices)


EDGE = commands(typer.main.get_command(app))
RUN = device_commands()


def options(command: Any) -> dict[str, tuple[Any, str]]:
    """Option → default and help, without what only says how to get help."""
    if isinstance(command, argparse.ArgumentParser):
        rows = [(each.option_strings, each.default, each.help) for each in command._actions]
    else:
        rows = [([*each.opts, *each.secondary_opts], each.default, each.help) for each in command.params]
    return {name: (default, text) for names, default, text in rows for name in names if name.startswith("-")}


@pytest.mark.parametrize("name", ["bench", "eval"])
def test_a_command_of_both_programs_has_the_same_options(name: str) -> None:
    edge, run = options(EDGE[name,]), options(RUN[name])
    assert set(edge) - {"--help"} - WORKSTATION == set(run) - {"--help", "-h"}
    assert {"bench": "--timeout", "eval": "--examples"}[name] in edge
    for option_, (_, text) in edge.items():
        if option_ not in WORKSTATION | {"--help", "--data"}:
            assert str(run[option_][1]).startswith(text), option_


@pytest.mark.parametrize("command", [*EDGE.values(), *RUN.values()], ids=[*map(" ".join, EDGE), *RUN])
def test_every_command_can_be_quiet_and_print_json(command: Any) -> None:
    assert {"-q", "--quiet", "--json"} <= set(options(command))


TEXTS = [(" ".join(name), each.name, each.help) for name, command in EDGE.items() for each in command.params]
TEXTS += [(name, each.dest, each.help) for name, command in RUN.items() for each in command._actions]


@pytest.mark.parametrize(("command", "name", "text"), TEXTS)
def test_a_help_line_is_a_phrase_that_stands_alone(command: str, name: str, text: str) -> None:
    """It begins with what the option is or does, not with a preposition, and is no single word."""
    assert text
    if name in ("help",):
        return
    assert not re.match(r"(Of|That|As|In|To|Where|On|By)\b", text), text
    assert len(text.split()) > 1, text
    assert text[0].isupper() or "/" in text.split()[0] or "." in text.split()[0], text


@dataclass(frozen=True)
class Inner:
    depth: int = option(2, "Depth of the hole", low=1)


@dataclass(frozen=True)
class Outer:
    sizes: tuple[int, ...] = option((1, 2), "Sizes of the hole", "--sizes", "-s", read=numbers)
    names: tuple[str, ...] = option(("*",), "Names to take")
    way: str = option("short", "Take the long way", "--long", const="long")
    floor: bool = option(True, "Leave the floor out", "--no-floor", const=False)
    share: float | None = option(None, "Share of it", low=0, high=1)
    inner: Inner = field(default_factory=Inner)
    hidden: str = "no option"


def read(*arguments: str) -> Outer:
    """What a command gets that takes `Outer`."""
    seen: list[Outer] = []

    def command(where: str, outer: Outer) -> None:
        assert where == "here"
        seen.append(outer)

    command.__annotations__ = {"where": Annotated[str, typer.Argument(help="Place")], "outer": Outer, "return": None}
    program = typer.Typer()
    program.command()(expanded(command))
    done = typer.testing.CliRunner().invoke(program, ["here", *arguments])
    assert done.exit_code == 0, done.output
    return seen[0]


@pytest.mark.parametrize(
    ("arguments", "outer"),
    [
        ([], Outer()),
        (["-s", "3"], Outer(sizes=(3,))),
        (["--names", "a", "--names", "b"], Outer(names=("a", "b"))),
        (["--long", "--no-floor"], Outer(way="long", floor=False)),
        (["--share", "0"], Outer(share=0.0)),
        (["--depth", "5"], Outer(inner=Inner(5))),
    ],
)
def test_a_command_gets_the_dataclass(arguments: list[str], outer: Outer) -> None:
    assert read(*arguments) == outer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "x"], "expected whole numbers"),
        (["--share", "2"], "less than or equal"),
        (["--hidden", "y"], "No such"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        read(*arguments)


def test_only_some_options_are_taken() -> None:
    seen: list[Outer] = []

    def command(outer: Annotated[Outer, Only("sizes")]) -> None:
        seen.append(outer)

    command.__annotations__ = {"outer": Annotated[Outer, Only("sizes")]}
    program = typer.Typer()
    program.command()(expanded(command))
    runner = typer.testing.CliRunner()
    assert runner.invoke(program, ["-s", "7"]).exit_code == 0
    assert seen == [Outer(sizes=(7,))]
    assert runner.invoke(program, ["--depth", "7"]).exit_code == 2


@pytest.mark.parametrize(("option_", "table"), [("--precision", "PRECISIONS"), ("--target", "TARGETS")])
def test_the_help_of_an_export_names_every_row(option_: str, table: str) -> None:
    import saten_exporters

    text = options(EDGE["export",])[option_][1]
    assert set(re.split(r"[ ,]+| or ", text.partition(": ")[2])) >= set(getattr(saten_exporters, table))


def test_a_recipe_knows_the_rows_of_the_tables() -> None:
    from saten_edge.decomposition import decompose, recipe

    assert (tuple(decompose.TRAINS), tuple(decompose.SOLVERS)) == (recipe.TRAINS, recipe.SOLVERS)
