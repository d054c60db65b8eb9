"""The HTML page: complete, inert, deterministic, and showing the numbers it was given."""

import re
from html.parser import HTMLParser

import matplotlib
import pytest

from saten_edge.reports import build_report, html_page, write_html
from saten_edge.reports.plots import plots

HOSTILE = """<script>alert(1)</script>"'&{{ 7*7 }} $\\frac$ \x1b[31m\u202e_"""
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes, ids and table cells; fails on a tag closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.ids, self.values, self.words = [], [], [], [], []
        self.open = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        self.ids += [value for name, value in attributes if name == "id"]
        self.values += [float(value) for name, value in attributes if (tag, name) == ("data", "value")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def page(report):
    return Page(html_page(report))


def test_page_loads_and_runs_nothing(report, page):
    text = html_page(report)
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert not set(page.tags) & {"script", "link", "iframe", "object", "embed", "img", "image", "form", "base"}
    links = [value for _, name, value in page.attributes if name in {"src", "href", "srcset", "action", "xlink:href"}]
    assert all(link.startswith("#") for link in links)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in (value or ""))
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_ids_are_unique_and_references_resolve(page):
    assert len(page.ids) == len(set(page.ids))
    named = [value for _, name, value in page.attributes if name == "aria-labelledby"]
    linked = [value[1:] for tag, name, value in page.attributes if tag == "use" and name == "href"]
    assert {one for value in named for one in value.split()} | set(linked) <= set(page.ids)
    assert linked


def test_tables_and_pictures_speak(page):
    headers = page.tags.count("th")
    assert headers == sum(1 for tag, name, _ in page.attributes if (tag, name) == ("th", "scope"))
    pictures = page.tags.count("svg")
    assert pictures == 5
    assert pictures == sum(1 for tag, name, value in page.attributes if (tag, name, value) == ("svg", "role", "img"))


def test_hostile_strings_are_shown_and_not_obeyed(page, bundles, bundle, bench, evaluation):
    usual = set(page.tags)
    bench["environment"] = {HOSTILE: {"cpu": HOSTILE, "list": [HOSTILE]}}
    bench["verdict"] = {"valid": False, "reasons": [HOSTILE]}
    bench["cells"].append(bench["cells"][7] | {"bundle": HOSTILE})
    bench["cells"].append(bench["cells"][3] | {"bundle": HOSTILE, "failed": HOSTILE})
    bench["loads"].append(bench["loads"][3] | {"bundle": HOSTILE})
    evaluation["task"] = evaluation["data"]["file"] = HOSTILE
    evaluation["rows"].append({"bundle": HOSTILE, "metrics": {"recall_at_1": 0.5, HOSTILE: 0.5}})
    report = build_report([*bundles, bundle(HOSTILE)], bench, evaluation, notes=[(HOSTILE, HOSTILE)])
    text = html_page(report)
    page = Page(text)
    assert "script" not in page.tags
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7*7 }}" in text
    assert set(page.tags) <= usual | {"strong"}


def test_the_same_report_gives_the_same_bytes(bundles, bench, evaluation, history, tmp_path):
    for name in ("one", "two"):
        report = build_report(bundles, bench, evaluation, history=history)
        write_html(report, tmp_path / "new" / f"{name}.html")
    one, two = ((tmp_path / "new" / f"{name}.html").read_bytes() for name in ("one", "two"))
    assert one == two
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one.html", "two.html"]


def test_drawing_leaves_matplotlib_as_it_was(report):
    before = dict(matplotlib.rcParams)
    plots(report)
    assert dict(matplotlib.rcParams) == before


def expected_values(bundles, bench, evaluation):
    for bundle, scored, load in zip(bundles, evaluation["rows"], bench["loads"], strict=True):
        yield bundle.size_bytes
        yield bundle.size_bytes / bundles[0].size_bytes
        for cell in (cell for cell in bench["cells"] if cell["bundle"] == bundle.name):
            yield cell["p50_ms"]
            if cell["ratio"]:
                yield cell["ratio"]["value"]
        yield load["cold_load_ms"]
        yield load["memory"]["peak_anon_bytes"] / 2**20
        yield from scored["metrics"].values()


def test_every_number_in_the_table_is_the_one_measured(page, bundles, bench, evaluation):
    assert page.values == list(expected_values(bundles, bench, evaluation))


def test_and_a_changed_number_changes_the_page(bundles, bench, evaluation):
    good = html_page(build_report(bundles, bench, evaluation))
    for change in (
        lambda: bench["cells"][5].update(p50_ms=99.9),
        lambda: bench["cells"][5].update(p90_ms=199.9),
        lambda: bench["cells"][5]["ratio"].update(high=0.999),
        lambda: bench["loads"][1].update(cold_load_ms=999.0),
        lambda: bench["loads"][1]["memory"].update(peak_anon_bytes=10**9),
        lambda: evaluation["rows"][2]["metrics"].update(recall_at_1=0.123),
        bundles[1].manifest.layers.pop,
    ):
        change()
        changed = html_page(build_report(bundles, bench, evaluation))
        assert changed != good
        good = changed


def test_shown_text_is_the_rounded_value(report):
    shown = re.findall(r'<data value="([^"]+)">([^<]+)</data>', html_page(report))
    assert ("9.142", "9.14") in shown
    assert ("0.5664", "0.566") in shown
    assert ("91116313", "91.1") in shown
    assert len(shown) == 4 * 10 + 3 * 2


def test_invalid_is_a_banner_and_valid_is_not(bundles, bench):
    good = html_page(build_report(bundles, bench))
    assert "INVALID" not in good
    assert 'role="alert"' not in good
    bench["verdict"] = {"valid": False, "reasons": ["frequency fell to 1900 MHz"]}
    bad = html_page(build_report(bundles, bench))
    assert bad.index('role="alert"') < bad.index("frequency fell to 1900 MHz") < bad.index("<h1>")
    assert "<title>INVALID" in bad
    bench["verdict"]["reasons"] = []
    assert "no reason was recorded" in html_page(build_report(bundles, bench))


def test_a_failed_cell_is_named_with_its_reason(bundles, bench):
    bench["cells"][6].update(failed="killed: out of memory", p50_ms=None, p90_ms=None, p99_ms=None, ratio=None)
    words = " ".join(Page(html_page(build_report(bundles, bench))).words)
    assert "saten-fp32 failed at 128 tokens, 1 thread, batch 1, memory mode fast: killed: out of memory" in words
    assert "failed: killed: out of memory" in words
    assert "saten-fp32 takes 26.6\N{NO-BREAK SPACE}% of dense-fp32’s bytes and fails at 128 tokens." in words


def test_parts_may_be_missing(bundles, bench, evaluation):
    without_scores = html_page(build_report(bundles, bench))
    assert "accuracy not measured" in without_scores
    assert "recall" not in without_scores
    without_times = html_page(build_report(bundles, None, evaluation))
    assert "latency not measured" in without_times
    assert "p50" not in without_times
    assert [plot.title for plot in plots(build_report(bundles))] == ["Bytes per layer"]
    assert [plot.title for plot in plots(build_report([], bench))] == ["Latency", "Memory"]
    assert plots(build_report([], None, evaluation)) == []
    for report in (build_report(bundles[:1]), build_report([], bench), build_report([], None, evaluation)):
        Page(html_page(report))


def test_everything_failed_still_gives_a_page(bundles, bench, evaluation):
    for cell in bench["cells"]:
        cell.update(failed="no", p50_ms=None, ratio=None)
    bench["loads"] = []
    page = Page(html_page(build_report(bundles, bench, evaluation)))
    assert page.tags.count("svg") == 1


def labels(report):
    return {plot.title: re.findall(r"<text[^>]*>([^<]*)</text>", plot.svg) for plot in plots(report)}


def test_pictures_name_what_they_show(report):
    found = labels(report)
    names = {"dense-fp32", "dense-int8", "saten-fp32", "saten-int8"}
    assert list(found) == ["The trade", "Latency", "Memory", "Fine-tuning", "Bytes per layer"]
    assert names | {"recall@1", "91.1 MB", "7.8 MB", "10", "20"} <= set(found["The trade"])
    assert names | {"32 tokens", "128 tokens", "21.3 ms", "9.14 ms", "milliseconds per run"} <= set(found["Latency"])
    assert names | {"176.3 MiB", "58.5 MiB"} <= set(found["Memory"])
    kinds = {"embeddings.word_embeddings", "intermediate.dense × 6", "attention.self.key × 6", "everything else"}
    assert kinds | {"46.9 MB", "3.0 MB"} <= set(found["Bytes per layer"])
    assert {"step", "loss"} <= set(found["Fine-tuning"])


def test_pictures_follow_the_numbers(report, bundles, bench, evaluation):
    bench["cells"][7].update(p50_ms=7.77)
    evaluation["rows"][3]["metrics"]["recall_at_1"] = 0.4
    old, new = labels(report), labels(build_report(bundles, bench, evaluation))
    assert "7.77 ms" in new["Latency"]
    assert "7.77 ms" not in old["Latency"]
    assert old["Memory"] == new["Memory"]


def test_pictures_take_the_colours_of_the_page(report):
    for plot in plots(report):
        assert "#000000" not in plot.svg
        assert "#ffffff" not in plot.svg
        assert "<style" not in plot.svg
        assert "currentColor" in plot.svg or "var(--muted)" in plot.svg
        assert re.search(r"var\(--(dense|saten)-\d, #", plot.svg)


def test_many_bundles_and_a_single_point_can_be_drawn(bundle, bench, evaluation):
    names = [f"bundle-{index:02d}-" + "x" * 40 for index in range(14)]
    bench["cells"] = [bench["cells"][0] | {"bundle": name} for name in names]
    evaluation["rows"] = [evaluation["rows"][0] | {"bundle": name} for name in names]
    many = build_report([bundle(name, "int8", 0.07, 0.06) for name in names], bench, evaluation)
    assert len(plots(many)) == 4
    bench["cells"], evaluation["rows"] = bench["cells"][:1], evaluation["rows"][:1]
    history = [{"step": 0, "loss": 90.0}, {"step": 1, "loss": 0.5}]
    assert len(plots(build_report([], bench, evaluation, history=history))) == 4
