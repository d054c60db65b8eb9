"""`saten-run`, also as `python -m saten_runtime`."""

from __future__ import annotations

import sys

from saten_runtime.start import start

__all__ = ["main"]


def main() -> int | None:
    """The exit code of `saten_runtime.cli.main`."""
    return start("saten-run", _run)


def _run() -> int:
    from saten_runtime.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
