"""`optimum-cli export saten`: the options and the work of `saten-edge export`, under optimum's roof."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

import typer
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from saten_edge.cli.commands import app, main

__all__ = ["SatenExportCommand"]


class SatenExportCommand(BaseOptimumCLICommand):  # type: ignore[misc] # optimum has no types
    """Takes what `saten-edge export` takes; its MODEL is `-m MODEL` here, as for optimum's other exports."""

    COMMAND = CommandInfo(name="saten", help="Export a dense or Saten model to a verified ONNX bundle.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the options."""
        for parameter in _parameters():
            parser.add_argument(*_names(parameter), **_settings(parameter))

    def run(self) -> None:
        """Export; ends the process with the exit codes of `saten-edge`."""
        given = {parameter: getattr(self.args, parameter.name) for parameter in _parameters()}
        model = next(value for parameter, value in given.items() if _is_argument(parameter))
        options = [
            text
            for parameter, value in given.items()
            if not _is_argument(parameter) and value is not None
            for text in _spelled(parameter, value)
        ]
        main(["export", *options, "--", model])


def _parameters() -> list[Any]:
    command: Any = typer.main.get_command(app)
    return [parameter for parameter in command.commands["export"].params if parameter.name != "help"]


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _names(parameter: Any) -> list[str]:
    return ["-m", "--model"] if _is_argument(parameter) else list(parameter.opts)


def _settings(parameter: Any) -> dict[str, Any]:
    """Keywords of `ArgumentParser.add_argument`. Whether values are sound is checked once, by `saten-edge export`."""
    common = {"dest": parameter.name, "required": parameter.required, "help": parameter.help, "default": None}
    if getattr(parameter, "is_flag", False):
        return {**common, "action": "store_true"}
    return {**common, "action": "append" if parameter.multiple else "store", "metavar": parameter.name.upper()}


def _spelled(parameter: Any, value: Any) -> list[str]:
    """An option as on a command line."""
    name = max(parameter.opts, key=len)
    if value is True:
        return [name]
    return [f"{name}={each}" for each in (value if isinstance(value, list) else [value])]
