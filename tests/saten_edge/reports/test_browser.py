"""The page in headless Chromium, light and dark, as wide as a phone and as a desk.

`make images` runs this on the demo's page and keeps the pictures for README.md: SATEN_REPORT names
the page, SATEN_IMAGES the folder.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

HEIGHTS = {390: 844, 1200: 1370}  # by width, in CSS pixels
SCHEMES = ("light", "dark")
TITLES = [
    "The trade",
    "Latency",
    "Distance to the floor",
    "Memory",
    "Memory over time",
    "Fine-tuning",
    "Bytes per layer",
]


@pytest.fixture
def page_file(full_page: str, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(full_page)
    return path


@pytest.fixture
def visit(chromium) -> Iterator[Any]:
    """visit(file, width, scheme) -> the page; whatever it complains of or fetches fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(file: Path, width: int, scheme: str = "light") -> Any:
        viewport = {"width": width, "height": HEIGHTS[width]}
        contexts.append(chromium.new_context(viewport=viewport, color_scheme=scheme, is_mobile=width < 500))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("request", lambda request: request.url == file.as_uri() or complaints.append(f"fetches {request.url}"))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def too_wide(page: Any) -> int:
    """CSS pixels that the page is wider than the screen."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def brightness(page: Any) -> float:
    """Median of the grey values of what is on the screen."""
    histogram = Image.open(io.BytesIO(page.screenshot())).convert("L").histogram()
    middle = sum(histogram) / 2
    return next(value for value in range(256) if sum(histogram[: value + 1]) >= middle)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", HEIGHTS)
def test_nothing_is_wider_than_the_screen_and_every_picture_is_drawn(page_file, visit, width, scheme):
    page = visit(page_file, width, scheme)
    assert too_wide(page) <= 0
    assert page.locator("figure h3").all_text_contents() == TITLES
    boxes = [figure.bounding_box() for figure in page.locator("figure svg").all()]
    assert len(boxes) == len(TITLES)
    assert all(box["width"] > 0.75 * min(width, 500) and box["height"] > 100 for box in boxes)
    assert (brightness(page) > 200) == (scheme == "light")
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true; }")
    assert too_wide(page) <= 0


def test_the_table_of_bundles_fits_a_desk(page_file, visit):
    wide, all_ = visit(page_file, 1200).evaluate(
        "(box => [box.clientWidth, box.scrollWidth])(document.querySelector('.scroll'))"
    )
    assert all_ <= wide


def test_what_is_too_wide_would_be_seen(page_file, visit):
    page_file.write_text(page_file.read_text().replace("<main>", '<main><div style="width: 500px">wide</div>'))
    assert too_wide(visit(page_file, 390)) > 0


def test_what_a_page_fetches_would_be_seen(page_file, chromium, tmp_path):
    fetched: list[str] = []
    page_file.write_text(
        page_file.read_text().replace("<main>", '<main><img src="picture.png">').replace("img-src", "x")
    )
    page = chromium.new_page()
    page.on("console", lambda message: fetched.append(message.text))
    page.goto(page_file.as_uri())
    page.close()
    assert any("Content Security Policy" in text for text in fetched)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", HEIGHTS)
def test_the_pictures_of_the_readme(page_file, visit, tmp_path, width, scheme):
    page = visit(Path(os.environ.get("SATEN_REPORT", page_file)).resolve(), width, scheme)
    folder = Path(os.environ.get("SATEN_IMAGES", tmp_path))
    content = page.screenshot()
    image = Image.open(io.BytesIO(content))
    assert image.size == (width, HEIGHTS[width])
    assert too_wide(page) <= 0
    assert page.locator("h1").is_visible()
    (folder / f"report-{width}-{scheme}.png").write_bytes(content)
