"""Recipes that are none, of checkpoints and bundles: what is wrong → the recipe, and a pattern of the refusal."""

from __future__ import annotations

from typing import Any

__all__ = ["BAD_RECIPES"]

SOUND: dict[str, Any] = {"stage": "compress", "options": {}, "inputs": {}, "outcome": {}, "versions": {}}


def stage(**values: Any) -> list[dict[str, Any]]:
    return [{**SOUND, **values}]


BAD_RECIPES: dict[str, tuple[Any, str]] = {
    "no list": ({"stages": []}, ": expected a list of at most 64 stages"),
    "65 stages": ([SOUND] * 65, ": expected a list of at most 64 stages"),
    "a word for a stage": (["compress"], r"\[0\]: expected an object of stage, options"),
    "a key too few": ([{"stage": "compress"}], r"\[0\]: expected an object of stage, options"),
    "a key too many": (stage(hook="x"), r"\[0\]: expected an object of stage, options"),
    "a stage of two lines": (stage(stage="a\nb"), r"\[0\]\.stage: 'a\\nb' is no name"),
    "options that are a list": (stage(options=[]), r"\[0\]\.options: expected an object"),
    "a name that is a path": (stage(options={"../x": 1}), r"\[0\]\.options: '\.\./x' is no name"),
    "a name of 65 letters": (stage(options={"a" * 65: 1}), r"\[0\]\.options: 'a+ is no name"),
    "10 001 options": (stage(options={f"a{k}": 1 for k in range(10_001)}), r"\[0\]\.options: expected an object"),
    "a terminal's command": (stage(options={"a": "\x1b[2J"}), r"\[0\]\.options\.a: expected at most 1000 printable"),
    "a book": (stage(options={"a": "a" * 1001}), r"\[0\]\.options\.a: expected at most 1000 printable"),
    "a list of 10 001": (stage(options={"a": [1] * 10_001}), r"\[0\]\.options\.a: has 10001 entries"),
    "a list in a list": (stage(options={"a": [[1]]}), r"\[0\]\.options\.a: expected at most 1000 printable"),
    "a table in a table": (stage(options={"a": {"b": {}}}), r"\[0\]\.options\.a: expected at most 1000 printable"),
    "a table with a command": (stage(options={"a": {"\x07": 1}}), r"\[0\]\.options\.a: expected at most 1000 print"),
    "a number of 70 bits": (stage(outcome={"steps": 1 << 70}), r"\[0\]\.outcome\.steps: .* no number of 64 bits"),
    "an input that is a word": (stage(inputs={"model": "x"}), r"\[0\]\.inputs\.model: expected an object"),
    "a version that is a number": (stage(versions={"torch": 2}), r"\[0\]\.versions\.torch: expected at most 1000"),
}
