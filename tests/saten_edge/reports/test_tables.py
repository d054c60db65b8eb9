"""Terminal, Markdown and CSV."""

import csv
import io

import pytest
from rich.console import Console

from saten_edge.reports import build_report, csv_table, markdown_table, print_table, terminal_table
from saten_edge.reports.headline import comparisons, headline
from saten_edge.reports.text import count, mb, metric_title, milliseconds, score
from saten_runtime.records.plain_text import printable

HOSTILE = "=1+1 \x1b[31m[bold]|`<b>"


def printed(report, encoding="utf-8"):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    print_table(report, Console(file=stream))
    stream.flush()
    return raw.getvalue().decode(encoding)


def as_failed(bench, reason="killed"):
    bench["cells"][6].update(failed=reason, p50_ms=None, p90_ms=None, p99_ms=None, mean_ms=None, ratio=None)
    return bench


def test_terminal_fits_100_columns_and_shows_every_bundle_whole(report):
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert "…" not in text
    line = next(line for line in text.splitlines() if line.strip().startswith("saten-int8"))
    assert " ".join(line.split()) == "saten-int8 7.8 8.6 2.22 9.14 0.43 [0.42-0.44] 122 58.5 0.566 0.838 0.655 0.950"


def test_terminal_of_a_real_terminal_is_in_colour_and_fits(report):
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system="standard")
    print_table(report, console)
    assert "\x1b[1m" in console.file.getvalue()
    assert console.measure(terminal_table(report)).maximum <= 100


def test_terminal_survives_an_ascii_stream_and_hostile_names(bundles, bundle, bench):
    bench["environment"]["cpu"]["model"] = "\x1b]0;owned\x07"
    text = printed(
        build_report([*bundles, bundle(HOSTILE + "é\u202e")], as_failed(bench, "[red]out of memory\x1b[2J")), "ascii"
    )
    assert "\x1b" not in text
    assert r"=1+1 \x1b[31m[bold]|`<b>\xe9\u202e" in text
    assert r"failed: saten-fp32 at 128 tokens: [red]out of memory\x1b[2J" in text


@pytest.mark.parametrize("table", [printed, markdown_table, csv_table])
def test_every_table_says_invalid_and_failed(bundles, bench, table):
    good = table(build_report(bundles, bench))
    bench["verdict"] = {"valid": False, "reasons": ["throttled | hot"]}
    bad = table(build_report(bundles, as_failed(bench)))
    assert "failed" in bad
    assert ("INVALID" in bad) or (",false," in bad)
    assert "INVALID" not in good
    assert ",false," not in good


def test_markdown_escapes_what_would_be_markup(bundles, bundle):
    lines = markdown_table(build_report([*bundles, bundle(HOSTILE)])).splitlines()
    assert lines[0].startswith("| bundle | disk MB | disk % of dense-fp32 |")
    assert lines[-1].startswith(r"| =1+1 \\x1b\[31m\[bold\]\|\`&lt;b&gt; | 91.1 |")
    assert len(lines) == 2 + 5


def test_csv_holds_the_unrounded_numbers(report, bundles, bench, evaluation):
    rows = list(csv.DictReader(io.StringIO(csv_table(report))))
    cell = bench["cells"][7]
    row = rows[3]
    assert row["name"] == "saten-int8"
    assert int(row["bytes"]) == bundles[3].size_bytes
    assert int(row["model_bytes"]) == bundles[3].model_bytes
    assert [float(row[f"{name}_128"]) for name in ("p50_ms", "p90_ms", "p99_ms", "mean_ms")] == [
        cell[name] for name in ("p50_ms", "p90_ms", "p99_ms", "mean_ms")
    ]
    assert [float(row[f"{name}_128"]) for name in ("ratio", "ratio_low", "ratio_high")] == [
        cell["ratio"][name] for name in ("value", "low", "high")
    ]
    assert {name: float(row[name]) for name in evaluation["rows"][3]["metrics"]} == evaluation["rows"][3]["metrics"]
    assert row["valid"] == "true"
    assert row["failed"] == ""


def test_csv_cells_are_no_formulas(bundles, bundle):
    rows = list(csv.reader(io.StringIO(csv_table(build_report([*bundles, bundle(HOSTILE)])))))
    assert rows[-1][0] == "'" + printable(HOSTILE)


def test_headline_states_the_trade(report):
    assert headline(report) == (
        "saten-int8 takes 8.6\N{NO-BREAK SPACE}% of dense-fp32’s bytes, runs 128 tokens in 0.43× its time, "
        "and reaches recall@1 0.566 against 0.612."
    )
    assert comparisons(report) == (
        "saten-int8 takes 31.7\N{NO-BREAK SPACE}% of dense-int8’s bytes, runs 128 tokens in 0.93× its time, "
        "and reaches recall@1 0.566 against 0.609.",
        "saten-fp32 takes 26.6\N{NO-BREAK SPACE}% of dense-fp32’s bytes, runs 128 tokens in 0.53× its time, "
        "and reaches recall@1 0.571 against 0.612.",
    )


def test_headline_states_bad_news_too(bundles, bench, evaluation):
    bench["cells"][7]["ratio"] = {"to": "dense-fp32", "value": 1.31, "low": 1.2, "high": 1.4}
    assert "128 tokens in 1.31× its time (slower)" in headline(build_report(bundles, bench))
    bench["cells"][7]["ratio"]["low"] = 0.9
    assert "takes about its time for 128 tokens (1.31×, the interval includes 1)" in headline(
        build_report(bundles, bench)
    )
    assert "fails at 128 tokens" in comparisons(build_report(bundles, as_failed(bench)))[1]
    assert headline(build_report([], None, evaluation)).startswith("dense-int8 reaches recall@1 0.609 against 0.612")
    alone = {"cells": bench["cells"][3::4], "loads": bench["loads"][3:]}
    assert (
        headline(build_report(bundles[3:], bench | alone)) == "saten-int8 takes 7.8 MB and runs 128 tokens in 9.14 ms."
    )


def test_text_of_numbers():
    assert [milliseconds(value) for value in (1234.5, 123.4, 12.34, 1.234, 0.1234, 0.01234, None)] == [
        "1234", "123", "12.3", "1.23", "0.123", "0.0123", "–",
    ]  # fmt: skip
    assert [mb(value) for value in (91_116_313, 0, 4_321, None)] == ["91.1", "0.0", "0.00432", "–"]
    assert [score(value) for value in (0.61208, -0.5, 23.456)] == ["0.612", "-0.500", "23.5"]
    assert count(46_881_792) == "46\u202f881\u202f792"
    assert [metric_title(name) for name in ("recall_at_10", "mrr_at_10", "cosine")] == ["recall@10", "MRR@10", "cosine"]
    assert printable("a\x1b[0m\u202e\ud800\n é") == r"a\x1b[0m\u202e\ud800\n é"
