"""The commands in README.md work: they are run here as they stand, on a small model."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
# What only makes the commands quick; everything else is run as written.
QUICKER = {"--minutes 30": "--minutes 0.02", "--budget 0.285": "--budget 0.6 --group 8"}


def fenced(section: str) -> str:
    """The first `sh` block below a heading."""
    below = README.split(f"## {section}\n", 1)[1]
    return re.search(r"```sh\n(.*?)```", below, re.DOTALL).group(1)


def test_the_stage_commands_run_as_written(long_bert, tmp_path):
    texts = [f'{{"query": "what is number {k}", "answer": "the answer to question {k} is {k}"}}' for k in range(64)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    (tmp_path / "held_out.jsonl").write_text("\n".join(texts[:8]))
    script = fenced("Your own model").replace(HUB_NAME, shlex.quote(str(long_bert)))
    for slow, quick in QUICKER.items():
        assert slow in script
        script = script.replace(slow, quick)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euxc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (0, 4), done.stderr[-2000:]  # 4: a busy machine makes a benchmark invalid
    if done.returncode == 0:
        assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("command", ["demo", "test", "check"])
def test_every_make_command_of_the_readme_exists(command):
    assert f"make {command}" in README
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_first_screen_shows_what_it_does_numbers_and_the_two_commands():
    first_screen = "\n".join(README.splitlines()[:45])
    for expected in ("make demo", "make test", "| bundle", "saten-int8", "dense-int8"):
        assert expected in first_screen


def test_every_picture_and_page_it_links_is_there():
    linked = re.findall(r'(?:src|srcset)="([^"]+)"|\]\(([^)#]+)', README)
    targets = {one or other for one, other in linked if "://" not in one + other}
    assert {"docs/images/report-1200-light.png", "docs/measuring.md"} <= targets
    assert [target for target in sorted(targets) if not (ROOT / target).exists()] == []
