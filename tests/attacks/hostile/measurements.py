"""Hostile plans, journals and results (N)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hostile.bundles import Make, manifest
from hostile.case import Case, Place, saten_edge, saten_run
from hostile.libraries import nothing

__all__ = ["CASES"]

QUICK = ("--min-time", "0", "--rounds", "1", "--no-floor", "-s", "4", "--quiet")


def bench(*arguments: object) -> Callable[[Place], int]:
    return lambda place: saten_run("bench", place.sound["bundle"], *QUICK, "-o", place.out, *arguments)


def resume(place: Place) -> int:
    """Go on with a journal that holds something else."""
    return saten_run("bench", place.sound["bundle"], *QUICK, "-o", place.folder / "old", "--resume")


def journal(content: str) -> Make:
    def make(place: Place) -> None:
        (place.folder / "old").mkdir()
        (place.folder / "old" / "samples.jsonl").write_text(content)

    return make


CELL = {"bundle": "lookup", "threads": 1, "batch": 1, "tokens": 4, "memory_mode": "fast", "count": 10, "p50_ms": 1.0}
RESULT = {
    "schema_version": 1,
    "environment": {},
    "verdict": {"valid": True, "reasons": []},
    "cells": [CELL],
    "loads": [],
}


def result(change: Callable[[dict[str, Any]], Any] = lambda data: None, raw: str | None = None) -> Make:
    def make(place: Place) -> None:
        data = json.loads(json.dumps(RESULT))
        change(data)
        (place.folder / "bench.json").write_text(json.dumps(data) if raw is None else raw)

    return make


def report(place: Place) -> int:
    return saten_edge(
        "report", place.sound["bundle"], "--bench", place.folder / "bench.json", "-o", place.folder / "out.html"
    )


def cell(**values: Any) -> Make:
    return result(lambda data: data["cells"][0].update(values))


def unread(name: str, make: Make, words: str, threat: str = "N2") -> Case:
    return Case(threat, name, make, report, "DataError", words)


CASES = [
    *(
        Case("N1", name, nothing, bench(*arguments), "UsageError", words)
        for name, arguments, words in (
            ("no rounds", ("--rounds", "0"), "rounds"),
            ("rounds below zero", ("--rounds", "-3"), "rounds"),
            ("a time below zero", ("--min-time", "-1"), "--min-time"),
            ("a time of NaN", ("--min-time", "nan"), "--min-time"),
            ("a time without end", ("--min-time", "inf"), "--min-time"),
            ("a batch of nothing", ("-b", "0"), "batch"),
            ("a batch below zero", ("-b", "-1"), "batch"),
            ("no tokens", ("-s", "0"), "tokens"),
            ("more tokens than there are", ("-s", str(1 << 31)), "takes at most 16 tokens"),
            ("no threads", ("-t", "0"), "threads"),
            ("threads of a word", ("-t", "many"), "threads"),
            ("a memory mode of no name", ("--memory", "all"), "memory"),
        )
    ),
    Case(
        "N2",
        "a journal of the next version",
        journal('{"kind": "samples", "schema_version": 99}\n'),
        resume,
        "DataError",
        r"samples\.jsonl:1: is of version 99",
    ),
    Case("N2", "a journal of nonsense", journal("nonsense\n"), resume, "DataError", r"samples\.jsonl:1: not JSON"),
    Case("N2", "a journal of a list", journal("[]\n"), resume, "DataError", r"samples\.jsonl:1: expected a JSON"),
    unread("a result of no JSON", result(raw="{"), r"bench\.json: not JSON"),
    unread("a result of NaN", result(raw=json.dumps(RESULT).replace("1.0", "NaN")), "NaN is not JSON"),
    unread(
        "a result of 1e999", result(raw=json.dumps(RESULT).replace("1.0", "1e999")), "the number 1e999 is too large"
    ),
    unread("a result of the next version", result(lambda data: data.update(schema_version=2)), "schema_version is 2"),
    unread("a latency below zero", cell(p50_ms=-1.0), r"cells\[0\]\.p50_ms: found -1\.0, expected a number above 0"),
    unread("a latency of a string", cell(p50_ms="1"), r"cells\[0\]\.p50_ms: found '1'"),
    unread("a cell without a latency", cell(p50_ms=None), r"cells\[0\]: found neither p50_ms nor failed"),
    unread("cells of another kind", result(lambda data: data.update(cells={})), r"bench\.json\.cells: found \{\}"),
    unread("a result nested without end", result(raw='{"a":' * 100_000), r"bench\.json: not JSON"),
    Case(
        "N4",
        "a name with a terminal escape",
        manifest(name="\x1b]0;owned\x07" + "x" * 100),
        lambda place: saten_run("bench", place.folder / "bundle", *QUICK, "-s", "99"),
        "UsageError",
        r"^saten-run: error: [^\x1b]*owned",
    ),
]
