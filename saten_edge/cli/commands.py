"""`saten-edge`: one command per stage. stdout is data, stderr talk, errors one line.

Everything heavy is imported inside the commands, so that help answers at once.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import saten_edge
from saten_edge.cli.devices import app as devices_app
from saten_edge.cli.tables import evaluation_table, layers_table, metrics_table, run_tables
from saten_edge.console import Talk
from saten_runtime.errors import DataError, InvalidRun, SatenError, system_refusal
from saten_runtime.records.plain_text import printable
from saten_runtime.start import INTERRUPTED

if TYPE_CHECKING:
    from saten_edge.devices.jobs import Job

__all__ = ["app", "main"]

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
Pattern = Annotated[str, typer.Option(help="Residual: grouped, unstructured, N:M such as 2:4, or none.")]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device", help="Where: ssh://[user@]host[:port][/folder], adb:SERIAL or local; several with commas."
    ),
]
PushToHub = Annotated[
    str | None, typer.Option(metavar="REPO", help="Upload the result to owner/name on the Hugging Face hub.")
]
Group = Annotated[int, typer.Option(min=1, help="Outputs per block of a grouped residual.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit code 0, 1 defect, 2 unusable input, 3 mismatch, 4 invalid run, 130 Ctrl-C.

    arguments: those of the process by default.
    """
    try:
        app(arguments, prog_name="saten-edge")
    except SatenError as error:
        print(f"saten-edge: error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # outside of a command, where typer does not catch it
        print("saten-edge: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:  # a full or read-only disk, a file that went away
        print(f"saten-edge: error: {printable(system_refusal(error))}", file=sys.stderr)
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
    budget: Annotated[
        float | None,
        typer.Option(
            help="Share of the dense fp32 bytes, indices included; 0.25 unless --eps and --density are given."
        ),
    ] = None,
    pattern: Pattern = "grouped",
    group: Group = 32,
    allocation: Annotated[
        str | None, typer.Option(help="Of bytes among layers: sensitivity (default with --calibration) or uniform.")
    ] = None,
    order: Annotated[int, typer.Option(min=2, max=6, help="Cores of a tensor train.")] = 4,
    train: Annotated[
        str | None, typer.Option(help="bond: best bond, inner ranks whole; tt-svd: one error for all splits.")
    ] = None,
    eps: Annotated[float | None, typer.Option(help="Relative error of the train, a TT-SVD; 0 to 1.")] = None,
    density: Annotated[float | None, typer.Option(help="Residual entries per entry of a matrix; 0 to 1.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Alternations of train and residual.")] = 3,
    share: Annotated[
        float | None, typer.Option(help="Train's share of the bytes, 0 to 1; measured per layer if left out.")
    ] = None,
    shape_search: Annotated[
        bool, typer.Option("--shape-search", help="Try every factorization of a train's dims, not the balanced one.")
    ] = False,
    solver: Annotated[
        str, typer.Option(help="admm, which needs --calibration to go beyond the other, or alternate.")
    ] = "admm",
    calibration: Annotated[Path | None, typer.Option(help="JSON Lines of texts to weigh errors by.")] = None,
    texts: Annotated[int, typer.Option(min=1, help="How many calibration texts to read.")] = 512,
    smallest: Annotated[int, typer.Option(min=1, help="Values a matrix must have to be compressed.")] = 4096,
    include: Annotated[list[str] | None, typer.Option(help="Only layers whose name matches, * for anything.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No layer whose name matches.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compress a model into a Saten checkpoint."""
    from saten_edge.checkpoints.compress import Selection
    from saten_edge.decomposition.decompose import Recipe
    from saten_edge.stages import compress_stage
    from saten_edge.texts import read_texts

    shapes = "search" if shape_search else "balanced"
    recipe = Recipe(order, rounds, share, density, eps, train, shapes, solver)
    table = compress_stage(
        model,
        output,
        budget=0.25 if budget is None and not recipe.sized else budget,
        pattern=pattern,
        group=group,
        allocation=allocation,
        recipe=recipe,
        calibration=read_texts(calibration)[:texts] if calibration else (),
        talk=Talk(quiet=quiet),
        overwrite=overwrite,
        selection=Selection(smallest, tuple(include or ("*",)), tuple(exclude or ())),
    )
    _print(table, layers_table, as_json)


@app.command("import")
def import_command(
    src: Annotated[Path, typer.Argument(help="State dict of the authors' code, or a folder with it.")],
    base: Annotated[str, typer.Option(help="Dense model of its architecture: folder or hub name.")],
    output: Output,
    task: Annotated[str | None, typer.Option(help="As on the hub; by default what the heads in it say.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Read a checkpoint made with the Saten authors' code."""
    from saten_edge.stages import import_stage

    table = import_stage(src, base, output, task=task, talk=Talk(quiet=quiet), overwrite=overwrite)
    _print(table, layers_table, as_json)


@app.command("finetune")
def finetune_command(
    model: Annotated[str, typer.Argument(help="Saten checkpoint, or a dense model: folder or hub name.")],
    output: Output,
    data: Annotated[str, typer.Option(help="JSON Lines or CSV file, or NAME[:CONFIG] of a data set on the hub.")],
    task: Annotated[
        str | None, typer.Option(help="text-classification, text-regression, …; read off the data by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a data set to train on.")] = "train",
    teacher: Annotated[str | None, typer.Option(help="Dense model to learn from: folder or hub name.")] = None,
    judge: Annotated[str | None, typer.Option(help="Data that only judges the result, as for --data.")] = None,
    judge_split: Annotated[str, typer.Option(help="Split of a data set to judge on.")] = "validation",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps at most.")] = 400,
    epochs: Annotated[float | None, typer.Option(min=0.001, help="Passes over the data, instead of --steps.")] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Minutes at most.")] = math.inf,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per step and process.")] = 32,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens per text.")] = 64,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Its peak; 1e-4 with labels and 5e-4 without.")
    ] = None,
    warmup: Annotated[float, typer.Option(min=0, max=0.9, help="Share in which the learning rate rises.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of a new head and the order of the examples.")] = 0,
    bf16: Annotated[
        bool | None, typer.Option("--bf16/--fp32", help="Precision of products; bf16 where the processor has it.")
    ] = None,
    distill: Annotated[
        str | None, typer.Option(help="What of the teacher is learned: logits, hidden, embedding, or none.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.01, help="That logits are divided by.")] = 2.0,
    label_weight: Annotated[float, typer.Option(min=0, help="Of the loss on labels.")] = 1.0,
    reselect_until: Annotated[int, typer.Option(min=0, help="Step until which masks may move.")] = 0,
    hold_out: Annotated[float, typer.Option(min=0, max=0.5, help="Share kept aside for --early-stop.")] = 0.05,
    early_stop: Annotated[
        int, typer.Option(min=0, help="Evaluations without a better loss before it ends; 0 never.")
    ] = 0,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = 50,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints to resume from.")] = 200,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on labels, towards the dense model it was made from, or both."""
    from saten_edge.stages import finetune_stage
    from saten_edge.training import Distillation, Schedule

    parts = None if distill is None else tuple(part for part in distill.split(",") if part != "none")
    schedule = Schedule(
        *(steps, epochs, minutes, batch_size, max_length, learning_rate, warmup, seed, bf16, reselect_until),
        *(hold_out if early_stop else 0.0, early_stop, evaluate_every, save_every),
    )
    main_process = os.environ.get("RANK", "0") == "0"
    metrics = finetune_stage(
        model,
        output,
        data=data,
        task=task,
        split=split,
        teacher=teacher,
        judged_on=judge,
        judged_split=judge_split,
        schedule=schedule,
        distillation=Distillation(parts, temperature, label_weight),
        resume=resume,
        talk=Talk(quiet=quiet or not main_process),
        overwrite=overwrite,
    )
    if main_process:
        _print(metrics, metrics_table, as_json)


@app.command("export")
def export_command(
    model: Annotated[str, typer.Argument(help="Dense model or Saten checkpoint: folder or hub name.")],
    output: Output,
    task: Annotated[str | None, typer.Option(help="As transformers names it; by default the config's.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8, int8-block or int4.")] = "fp32",
    target: Annotated[str, typer.Option(help="x86-64, x86-64+kernels, arm64, web or mobile.")] = "x86-64",
    rows: Annotated[int, typer.Option(help="Rows a layer gets at once: 1 to decode, 128 for a short text.")] = 128,
    lowering: Annotated[
        str | None, typer.Option(help="A form for all layers, or a JSON file: pattern of names → form.")
    ] = None,
    dense: Annotated[str | None, typer.Option(help="Model it was compressed from, to report the distance.")] = None,
    name: Annotated[str | None, typer.Option(help="Name in results; the folder's by default.")] = None,
    layout: Annotated[str, typer.Option(help="bundle or transformersjs.")] = "bundle",
    push_to_hub: PushToHub = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Export to a bundle and verify it against torch."""
    from saten_edge.stages import export_stage
    from saten_exporters.bundles.hub import check_repository, push
    from saten_exporters.bundles.layouts import laid_out

    talk = Talk(quiet=quiet)
    if push_to_hub is not None:
        check_repository(push_to_hub)
    with laid_out(output, layout, overwrite=overwrite) as folder:
        bundle = export_stage(
            model,
            folder,
            task=task,
            name=name,
            precision=precision,
            target=target,
            rows=rows,
            lowering=lowering,
            dense=dense,
            talk=talk,
            overwrite=overwrite,
        )
    print(f"{output}: {bundle.model_bytes:,} bytes of graph and weights, {bundle.size_bytes:,} in all")
    if push_to_hub is not None:
        print(push(output, push_to_hub))


@app.command("layout")
def layout_command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles of one model, each in another precision.")],
    output: Output,
    layout: Annotated[str, typer.Option(help="transformersjs.")] = "transformersjs",
    overwrite: Overwrite = False,
) -> None:
    """Write bundles as the folder that another program expects."""
    from saten_exporters.bundles.layouts import write_layout
    from saten_runtime.bundle.folder import Bundle

    write_layout(layout, [Bundle.open(path) for path in bundles], output, overwrite=overwrite)
    print(output)


@app.command("push")
def push_command(
    folder: Annotated[Path, typer.Argument(help="Bundle, or what `export --layout` wrote.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository has to be made.")] = False,
) -> None:
    """Upload a bundle to the Hugging Face hub."""
    from saten_exporters.bundles.hub import push

    print(push(folder, repository, private=private))


@app.command("explain")
def explain_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle.")],
    as_json: Json = False,
) -> None:
    """How each layer is written, what that was predicted to take, and what else was possible."""
    from saten_runtime.bundle.explain import explain, explain_table
    from saten_runtime.bundle.folder import Bundle

    found = explain(Bundle.open(bundle))
    print(json.dumps(found, indent=2) if as_json else explain_table(found))


@app.command("validate")
def validate_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle.")],
    as_json: Json = False,
) -> None:
    """Compare a bundle with the torch outputs it carries; exit code 3 where they differ."""
    from saten_runtime.accuracy.parity import check_parity, parity_table
    from saten_runtime.bundle.folder import Bundle

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
    device: Devices = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for samples and result; one in it per --device.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Measure only what the folder lacks.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure latency, start and memory of bundles, interleaved, on this machine or on devices."""
    from saten_runtime.bench.plan import Plan

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
    if device:
        from saten_edge.devices.jobs import bench_job
        from saten_edge.devices.printing import bench_table, invalid_reasons

        job = bench_job(bundles, plan, baseline)
        results = _on_devices(device, job, output, overwrite, quiet, None if as_json else bench_table)
        if reasons := invalid_reasons(results):
            raise InvalidRun("; ".join(reasons))
        return
    from saten_edge.stages import bench_stage
    from saten_runtime.bench.measure import Interrupted
    from saten_runtime.bench.results import table

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
    device: Devices = None,
    examples: Annotated[Path | None, typer.Option(help="JSON Lines file for the values of every example.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Run only the bundles that --examples lacks.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Result as JSON; with --device a folder of folders.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of bundles, without torch, on this machine or on devices."""
    if device:
        from saten_edge.devices.jobs import eval_job
        from saten_edge.devices.printing import eval_table

        job = eval_job(bundles, data, reference=reference, threads=threads)
        _on_devices(device, job, output, overwrite, quiet, None if as_json else eval_table)
        return
    from saten_edge.stages import eval_stage
    from saten_runtime.records.files import refuse_existing, write_json

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
    _print(result, evaluation_table, as_json)


@app.command("serve")
def serve_command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; every run gets a new one in it.")],
    baseline: Annotated[Path | None, typer.Option(help="One of the bundles; the others are compared with it.")] = None,
    data: Annotated[Path | None, typer.Option(help="JSON Lines as for eval; the page gets its token ids.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="How many of --data to ask.")] = 200,
    reference: Annotated[Path | None, typer.Option(help="One of the bundles; cosine of embeddings to its.")] = None,
    threads: Annotated[str, typer.Option("--threads", "-t", help="List; above 1 needs https or localhost.")] = "1",
    batch: Annotated[str, typer.Option("--batch", "-b", help="List.")] = "1",
    tokens: Annotated[str, typer.Option("--tokens", "-s", help="List.")] = "32,128",
    min_time: Annotated[float, typer.Option(min=0, help="Seconds per cell.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each bundle per cell.")] = 10,
    host: Annotated[str | None, typer.Option(help="Address to bind; this machine's in the local network.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    certificate: Annotated[Path | None, typer.Option(help="PEM file, for https; with --key.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    once: Annotated[bool, typer.Option("--once", help="End after the first complete run.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure bundles on a phone or tablet, through its browser."""
    from saten_edge.serve import Address, Run, lan_address, make_job, serve, show_link
    from saten_runtime.bench.plan import Plan

    plan = Plan(_numbers(threads), _numbers(batch), _numbers(tokens), ("fast",), min_time, rounds)
    address = Address(host or lan_address(), port, certificate, key)
    job = make_job(bundles, plan, baseline=baseline, reference=reference, data=data, examples=examples)
    runs: list[Run] = []

    def done(run: Run) -> None:
        runs.append(run)
        print(run_tables(run), flush=True)

    serve(job, output, address, opened=show_link, done=done, once=once, talk=Talk(quiet=quiet))
    reasons = [reason for run in runs if run.bench for reason in run.bench.verdict.reasons]
    if once and reasons:
        raise InvalidRun("; ".join(reasons))


@app.command("report")
def report_command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles, in the order of the rows, and a bench run's folder.")],
    bench: Annotated[list[Path] | None, typer.Option(help="bench.json of a bench run; again for each device.")] = None,
    profile: Annotated[list[Path] | None, typer.Option(help="JSON of `saten-run profile`, once per bundle.")] = None,
    evaluation: Annotated[
        list[Path] | None, typer.Option("--eval", help="JSON of an eval run; again for each device.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML page to write.")] = None,
    form: Annotated[str, typer.Option("--format", help="Of stdout: table, markdown, csv or json.")] = "table",
    overwrite: Overwrite = False,
) -> None:
    """Put sizes, latency, memory and accuracy of bundles side by side."""
    from saten_edge import reports
    from saten_runtime.bench.journal import SUMMARY_FILE
    from saten_runtime.bundle.folder import Bundle
    from saten_runtime.records.files import read_json, refuse_existing

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
    summaries = [*runs, *(bench or ())]
    report = reports.build_report(
        [Bundle.open(path) for path in bundles if path / SUMMARY_FILE not in runs],
        reports.join_benches([read_json(path, DataError) for path in summaries]),
        reports.join_evaluations([read_json(path, DataError) for path in evaluation or ()]),
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
    from saten_edge.reports import compare_runs, comparison_table, read_run

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
    from saten_edge.reports import headline, print_table

    settings = DemoSettings(pattern=pattern, group=group, budget=budget, minutes=minutes, rounds=rounds)
    report = run_demo(output, settings, Talk(quiet=quiet), model=model)
    print_table(report)
    print(f"\n{headline(report)}\n\nreport: {output / 'report.html'}\nsummary: {output / 'summary.json'}")


app.add_typer(devices_app, name="devices")


def _on_devices(
    urls: list[str],
    job: Job,
    output: Path | None,
    overwrite: bool,
    quiet: bool,
    table: Callable[[dict[str, Any]], str] | None,
) -> dict[str, Any]:
    """Do a job on each device and print the results by label, as a table or as JSON; then raise what failed first."""
    from saten_edge.devices.jobs import run_jobs
    from saten_edge.devices.transports import parse_devices

    devices = parse_devices(urls)
    results, failures = run_jobs(devices, job, output=output, overwrite=overwrite, talk=Talk(quiet=quiet))
    if results:
        print(table(results) if table else json.dumps(results, indent=2))
    if failures:
        raise failures[0]
    return results


def _print(value: dict[str, Any], table: Callable[[dict[str, Any]], str], as_json: bool) -> None:
    print(json.dumps(value, indent=2) if as_json else table(value))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected whole numbers with commas between them") from None


if __name__ == "__main__":
    main()
