"""The tests that `make test` leaves to `make check`: of whole commands, other programs, and every family of models."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]

# Folders and files in tests/.
WHOLE = (
    "attacks",
    "devices",
    "e2e",
    "exporters/test_batches.py",
    "exporters/test_battery.py",
    "exporters/test_foreign_readers.py",
    "exporters/test_smallest_onnxruntime.py",
    "exporters/tracing",
    "kernels",
    "runtime/test_privacy.py",
    "saten_edge/cli/test_optimum_command.py",
    "saten_edge/integrations",
    "saten_edge/optimize/test_command.py",
    "saten_edge/phone/test_browser.py",
    "saten_edge/training/test_finetune_command.py",
)


def is_whole(path: Path) -> bool:
    """Whether a file of tests is one of them, or in a folder of them."""
    return any(path.relative_to(TESTS).is_relative_to(row) for row in WHOLE)
