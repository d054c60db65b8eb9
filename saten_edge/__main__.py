"""`saten-edge`, also as `python -m saten_edge`."""

from __future__ import annotations

import sys

from saten_runtime.start import start

__all__ = ["main"]


def main() -> int | None:
    """Run `saten_edge.cli.commands.main`, which ends the process; the exit code where Ctrl-C was earlier."""
    return start("saten-edge", _run)


def _run() -> None:
    from saten_edge.cli.commands import main as run

    run()


if __name__ == "__main__":
    sys.exit(main())
