"""All tables of benchmarks/README.md, one after the other, as `make bench [DATA=FOLDER] [MODELS=FOLDER] [QUICK=1]`.

    python benchmarks/bench.py --work FOLDER [--data FOLDER] [--models FOLDER] [--only encoder,vision] [--calibration]
    python benchmarks/bench.py --work FOLDER --quick [-o FOLDER]

Each table is a program of its own, started in a process of its own. It writes `results/<machine>/<table>.json`, the
same as Markdown and as a picture; the README shows them. A table whose data are missing says so, and the rest goes on.
--quick runs all programs for moments, to see that they work, and writes to a folder that is deleted unless it is
named. Exit code 1 where a table failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.comparison import say
from peers.results import RESULTS

from saten_runtime.records.files import replace_file

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
MOST_S = 3600
SECTION = r"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"


@dataclass(frozen=True)
class Table:
    """A program that writes one table. arguments: {work}, {data} and {models} stand for folders; needs: those without
    which there is no table; quick: whether there is a quick version; calibration: run only when asked for; hours: made
    by a target of the Makefile of its own, so that only its quick version runs here.
    """

    name: str
    program: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    quick: bool = True
    calibration: bool = False
    hours: bool = False


WORK = ("--work", "{work}")
TABLES = (
    Table("encoder", "encoder.py", ("--models", "{models}", "--data", "{data}", *WORK), needs=("models", "data")),
    Table("bert_base", "encoder.py", ("--random", *WORK)),
    Table("decoder", "decoder.py", (*WORK, "--rounds", "4")),
    Table("llama_1b", "decoder.py", ("--random", *WORK, "--rounds", "3"), quick=False),
    Table("vision", "vision.py", WORK),
    Table("vit_base", "vision.py", ("--random", *WORK)),
    Table("scaling", "scaling.py", WORK),
    Table("layers", "layers.py"),
    Table("toolchain", "toolchain.py", WORK),
    Table("workers", "workers.py", WORK),
    Table("training", "training.py", WORK),
    Table("search", "search.py", WORK, hours=True),
    Table("solvers", "solvers.py"),
    Table("shapes", "shapes.py"),
    Table("cost_model", "cost_model.py", ("--write",), quick=False, calibration=True),
    Table(
        "precision",
        "precision.py",
        (
            "{models}/sst2-dense-fp32-1.00-0/finetuned",
            "{models}/sst2-saten-grouped-int8-0.25-0/finetuned",
            *("--names", "dense,saten", "--data", "{data}/sst2/validation.jsonl"),
        ),
        needs=("models", "data"),
        quick=False,
        calibration=True,
    ),
    Table(
        "precision_decoder",
        "precision.py",
        ("--smollm2", "--data", "{data}/wikitext2/validation.jsonl", *WORK),
        needs=("data",),
        quick=False,
        calibration=True,
    ),
    Table(
        "toolchain_decoder",
        "toolchain.py",
        ("smollm2", "--texts", "{data}/wikitext2/train.jsonl", *WORK),
        needs=("data",),
        quick=False,
        calibration=True,
    ),
)
# Tables that the README shows and that are made by other targets of the Makefile.
OTHERS = ("accuracy", "methods", "optimize", "language_model", "a_versus_a", "kernels")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder that benchmarks/glue.py writes")
    parser.add_argument("--models", type=Path, help="folder of accuracy.py's checkpoints")
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts; kept for the next run")
    parser.add_argument("--only", default="", help="tables, with commas between")
    parser.add_argument("--calibration", action="store_true", help="only what the cost model and the docs are fed by")
    parser.add_argument("--quick", action="store_true", help="moments instead of minutes; changes no result")
    parser.add_argument("-o", "--output", type=Path, help="folder of results; this machine's by default")
    arguments = parser.parse_args()
    folders = {name: getattr(arguments, name) for name in ("data", "models") if getattr(arguments, name)}
    asked = arguments.only.split(",") if arguments.only else [each.name for each in TABLES]
    wanted = [each for each in TABLES if each.name in asked and each.calibration == arguments.calibration]
    wanted = [each for each in wanted if (each.quick if arguments.quick else not each.hours)]
    with results_folder(arguments.output, quick=arguments.quick) as results:
        outcomes = {}
        for each in wanted:
            started = time.monotonic()
            outcomes[each.name] = outcome = run(each, folders, arguments.work, results, quick=arguments.quick)
            say(f"{each.name}: {outcome} ({(time.monotonic() - started) / 60:.1f} min)")
        if results == RESULTS:
            replace_file(README, refreshed(README.read_text("utf-8"), results).encode())
    return int(any(outcome.startswith("failed") for outcome in outcomes.values()))


@contextlib.contextmanager
def results_folder(asked: Path | None, *, quick: bool) -> Iterator[Path]:
    """Where results go: where asked, else this machine's folder, or one that is deleted if they are worth nothing."""
    if asked or not quick:
        yield (asked or RESULTS).resolve()
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def run(table: Table, folders: Mapping[str, Path], work: Path, results: Path, *, quick: bool) -> str:
    """Run a table's program; how it went, "failed" first where it failed."""
    missing = [name for name in table.needs if name not in folders]
    if missing:
        return f"left out, it needs {' and '.join(f'{name.upper()}=FOLDER' for name in missing)}"
    own = (work / f"{table.name}{'-quick' * quick}").resolve()
    places = {"work": own, **{name: path.resolve() for name, path in folders.items()}}
    options = [part.format(**places) for part in table.arguments]
    command = [sys.executable, FOLDER / table.program, *options, "-o", results / f"{table.name}.json"]
    say(f"{table.name} …")
    try:
        code = subprocess.run([*map(str, command), *["--quick"] * quick], timeout=MOST_S).returncode
    except subprocess.TimeoutExpired:
        return f"failed, not done after {MOST_S} s"
    return "done" if code == 0 else f"failed with exit code {code}"


def refreshed(text: str, results: Path) -> str:
    """The README with the tables of one machine between their markers; a section without results stays as it is."""
    for name in (*(table.name for table in TABLES), *OTHERS):
        if (results / f"{name}.md").is_file():
            shown = section(name, results)
            text = re.sub(SECTION.format(name=name), lambda found, s=shown: found[1] + s + found[2], text, flags=re.S)
    return text


def section(name: str, results: Path) -> str:
    """What the README shows of a table: its machine, its Markdown up to the first heading, and its picture."""
    facts = json.loads((results / f"{name}.json").read_text("utf-8"))
    table, _, rest = (results / f"{name}.md").read_text("utf-8").partition("\n### ")
    place = f"results/{results.name}"
    more = f"\n[All numbers]({place}/{name}.md).\n" if rest else ""
    picture = f"\n![{name}]({place}/{name}.svg)\n" if (results / f"{name}.svg").is_file() else ""
    return f"\n{machine(facts)}\n\n{table.strip()}\n{more}{picture}\n"


def machine(facts: dict[str, Any]) -> str:
    """Where a table's numbers come from, in a line."""
    about = facts["environment"]
    versions = f"ONNX Runtime {about['packages']['onnxruntime']}; kernels: {facts['kernels']}"
    flags = f" ({', '.join(about['cpu_flags'])})" if about.get("cpu_flags") else ""  # not in tables of long ago
    return f"{about['cpu']}{flags}, {about['cores']} cores; {versions}"


if __name__ == "__main__":
    sys.exit(main())
