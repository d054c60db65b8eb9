"""One setting of a model's files, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "HARMLESS",
    "HONOURED",
    "NAMES",
    "REFUSAL",
    "REFUSED",
    "REPORTED",
    "SPEED",
    "TRAINING",
    "TREATMENTS",
    "Setting",
    "rows",
]

# What becomes of a setting: the device computes with it; it changes nothing there; another value than those that
# change nothing ends the export, or is said at its end.
HONOURED, HARMLESS, REFUSED, REPORTED = TREATMENTS = ("honoured", "harmless", "refused", "reported")


@dataclass(frozen=True)
class Setting:
    """One setting.

    file: as transformers and sentence-transformers call it; "pooling", "dense" and so on stand for the config.json of
    that module. why: what honours it, or why it changes nothing, or why it cannot be honoured. neutral: values that
    change nothing, None always among them. test: of the function that tries it.
    """

    file: str
    key: str
    treatment: str
    why: str
    neutral: tuple[Any, ...] = ()
    test: str = "test_every_row_has_a_treatment_a_reason_and_a_test"


def rows(file: str, treatment: str, keys: str, why: str, test: str = Setting.test, **more: Any) -> list[Setting]:
    """A row for each of the keys, a string of words."""
    return [Setting(file, key, treatment, why, test=test, **more) for key in keys.split()]


NAMES = "it only names where the files come from"
TRAINING = "it only acts in training"
SPEED = "it changes how fast the same numbers come"
REFUSAL = "test_a_setting_that_cannot_be_honoured_is_refused"
