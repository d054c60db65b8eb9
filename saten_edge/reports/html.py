"""The report as one HTML page: no script, no network, nothing beside the file itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from saten_edge.reports import text
from saten_edge.reports.colors import SERIES
from saten_edge.reports.columns import PAGE, columns
from saten_edge.reports.headline import comparisons, headline
from saten_edge.reports.method import method
from saten_edge.reports.model import Report, Row
from saten_runtime.bench.plan import Size
from saten_runtime.bench.results import Cell
from saten_runtime.records.files import replace_file

__all__ = ["html_page", "write_html"]


def write_html(report: Report, path: Path) -> None:
    """Write the page to `path`, atomically; the same report gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, html_page(report).encode())


def html_page(report: Report) -> str:
    """The whole page. Every string of the report is data there: escaped, never markup."""
    # matplotlib takes half a second to import; the terminal's table does without.
    from saten_edge.reports.plots import plots

    shown = columns(report, PAGE)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            headline=headline(report),
            comparisons=comparisons(report),
            columns=shown,
            groups=[(group, len(list(members))) for group, members in groupby(shown, key=lambda column: column.group)],
            plots=[(plot, Markup(plot.svg)) for plot in plots(report)],  # noqa: S704 - an XML writer escaped it
            method=method(report),
            facts=[*_environment_facts(report), *_data_facts(report)],
            layer_tables=[_layer_table(row) for row in report.rows if row.layers],
            series=SERIES,
            size_name=_size_name,
        )
    )


def _size_name(cell: Cell) -> str:
    """As llama-bench names it where a decoder was measured, else the number of tokens."""
    return Size(cell.batch, cell.tokens, cell.phase, cell.depth).name


def _environment_facts(report: Report) -> list[tuple[str, str]]:
    """Without the hashes of files that are listed with their bundle."""
    listed = tuple(f"models.{row.name}." for row in report.rows if row.files)
    return [(name, value) for name, value in report.environment if not name.startswith(listed)]


def _data_facts(report: Report) -> list[tuple[str, str]]:
    data = report.data
    return [("data.file", data.file), ("data.sha256", data.sha256), ("data.count", str(data.count))] if data else []


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("saten_edge.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: show for name in text.__all__ if callable(show := getattr(text, name))}
    return environment


@dataclass(frozen=True)
class _LayerTable:
    """A bundle's layers and their sums."""

    row: Row
    bytes: int
    dense_fp32_bytes: int
    nnz: int
    macs_per_row: int


def _layer_table(row: Row) -> _LayerTable:
    sums = {
        name: sum(getattr(layer, name) for layer in row.layers)
        for name in ("bytes", "dense_fp32_bytes", "nnz", "macs_per_row")
    }
    return _LayerTable(row, **sums)
