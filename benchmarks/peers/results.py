"""Where results are kept, and how a table is written: numbers as JSON, the table as Markdown, a picture as SVG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saten_runtime.machine.device import environment
from saten_runtime.records.files import replace_file, write_json
from saten_runtime.run.kernels import probe

__all__ = ["RESULTS", "machine_name", "markdown", "publish", "short"]


def machine_name(facts: dict[str, Any] | None = None) -> str:
    """The processor and its cores as the name of a folder; facts: an `environment()`, this machine's by default."""
    facts = facts or environment()
    words = re.findall(r"[a-z0-9]+", f"{facts['cpu'] or facts['machine']}".lower())
    return "-".join((*words, str(facts["cores"] or 1), "cores"))


RESULTS = Path(__file__).parents[1] / "results" / machine_name()


def publish(output: Path, rows: Sequence[dict[str, Any]], text: str, picture: str | None = None, **facts: Any) -> None:
    """Write output (JSON), the text beside it as .md and the picture as .svg; print the text.

    rows: one object per row of the table; facts: what else the JSON holds.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {"environment": environment(), "kernels": probe().words}
    write_json(output, {**about, **facts, "rows": list(rows)})
    replace_file(output.with_suffix(".md"), text.encode())
    if picture is not None:
        replace_file(output.with_suffix(".svg"), picture.encode())
    print(text, end="", flush=True)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table; the first `texts` columns are texts, the others numbers."""
    rule = ["---" if column < texts else "--:" for column in range(len(head))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))


def short(value: float | None, form: str = "{:.3g}") -> str:
    """A number, or a dash for none."""
    return "–" if value is None else form.format(value)
