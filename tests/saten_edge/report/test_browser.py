"""The page in a browser: nothing is wider than the screen of a phone, and every picture is drawn."""

import json
import re
import shutil
import subprocess

import pytest

from saten_edge.report import build_report, write_html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]


@pytest.fixture
def page(tmp_path, bundles, bench, evaluation, history):
    for cell in bench["cells"]:
        cell["quantiles_ms"] = [cell["p50_ms"] * (0.9 + 0.01 * place) for place in range(21)]
        cell["floor"] = {"ms": cell["p50_ms"] / 4, "bound": "compute"}
    for load in bench["loads"]:
        load["memory"]["timeline"] = {
            "times_ms": [0.0, 100.0, 300.0],
            "rss_anon_bytes": [2**20, 2**25, 2**26],
            "rss_file_bytes": [2**20] * 3,
        }
    path = tmp_path / "report.html"
    write_html(build_report(bundles, bench, evaluation, history=history), path)
    return path


def browse(page, tmp_path, *flags):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [500, 1200])
def test_the_page_is_drawn(page, tmp_path, width):
    shot = tmp_path / "shot.png"
    browse(page, tmp_path, f"--window-size={width},4000", f"--screenshot={shot}")
    image = pytest.importorskip("PIL.Image").open(shot).convert("L")
    assert image.width == width
    assert len({value for _, value in image.resize((width // 4, 1000)).getcolors(256)}) > 20  # not an empty page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_pictures_are_there_in_the_browser_too(page, tmp_path):
    done = browse(page, tmp_path, "--dump-dom")
    titles = re.findall(r"<h3>([^<]+)</h3>", done.stdout)
    assert titles == [
        *("The trade", "Latency", "Distance to the floor", "Memory", "Memory over time", "Fine-tuning"),
        "Bytes per layer",
    ]
    assert done.stdout.count("<svg") == len(titles)
    assert json.dumps("https://") not in done.stdout
