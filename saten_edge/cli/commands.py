"""`saten-edge`: one command per stage, one file per command. stdout is data, stderr talk, errors one line.

Everything heavy is imported inside the commands, so that help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import typer

import saten_edge
from saten_edge.cli import devices
from saten_edge.cli.bench import bench
from saten_edge.cli.compare import compare
from saten_edge.cli.compress import compress
from saten_edge.cli.demo import demo
from saten_edge.cli.eval import evaluate
from saten_edge.cli.explain import explain
from saten_edge.cli.export import export
from saten_edge.cli.finetune import finetune
from saten_edge.cli.import_checkpoint import import_checkpoint
from saten_edge.cli.layout import layout
from saten_edge.cli.optimize import optimize
from saten_edge.cli.options import expanded
from saten_edge.cli.phone import phone
from saten_edge.cli.push import push
from saten_edge.cli.report import report
from saten_edge.cli.trim import trim
from saten_edge.cli.validate import validate
from saten_runtime.errors import SatenError, system_refusal
from saten_runtime.records.plain_text import printable
from saten_runtime.start import INTERRUPTED

__all__ = ["app", "main"]

Commands = Mapping[str, Callable[..., None]]

COMMANDS: Commands = {
    "trim": trim,
    "compress": compress,
    "import": import_checkpoint,
    "finetune": finetune,
    "export": export,
    "layout": layout,
    "push": push,
    "explain": explain,
    "validate": validate,
    "bench": bench,
    "eval": evaluate,
    "phone": phone,
    "report": report,
    "compare": compare,
    "demo": demo,
    "optimize": optimize,
}
# Names that commands had before, which still work and say so.
RENAMED = {"serve": "phone"}
ON_DEVICES: Commands = {
    "doctor": devices.doctor,
    "calibrate": devices.calibrate,
    "clean": devices.clean,
    "android": devices.android,
}


def _app(about: str, commands: Commands) -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help=about,
    )
    for name, command in commands.items():
        app.command(name)(expanded(command))
    return app


app = _app(
    "Compress a transformer as tensor train + sparse residual, export it, run and measure it on small machines.",
    COMMANDS,
)
app.add_typer(_app("Look after boards and phones.", ON_DEVICES), name="devices")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version")] = False) -> None:
    if version:
        print(f"saten-edge {saten_edge.__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit code 0, 1 defect, 2 unusable input, 3 mismatch, 4 invalid run, 130 Ctrl-C.

    arguments: those of the process by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in RENAMED:
        print(f"saten-edge: {given[0]} is now called {RENAMED[given[0]]}", file=sys.stderr)
        given[0] = RENAMED[given[0]]
    try:
        app(given, prog_name="saten-edge")
    except SatenError as error:
        print(f"saten-edge: error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if (interrupt := _interrupt_behind(ended)) is not None:
            _say_interrupted(interrupt)
        raise
    except KeyboardInterrupt as interrupt:  # outside of a command, where typer does not catch it
        _say_interrupted(interrupt)
        sys.exit(INTERRUPTED)
    except OSError as error:  # a full or read-only disk, a file that went away
        print(f"saten-edge: error: {printable(system_refusal(error))}", file=sys.stderr)
        sys.exit(SatenError.exit_code)


def _interrupt_behind(ended: SystemExit) -> BaseException | None:
    """The Ctrl-C that typer turned into an exit code without a word."""
    exited = ended.__context__
    cause = None if exited is None else exited.__cause__
    return cause if isinstance(cause, KeyboardInterrupt) else None


def _say_interrupted(interrupt: BaseException) -> None:
    print(f"saten-edge: {printable(str(interrupt)) or 'interrupted'}", file=sys.stderr)


if __name__ == "__main__":
    main()
