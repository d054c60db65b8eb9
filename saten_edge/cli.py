"""`saten-edge`: one command per stage. stdout is data, stderr talk, errors one line.

Everything heavy is imported inside the commands, so that help answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import saten_edge
from saten_edge.console import Talk
from saten_runtime.errors import DataError, InvalidRun, SatenError, UsageError
from saten_runtime.results import printable

__all__ = ["app", "main"]

INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compress a transformer as tensor train + sparse residual, export it, run and measure it on small machines.",
)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Pattern = Annotated[str, typer.Option(help="Residual: grouped or unstructured.")]
Group = Annotated[int, typer.Option(min=1, help="Outputs per block of a grouped residual.")]


def main() -> None:
    """Run one command; exit code 0, 1 defect, 2 unusable input, 3 mismatch, 4 invalid run, 130 Ctrl-C."""
    try:
        app(prog_name="saten-edge")
    except SatenError as error:
        print(f"saten-edge: error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # outside of a command, where typer does not catch it
        print("saten-edge: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:  # a full or read-only disk, a file that went away
        print(f"saten-edge: error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        sys.exit(SatenError.exit_code)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"saten-edge {saten_edge.__version__}")
        raise typer.Exit


@app.command("compress")
def compress_command(
    model: Annotated[str, typer.Argument(help="Model folder, or a name on the Hugging Face hub.")],
    output: Output,
    budget: Annotated[float, typer.Option(help="Share of the dense fp32 bytes, indices included.")] = 0.25,
    pattern: Pattern = "grouped",
    group: Group = 32,
    allocation: Annotated[
        str | None, typer.Option(help="Of bytes among layers: sensitivity (default with --calibration) or uniform.")
    ] = None,
    order: Annotated[int, typer.Option(min=2, max=6, help="Cores of a tensor train.")] = 4,
    eps: Annotated[float, typer.Option(min=0, help="Relative error the inner splits may add.")] = 0.0,
    rounds: Annotated[int, typer.Option(min=1, help="Alternations of train and residual.")] = 3,
    share: Annotated[
        float | None, typer.Option(min=0.05, max=1, help="Train's share of the bytes; measured if left out.")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="JSON Lines of texts to weigh errors by.")] = None,
    texts: Annotated[int, typer.Option(min=1, help="How many calibration texts to read.")] = 512,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compress a model into a Saten checkpoint."""
    from saten_edge.decompose import Recipe
    from saten_edge.stages import compress_stage
    from saten_edge.texts import read_texts

    rows = compress_stage(
        model,
        output,
        budget=budget,
        pattern=pattern,
        group=group,
        allocation=allocation,
        recipe=Recipe(order=order, eps=eps, rounds=rounds, share=share),
        calibration=read_texts(calibration)[:texts] if calibration else (),
        talk=Talk(quiet=quiet),
        overwrite=overwrite,
    )
    _print_layers(rows, as_json)


@app.command("finetune")
def finetune_command(
    checkpoint: Annotated[Path, typer.Argument(help="Saten checkpoint.")],
    output: Output,
    teacher: Annotated[str, typer.Option(help="The dense model it was made from: folder or hub name.")],
    data: Annotated[Path, typer.Option(help="JSON Lines of texts.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps at most.")] = 400,
    minutes: Annotated[float, typer.Option(min=0.01, help="Minutes at most.")] = 60.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per step.")] = 32,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens per text.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak of the learning rate.")] = 5e-4,
    seed: Annotated[int, typer.Option(help="Order of the texts.")] = 0,
    bf16: Annotated[
        bool | None, typer.Option("--bf16/--fp32", help="Precision of products; bf16 where the processor has it.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Distil the dense model into a Saten checkpoint."""
    from saten_edge.finetune import Schedule
    from saten_edge.stages import finetune_stage
    from saten_edge.texts import read_texts

    history = finetune_stage(
        checkpoint,
        output,
        teacher=teacher,
        texts=read_texts(data),
        schedule=Schedule(steps, minutes, batch_size, max_length, learning_rate, seed=seed, bf16=bf16),
        talk=Talk(quiet=quiet),
        overwrite=overwrite,
    )
    print(f"{len(history)} steps, loss {history[0].loss:.4f} -> {history[-1].loss:.4f}")


@app.command("export")
def export_command(
    model: Annotated[str, typer.Argument(help="Dense model or Saten checkpoint: folder or hub name.")],
    output: Output,
    precision: Annotated[str, typer.Option(help="fp32 or int8.")] = "fp32",
    target: Annotated[str, typer.Option(help="Row of the target table.")] = "cpu",
    name: Annotated[str | None, typer.Option(help="Name in results; the folder's by default.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Export to a bundle and verify it against torch."""
    from saten_edge.stages import export_stage

    bundle = export_stage(
        model, output, name=name, precision=precision, target=target, talk=Talk(quiet=quiet), overwrite=overwrite
    )
    print(f"{bundle.path}: {bundle.model_bytes:,} bytes of graph and weights, {bundle.size_bytes:,} in all")


@app.command("validate")
def validate_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle.")],
    as_json: Json = False,
) -> None:
    """Compare a bundle with the torch outputs it carries; exit code 3 where they differ."""
    from saten_runtime.bundle import Bundle
    from saten_runtime.parity import check_parity, parity_table

    comparisons = check_parity(Bundle.open(bundle))
    rows = [comparison.to_json() for comparison in comparisons]
    print(json.dumps(rows, indent=2) if as_json else parity_table(comparisons))


@app.command("bench")
def bench_command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles.")],
    baseline: Annotated[Path | None, typer.Option(help="Bundle the others are compared with.")] = None,
    threads: Annotated[str, typer.Option("--threads", "-t", help="List.")] = "1",
    batch: Annotated[str, typer.Option("--batch", "-b", help="List.")] = "1",
    tokens: Annotated[str, typer.Option("--tokens", "-s", help="List.")] = "32,128",
    memory: Annotated[str, typer.Option(help="List of fast, small.")] = "fast",
    generate: Annotated[str, typer.Option("--generate", "-g", help="List; tokens a decoder makes.")] = "64",
    depth: Annotated[str, typer.Option("--depth", "-d", help="List; tokens a decoder has read.")] = "0",
    min_time: Annotated[float, typer.Option(min=0, help="Seconds per cell.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each bundle per cell.")] = 10,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for samples and result.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Measure only what the folder lacks.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure latency, start and memory of bundles on this machine, interleaved."""
    from saten_edge.stages import bench_stage
    from saten_runtime.bench import Interrupted, Plan
    from saten_runtime.results import table

    plan = Plan(
        _numbers(threads),
        _numbers(batch),
        _numbers(tokens),
        memory.split(","),
        min_time,
        rounds,
        generate=_numbers(generate),
        depths=_numbers(depth),
    )
    try:
        result = bench_stage(
            bundles, plan, baseline=baseline, out=output, talk=Talk(quiet=quiet), overwrite=overwrite, resume=resume
        )
    except Interrupted as interrupt:
        print(table(interrupt.result))
        raise
    print(json.dumps(result.to_json(), indent=2) if as_json else table(result))
    if not result.verdict.valid:
        raise InvalidRun("; ".join(result.verdict.reasons))


@app.command("eval")
def eval_command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles.")],
    data: Annotated[Path, typer.Option(help="JSON Lines of queries and answers, pairs, or labelled texts.")],
    reference: Annotated[Path | None, typer.Option(help="Bundle to compare the others with, by example.")] = None,
    threads: Annotated[int, typer.Option("--threads", "-t", min=1, help="Threads of ONNX Runtime.")] = 1,
    examples: Annotated[Path | None, typer.Option(help="JSON Lines file for the values of every example.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Run only the bundles that --examples lacks.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Result as JSON.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of bundles, without torch."""
    from saten_edge.stages import eval_stage
    from saten_runtime.files import refuse_existing, write_json
    from saten_runtime.results import align

    if output is not None and not overwrite and not resume:
        refuse_existing(output)
    result = eval_stage(
        bundles,
        data,
        reference=reference,
        threads=threads,
        examples=examples,
        resume=resume,
        overwrite=overwrite,
        talk=Talk(quiet=quiet),
    )
    if output is not None:
        write_json(output, result)
    names = list(result["rows"][0]["metrics"])
    rows = [(row["bundle"], *(_score(row["metrics"][name]) for name in names)) for row in result["rows"]]
    print(json.dumps(result, indent=2) if as_json else align([("bundle", *names), *rows]))


@app.command("report")
def report_command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles, in the order of the rows, and a bench run's folder.")],
    bench: Annotated[Path | None, typer.Option(help="bench.json of a bench run.")] = None,
    profile: Annotated[list[Path] | None, typer.Option(help="JSON of `saten-run profile`, once per bundle.")] = None,
    evaluation: Annotated[Path | None, typer.Option("--eval", help="JSON of an eval run.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML page to write.")] = None,
    form: Annotated[str, typer.Option("--format", help="Of stdout: table, markdown, csv or json.")] = "table",
    overwrite: Overwrite = False,
) -> None:
    """Put sizes, latency, memory and accuracy of bundles side by side."""
    from saten_edge import report as reports
    from saten_runtime.bundle import Bundle
    from saten_runtime.files import read_json, refuse_existing
    from saten_runtime.journal import SUMMARY_FILE

    printers: dict[str, Callable[[reports.Report], None]] = {
        "table": reports.print_table,
        "markdown": lambda report: print(reports.markdown_table(report), end=""),
        "csv": lambda report: print(reports.csv_table(report), end=""),
        "json": lambda report: print(json.dumps(reports.summary_json(report), indent=2)),
    }
    if form not in printers:
        raise typer.BadParameter(f"{form!r}: there are {', '.join(printers)}", param_hint="--format")
    if output is not None and not overwrite:
        refuse_existing(output)
    runs = [path / SUMMARY_FILE for path in bundles if (path / SUMMARY_FILE).is_file()]
    summaries = [*runs, *([bench] if bench else [])]
    if len(summaries) > 1:
        raise UsageError(f"{summaries[1]}: a second bench run; a report shows one, `saten-edge compare` shows two")
    report = reports.build_report(
        [Bundle.open(path) for path in bundles if path / SUMMARY_FILE not in runs],
        read_json(summaries[0], DataError) if summaries else None,
        read_json(evaluation, DataError) if evaluation else None,
        profiles=[read_json(path, DataError) for path in profile or ()],
    )
    if output is not None:
        reports.write_html(report, output)
    printers[form](report)


@app.command("compare")
def compare_command(
    before: Annotated[Path, typer.Argument(metavar="A", help="Folder of a bench run, or its bench.json.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same bundles.")],
    as_json: Json = False,
) -> None:
    """Compare two bench runs cell by cell: how much faster or slower B is, and how surely."""
    from saten_edge.report import compare_runs, comparison_table, read_run

    def notice(text: str) -> None:
        print(f"saten-edge: {printable(text)}", file=sys.stderr)

    old, new = read_run(before, notice), read_run(after, notice)
    rows = compare_runs(old, new)
    print(json.dumps([row.to_json() for row in rows], indent=2) if as_json else comparison_table(old, new, rows))


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; an earlier demo is replaced.")],
    model: Annotated[
        Path | None, typer.Option(help="Sentence-embedding model folder instead of the packaged one.")
    ] = None,
    pattern: Pattern = "grouped",
    group: Group = 32,
    budget: Annotated[float, typer.Option(help="Share of the dense bytes of all compressed matrices.")] = 0.285,
    minutes: Annotated[float, typer.Option(min=0.01, help="Minutes of fine-tuning.")] = 3.9,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each bundle per cell of the benchmark.")] = 10,
    quiet: Quiet = False,
) -> None:
    """Compress, fine-tune, export and measure all-MiniLM-L6-v2 on docstrings, offline."""
    from saten_edge.demo import DemoSettings, run_demo
    from saten_edge.report import headline, print_table

    settings = DemoSettings(pattern=pattern, group=group, budget=budget, minutes=minutes, rounds=rounds)
    report = run_demo(output, settings, Talk(quiet=quiet), model=model)
    print_table(report)
    print(f"\n{headline(report)}\n\nreport: {output / 'report.html'}\nsummary: {output / 'summary.json'}")


def _print_layers(rows: list[Any], as_json: bool) -> None:
    """The per-layer table of a compression, with its sum."""
    from dataclasses import asdict

    from saten_runtime.results import align

    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    stored, dense = sum(row.bytes for row in rows), sum(row.dense_bytes for row in rows)
    lines = [
        (
            row.name,
            " × ".join(map(str, row.shape)),
            ",".join(map(str, row.ranks)),
            str(row.nnz),
            str(row.bytes),
            f"{row.bytes / row.dense_bytes:.3f}",
            f"{row.error:.3f}",
        )
        for row in rows
    ]
    head = ("layer", "in × out", "ranks", "residual", "bytes", "of dense", "error")
    print(align([head, *lines, ("all", "", "", "", str(stored), f"{stored / dense:.3f}", "")]))


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected whole numbers with commas between them") from None


if __name__ == "__main__":
    main()
