"""The commands in README.md work: they are run here as they stand, on a small model."""

import json
import os
import re
import shlex
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from saten_exporters.bundles.card import USES
from saten_runtime.arguments import make_parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
# What only makes the commands quick; everything else is run as written.
QUICKER = {"--minutes 30": "--minutes 0.02", "--budget 0.285": "--budget 0.6 --group 8"}

# A busy machine makes a benchmark invalid, exit code 4; its results are written, and what follows is run all the same.
BUSY = """
saten-edge() {
    command saten-edge "$@" || { code=$?; [ "$1" = bench ] && [ "$code" = 4 ]; }
}
"""


def fenced(section: str) -> str:
    """The longest `sh` block below a heading and before the next."""
    below = README.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    return max(re.findall(r"```sh\n(.*?)```", below, re.DOTALL), key=len)


def test_the_stage_commands_run_as_written_up_to_the_report(long_bert, warm_path, offline, tmp_path):
    texts = [f'{{"query": "what is number {k}", "answer": "the answer to question {k} is {k}"}}' for k in range(64)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    (tmp_path / "held_out.jsonl").write_text("\n".join(texts[:8]))
    script = fenced("Your own model").replace(HUB_NAME, shlex.quote(str(long_bert)))
    for slow, quick in QUICKER.items():
        assert slow in script
        script = script.replace(slow, quick)
    command = ["bash", "-euxc", BUSY + script]
    environment = {**offline, "PATH": warm_path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in ("dense-int8", "saten-int8"))


def test_the_card_of_a_bundle_installs_as_the_readme_does_and_its_commands_run(tiny_bundle, warm_path):
    bundle = tiny_bundle("dense-int8")
    card = (bundle / "README.md").read_text()
    (block,) = re.findall(r"```sh\n(.*?)```", card, re.DOTALL)
    install, *commands = block.splitlines()
    assert install.partition("  #")[0] == fenced("On the device").splitlines()[0]
    assert commands == ['saten-run predict . "some text"']
    command = ["bash", "-euc", "\n".join(commands)]
    done = subprocess.run(command, cwd=bundle, env={**os.environ, "PATH": warm_path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["embedding"]) == 64


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_first_command_of_every_card_is_understood(use):
    command, item = use
    make_parser(defaultdict(lambda: lambda _: 0)).parse_args([command, ".", *shlex.split(item)])


# Layers have what leaves the least error in their bytes, which may be a train or a residual alone.
BOTH = re.compile(
    r"(every|each|all)( weight| linear)* (matrix|matrices|layers?|tables?)[^.|]* "
    r"(train (plus|and)|with) a (sparse )?residual"
)


@pytest.mark.parametrize("page", ["README.md", *sorted(path.name for path in (ROOT / "docs").glob("*.md"))])
def test_no_page_says_that_every_matrix_gets_a_residual(page):
    text = (ROOT / page if page == "README.md" else ROOT / "docs" / page).read_text()
    assert BOTH.search(" ".join(text.split())) is None
    said = "It replaces every weight matrix by a tensor train plus a sparse residual (the Saten method)"
    assert BOTH.search(said)
    assert page != "README.md" or "by a tensor train, a sparse residual, or both" in text


def test_it_says_on_which_system_it_runs():
    systems = re.findall(r'"Operating System :: (?:POSIX :: )?([^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert systems == ["Linux"]
    for page in ("README.md", "docs/start.md"):
        assert f"You need {systems[0]}, " in (ROOT / page).read_text()


@pytest.mark.parametrize("command", ["demo", "test", "check"])
def test_every_make_command_of_the_readme_exists(command):
    assert f"make {command}" in README
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_a_stranger_can_read_it_at_once():
    assert len(README.splitlines()) <= 120


def test_the_first_screen_shows_what_it_does_numbers_and_the_two_commands():
    first_screen = "\n".join(README.splitlines()[:45])
    for expected in ("make demo", "make test", "| bundle", "saten-int8", "dense-int8"):
        assert expected in first_screen


def test_every_picture_and_page_it_links_is_there():
    linked = re.findall(r'(?:src|srcset)="([^"]+)"|\]\(([^)#]+)', README)
    targets = {one or other for one, other in linked if "://" not in one + other}
    assert {"docs/images/report-1200-light.png", "docs/measuring.md"} <= targets
    assert [target for target in sorted(targets) if not (ROOT / target).exists()] == []
