"""The documentation site: every link arrives, every command is there, and a browser shows it without a network."""

from __future__ import annotations

import html.parser
import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import docs_site
import pytest

PLACES = {"README.md": "index.md", "docs/a.md": "a.md", "docs/adr/001-b.md": "adr/001-b.md", **docs_site.FOLDERS}


@pytest.mark.parametrize(
    ("page", "link", "wanted"),
    [
        ("README.md", "[a](docs/a.md#part)", "[a](a.md#part)"),
        ("docs/a.md", "[home](../README.md)", "[home](index.md)"),
        ("docs/a.md", "[all](adr)", "[all](adr/index.md)"),
        ("docs/adr/001-b.md", "[a](../a.md)", "[a](../a.md)"),
        ("docs/adr/001-b.md", "[home](../../README.md)", "[home](../index.md)"),
        ("README.md", '<img src="docs/images/x.png">', '<img src="images/x.png">'),
        ("docs/a.md", "[away](https://example.org/docs/a.md)", "[away](https://example.org/docs/a.md)"),
        ("docs/a.md", "[other](../LICENSE)", "[other](../LICENSE)"),  # no page: Zensical will refuse it
        ("README.md", "```sh\n[a](docs/a.md)\n```", "```sh\n[a](docs/a.md)\n```"),
    ],
)
def test_links_are_those_of_the_site(page: str, link: str, wanted: str) -> None:
    assert docs_site.relinked(f"See\n{link}\nand go.", page, PLACES) == f"See\n{wanted}\nand go."


def test_every_markdown_file_of_docs_is_a_page() -> None:
    pages = docs_site.pages_of(docs_site.ROOT)
    assert {"README.md", "docs/faq.md", "docs/adr/001-placeholders-instead-of-traced-weights.md"} <= set(pages)
    assert len(set(pages.values())) == len(pages)
    menu = (docs_site.ROOT / "zensical.toml").read_text("utf-8")
    unlisted = {"adr/index.md"} | {place for place in pages.values() if place.startswith("adr/")}
    for place in ({*pages.values()} | {*docs_site.MADE}) - unlisted:
        assert f'"{place}"' in menu


def test_every_command_has_a_section_with_its_options() -> None:
    page = docs_site.commands_page()
    for command in ("saten-edge compress", "saten-edge devices doctor", "saten-run predict"):
        assert f"### {command}\n" in page
    assert "--budget" in page


class _Links(html.parser.HTMLParser):
    """Where a page leads, what it loads, and what it can be entered by."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.loaded += [found["src"]] if "src" in found else []
        self.loaded += [found["href"]] if tag == "link" and found.get("rel") == "stylesheet" else []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; warnings were errors."""
    if importlib.util.find_spec("zensical") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("zensical is not installed (pip install 'saten-edge[docs]')")
    root = tmp_path_factory.mktemp("site")
    docs_site.gather(docs_site.ROOT, root / "build" / "pages")
    shutil.copyfile(docs_site.ROOT / "zensical.toml", root / "zensical.toml")  # Zensical works where the file really is
    for name in ("saten_edge", "exporters", "runtime"):
        (root / name).symlink_to(docs_site.ROOT / name)
    done = build(root)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "build" / "site"


def build(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", "zensical.toml"]
    return subprocess.run(
        command, cwd=root, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, timeout=300
    )


def parsed(page: Path) -> _Links:
    reader = _Links()
    reader.feed(page.read_text("utf-8"))
    return reader


def dead_links(site: Path) -> list[str]:
    """Links and loaded files inside the site that are not there."""
    dead = []
    pages = {page: parsed(page) for page in site.rglob("*.html") if page.name != "404.html"}
    for page, found in pages.items():
        for link in [*found.links, *found.loaded]:
            target, _, anchor = link.partition("#")
            if urllib.parse.urlsplit(target).scheme:
                continue
            path = (page.parent / urllib.parse.unquote(target)).resolve() if target else page
            path = path / "index.html" if path.is_dir() else path
            if not path.exists() or (anchor and path in pages and anchor not in pages[path].anchors):
                dead.append(f"{page.relative_to(site)}: {link}")
    return dead


def test_every_link_arrives(site: Path) -> None:
    assert dead_links(site) == []


def test_a_dead_link_is_found(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site")
    page = tmp_path / "site" / "faq" / "index.html"
    page.write_text(page.read_text("utf-8").replace("../lowering/", "../lowered/").replace('id="which', 'id="that'))
    (tmp_path / "site" / "images" / "graph.svg").unlink()
    dead = dead_links(tmp_path / "site")
    assert any("graph.svg" in link for link in dead)
    assert any(link.startswith("faq/index.html: #which") for link in dead)


def test_a_dead_link_ends_the_build(tmp_path: Path) -> None:
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("zensical is not installed (pip install 'saten-edge[docs]')")
    (tmp_path / "build" / "pages").mkdir(parents=True)
    (tmp_path / "build" / "pages" / "index.md").write_text("[a page](that-is-not-there.md)\n")
    (tmp_path / "zensical.toml").write_text('[project]\nsite_name = "x"\ndocs_dir = "build/pages"\n')
    assert build(tmp_path).returncode != 0


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert [link for link in parsed(page).loaded if urllib.parse.urlsplit(link).scheme] == []


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(site: Path, chromium: Any, width: int) -> None:
    """From the folder, without a server: pictures appear, and no text is wider than the screen."""
    page = chromium.new_page(viewport={"width": width, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    for name in ("index.html", "how-it-works/index.html", "commands/index.html", "benchmarks/index.html"):
        page.goto((site / name).as_uri())
        broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
        assert broken == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    page.close()
    assert errors == []
