"""The documentation site: `build` writes it to build/site, `serve` shows it and follows changes.

Pages are the project's own Markdown files: README.md is the front page, docs/ and benchmarks/README.md the others. They
link to each other by their places in the repository; the copies in build/pages link by their places in the site. What
is made here: every command with its options, as the programs print their help, the Python API, and the notebooks.
A link that leads nowhere, a missing anchor and any other warning of Zensical is an error.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "pages"
# A file of the repository → its page. Decisions and pages of docs/ keep their names.
ELSEWHERE = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md", "runtime/README.md": "runtime.md"}
ELSEWHERE |= {"SECURITY.md": "reporting.md", "CONTRIBUTING.md": "contributing.md"}
FOLDERS = {"docs/adr": "adr/index.md"}
# What else pages show: pictures, and scripts and tables that they link to.
SHOWN = {"docs/images": "images", "benchmarks/results": "results", "docs/notebook.py": "notebook.py"}
SHOWN |= {"docs/notebooks": "notebooks"}
_LINK = re.compile(r'(\]\(|src="|srcset=")([^)"#\s]+)')
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def pages_of(root: Path) -> dict[str, str]:
    """Every Markdown file that is a page: its place in the repository → its place in the site."""
    own = sorted(path.relative_to(root).as_posix() for path in (root / "docs").rglob("*.md"))
    return {**ELSEWHERE, **{page: page.removeprefix("docs/") for page in own}}


def relinked(text: str, page: str, places: Mapping[str, str]) -> str:
    """`text` of the file `page` with its links to other files as the site has them.

    places: a file or folder of the repository → its place in the site. A link to anything else stays as it is.
    """

    def moved(link: re.Match[str]) -> str:
        before, target = link.groups()
        if "://" in target:
            return link.group()
        found = _place(_normal(PurePosixPath(page).parent / target), places)
        return link.group() if found is None else before + _relative(found, places[page])

    parts, last = [], 0
    for fence in _FENCED.finditer(text):  # code shows links, it has none
        parts += [_LINK.sub(moved, text[last : fence.start()]), fence.group()]
        last = fence.end()
    return "".join([*parts, _LINK.sub(moved, text[last:])])


def _place(target: str, places: Mapping[str, str]) -> str | None:
    if target in places:
        return places[target]
    inside = [(old, new) for old, new in SHOWN.items() if target.startswith(f"{old}/")]
    return next((new + target.removeprefix(old) for old, new in inside), None)


def _normal(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def _relative(target: str, page: str) -> str:
    return "../" * (len(PurePosixPath(page).parts) - 1) + target


# --- pages that are made ---------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command of both programs as a section, with what its `--help` prints; it follows docs/commands.md."""
    sections = ["", "Each section below is what `--help` prints."]
    for program, helps in (("saten-edge", _helps_of_the_workstation), ("saten-run", _helps_of_the_device)):
        sections.append(f"## {program}")
        sections += [f"### {name}\n\n```text\n{text.strip()}\n```" for name, text in helps()]
    return "\n\n".join(sections) + "\n"


def _helps_of_the_workstation() -> Iterator[tuple[str, str]]:
    import typer.main

    from saten_edge.cli.commands import app

    def walk(command: Any, name: str) -> Iterator[tuple[str, str]]:
        inner = getattr(command, "commands", {})
        for word, sub in inner.items():
            yield from walk(sub, f"{name} {word}")
        if not inner:
            context = command.make_context(name, ["--help"], resilient_parsing=True, terminal_width=100)
            yield name, command.get_help(context)

    yield from walk(typer.main.get_command(app), "saten-edge")


def _helps_of_the_device() -> Iterator[tuple[str, str]]:
    from saten_runtime.arguments import make_parser

    parser = make_parser(defaultdict(lambda: lambda _: 0))
    (chosen,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, sub in chosen.choices.items():
        sub.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
        yield f"saten-run {name}", sub.format_help()


def api_page() -> str:
    """The public names of `saten_edge`, each with its docstring; mkdocstrings reads them."""
    import saten_edge

    public = [name for name in saten_edge.__all__ if not name.startswith("_")]
    head = ["# The Python API, name by name", "[Python](python.md) shows how they work together."]
    functions_first = sorted(public, key=lambda name: (name[0].isupper(), name))
    return "\n\n".join([*head, *(f"::: saten_edge.{name}" for name in functions_first)]) + "\n"


def decisions_page(root: Path) -> str:
    """The decisions, by their titles."""
    found = sorted((root / "docs" / "adr").glob("*.md"))
    titles = {path.name: path.read_text("utf-8").partition("\n")[0].lstrip("# ") for path in found}
    return "# Decisions\n\n" + "".join(f"- [{title}]({name})\n" for name, title in titles.items())


def notebooks_page(root: Path) -> str:
    """What stands in the notebooks, one after the other; it follows docs/notebooks.md."""
    found = sorted((root / "docs" / "notebooks").glob("*.ipynb"))
    cells = [cell for path in found for cell in json.loads(path.read_text("utf-8"))["cells"]]
    return "\n" + "\n\n".join(_shown(cell["cell_type"], "".join(cell["source"])) for cell in cells) + "\n"


def _shown(kind: str, source: str) -> str:
    """A cell as Markdown; headings are one level below the page's."""
    return f"```python\n{source}\n```" if kind == "code" else re.sub("^#", "##", source, flags=re.MULTILINE)


MADE: dict[str, Callable[[], str]] = {
    "notebooks.md": lambda: notebooks_page(ROOT),
    "commands.md": commands_page,
    "api.md": api_page,
    "adr/index.md": lambda: decisions_page(ROOT),
}

# --- the site --------------------------------------------------------------------------------------------------------


def gather(root: Path, out: Path) -> None:
    """Write all pages and what they show to `out`, which is replaced."""
    shutil.rmtree(out, ignore_errors=True)
    pages = pages_of(root)
    places = {**pages, **FOLDERS, **SHOWN}
    for source, place in pages.items():
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        (out / place).write_text(relinked((root / source).read_text("utf-8"), source, places), "utf-8")
    for source, place in SHOWN.items():
        copy = shutil.copytree if (root / source).is_dir() else shutil.copyfile
        copy(root / source, out / place)
    for place, make in MADE.items():
        with (out / place).open("a", encoding="utf-8") as page:
            page.write(make())


def main() -> int:
    """Gather the pages and hand them to Zensical."""
    parser = argparse.ArgumentParser(description="Build or serve the documentation site.")
    parser.add_argument("action", choices=("build", "serve"))
    action = parser.parse_args().action
    gather(ROOT, PAGES)
    zensical = [sys.executable, "-m", "zensical", action, "--config-file", str(ROOT / "zensical.toml")]
    return subprocess.run([*zensical, *(["--strict", "--clean"] if action == "build" else [])], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
