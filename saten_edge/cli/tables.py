"""What the commands of `saten-edge` print on this machine, as aligned text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saten_runtime.records.plain_text import align

if TYPE_CHECKING:
    from saten_edge.phone import Run

__all__ = ["evaluation_table", "layers_table", "metrics_table", "run_tables", "trim_table"]

# A parameter that stayed dense is named in the table if it is this share of what is stored.
_SHOWN_SHARE = 0.01


def layers_table(table: dict[str, Any]) -> str:
    """Every layer of a compression, their sum, and what stayed dense; the content of `saten_layers.json`."""
    rows, dense = table["layers"], table["dense"]
    if not rows:
        return "no layer could be compressed within --tolerance: the model is unchanged"
    head = ("layer", "in × out", "ranks", "pattern", "residual", "bytes", "of dense", "error", "solver")
    lines = [
        (
            row["name"],
            " × ".join(map(str, row["shape"])),
            ",".join(map(str, row["ranks"])),
            row["pattern"] if row["nnz"] else "–",
            str(row["nnz"]),
            str(row["bytes"]),
            f"{row['bytes'] / row['dense_bytes']:.3f}",
            f"{row['error']:.3f}",
            row["solver"] or "–",
        )
        for row in rows
    ]
    stored, before = (sum(row[column] for row in rows) for column in ("bytes", "dense_bytes"))
    last = ("all", "", "", "", "", str(stored), f"{stored / before:.3f}", "", "")
    tables = [align([head, *lines, last]), _dense_table(dense, stored + sum(dense.values()))]
    return "\n\n".join([*tables, *([_reached(table["stored"])] if "stored" in table else [])])


def _reached(stored: dict[str, Any]) -> str:
    """The size that was reached, beside the one that was asked for."""
    asked = ", ".join(f"--{name} {value}" for name, value in stored["asked"].items()) or "--density"
    return (
        f"{stored['precision']} bundle: {stored['bytes']:,} bytes of weights at most; {stored['layers']:,} of them in "
        f"compressed layers, {stored['bits']:.3f} bits for each of their weights; asked for: {asked}"
    )


def _dense_table(dense: dict[str, int], stored: int) -> str:
    """The larger of the parameters that stayed dense, in bytes, and their shares of all that is stored."""
    large = {name: size for name, size in dense.items() if size >= _SHOWN_SHARE * stored}
    smaller = sum(dense.values()) - sum(large.values())
    listed = {**large, f"{len(dense) - len(large)} smaller parameters": smaller, "all": sum(dense.values())}
    rows = [(name, str(size), f"{size / stored:.3f}") for name, size in listed.items()]
    return align([("kept dense", "bytes", "of all stored"), *rows])


def trim_table(found: dict[str, Any]) -> str:
    """Sizes before and after trimming, and how texts and outputs changed; the content of `saten_trim.json`."""
    entries, pieces, outputs = found["vocabulary"], found["pieces"], found["outputs"]
    pairs = {
        "entries": entries["entries"],
        "bytes of weights": found["weights_bytes"],
        "pieces per text": pieces["pieces_per_text"],
        "unknown pieces": pieces["unknown_pieces"],
    }
    rows = [(name, *(f"{number:,}" for number in pair), f"{_share(*pair):.3f}") for name, pair in pairs.items()]
    return "\n".join(
        [
            align([("", "before", "after", "ratio"), *rows]),
            f"{entries['used']:,} entries are used by the data, {entries['needed']:,} needed by every text",
            f"{pieces['unchanged']:.2%} of {pieces['texts']:,} texts keep their pieces",
            f"{outputs['of']}, {outputs['texts']} texts: relative change {outputs['mean_change']:.2g} on average, "
            f"{outputs['largest_change']:.2g} at most; {outputs['largest_change_of_these']:.2g} at most in the "
            f"{outputs['texts_unchanged']} texts that keep their pieces",
        ]
    )


def _share(before: float, after: float) -> float:
    return after / before if before else 1.0


def metrics_table(metrics: dict[str, Any]) -> str:
    """Steps and loss of a fine-tuning, and how it was judged before and after."""
    losses = [step["loss"] for step in metrics["history"]]
    steps = metrics["steps"]
    line = f"{steps} step{'s' * (steps != 1)}, loss {losses[0]:.4f} -> {losses[-1]:.4f}"
    if metrics["after"] is None:
        return line
    names = list(metrics["after"])
    rows = [(when, *(_number(metrics[when][name]) for name in names)) for when in ("before", "after")]
    return "\n".join([line, align([("", *names), *rows])])


def evaluation_table(result: dict[str, Any]) -> str:
    """A row of metrics per bundle; `result`: an `EvalResult` as JSON data."""
    names = list(result["rows"][0]["metrics"])
    rows = [(row["bundle"], *(_number(row["metrics"].get(name)) for name in names)) for row in result["rows"]]
    return align([("bundle", *names), *rows])


def run_tables(run: Run) -> str:
    """What a page sent, and where it was stored."""
    from saten_runtime.bench.results import table

    tables = [f"{run.folder}:"]
    tables += [table(run.bench)] if run.bench is not None else []
    tables += [evaluation_table(run.evaluation.to_json())] if run.evaluation is not None else []
    return "\n".join(tables)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
