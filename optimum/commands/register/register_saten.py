"""`optimum-cli export saten`: optimum looks for commands in every file of this namespace."""

from optimum.commands.export.base import ExportCommand

from saten_edge.cli.optimum_command import SatenExportCommand

REGISTER_COMMANDS = [(SatenExportCommand, ExportCommand)]
