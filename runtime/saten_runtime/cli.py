"""`saten-run`: data on stdout, talk on stderr, errors as one line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from saten_runtime import __version__
from saten_runtime.errors import DataError, InvalidRun, SatenError, UsageError
from saten_runtime.files import refuse_existing, write_json
from saten_runtime.results import align, printable

__all__ = ["main"]

_PROGRAM = "saten-run"
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 2 unusable input, 3 mismatch, 4 invalid run, 130 Ctrl-C."""
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except SatenError as error:
        print(f"{_PROGRAM}: error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of stdout went away (`| head`); flushing again at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full or read-only disk, a file that went away
        print(f"{_PROGRAM}: error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return SatenError.exit_code
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: interrupted", file=sys.stderr)
        return _INTERRUPTED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=_PROGRAM, description="Run and measure saten-edge bundles on this device.")
    parser.add_argument("--version", action="version", version=f"{_PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_predict(commands)
    _add_bench(commands)
    _add_eval(commands)
    _add_doctor(commands)
    return parser


def _add(commands: Any, name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(command=run)
    return parser


def _add_predict(commands: Any) -> None:
    parser = _add(commands, "predict", _predict, "Print what a bundle says about texts, one JSON object per line.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--file", type=Path, help="one text per line; - for standard input")
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("-b", "--batch", type=int, default=32, help="texts per run (default: 32)")
    parser.add_argument("--memory", default="fast", help="fast or small (default: fast)")


def _add_bench(commands: Any) -> None:
    parser = _add(commands, "bench", _bench, "Measure latency, start and memory of bundles, taking turns.")
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--baseline", type=Path, metavar="BUNDLE", help="give each bundle's ratio to this one")
    parser.add_argument("-t", "--threads", type=_numbers, default=(1,), metavar="LIST", help="(default: 1)")
    parser.add_argument("-b", "--batch", type=_numbers, default=(1,), metavar="LIST", help="(default: 1)")
    parser.add_argument("-s", "--tokens", type=_numbers, default=(32, 128), metavar="LIST", help="(default: 32,128)")
    parser.add_argument(
        "--memory", type=_words, default=("fast",), metavar="LIST", help="of fast, small (default: fast)"
    )
    parser.add_argument("--min-time", type=float, default=1.0, metavar="S", help="seconds per cell (default: 1.0)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each bundle per cell (default: 10)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for samples.jsonl and bench.json")
    _add_output_options(parser)


def _add_eval(commands: Any) -> None:
    parser = _add(commands, "eval", _eval, "Measure the accuracy of bundles on a JSON Lines file.")
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help="lines of {query, answer}, {text_a, text_b, label} or {text, label}",
    )
    parser.add_argument("--reference", type=Path, metavar="BUNDLE", help="also give the mean cosine to its embeddings")
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the result as JSON")
    _add_output_options(parser)


def _add_doctor(commands: Any) -> None:
    parser = _add(commands, "doctor", _doctor, "Check what could stop a run on this device.")
    parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _predict(arguments: argparse.Namespace) -> int:
    from saten_runtime.runner import Runner

    texts = [*arguments.texts, *_lines(arguments.file)]
    if not texts:
        raise UsageError("no text given; pass TEXT or --file")
    runner = Runner.load(arguments.bundle, threads=arguments.threads, memory=arguments.memory)
    result = runner.predict(texts, batch_size=arguments.batch)
    for text, record in zip(texts, runner.task.records(result), strict=True):
        print(json.dumps({"text": text, **record}, ensure_ascii=False))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from saten_runtime.bench import Interrupted, Plan, bench
    from saten_runtime.results import table

    plan = Plan(
        threads=arguments.threads,
        batches=arguments.batch,
        tokens=arguments.tokens,
        memory_modes=arguments.memory,
        min_time_s=arguments.min_time,
        rounds=arguments.rounds,
    )
    try:
        result = bench(
            arguments.bundles,
            plan,
            baseline=arguments.baseline,
            output=arguments.output,
            overwrite=arguments.overwrite,
            progress=_progress(arguments.quiet),
        )
        code = 0 if result.verdict.valid else InvalidRun.exit_code
    except Interrupted as interrupt:
        result, code = interrupt.result, _INTERRUPTED
    print(json.dumps(result.to_json(), indent=2) if arguments.json else table(result))
    return code


def _eval(arguments: argparse.Namespace) -> int:
    from saten_runtime.evaluate import evaluate

    if arguments.output is not None and not arguments.overwrite:
        refuse_existing(arguments.output)
    result = evaluate(
        arguments.bundles,
        arguments.data,
        reference=arguments.reference,
        threads=arguments.threads,
        progress=_progress(arguments.quiet),
    )
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output, result.to_json())
    if arguments.json:
        print(json.dumps(result.to_json(), indent=2))
        return 0
    names = list(result.rows[0].metrics)
    rows = [(row.bundle, *(_number(row.metrics[name]) for name in names), f"{row.seconds:.1f}") for row in result.rows]
    print(align([("bundle", *names, "seconds"), *rows]))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from saten_runtime.doctor import examine

    checks = examine(arguments.bundle)
    if arguments.json:
        print(json.dumps([check.to_json() for check in checks], indent=2))
    else:
        print(align([(check.status, check.name, check.found, check.advice) for check in checks]))
    return SatenError.exit_code if any(check.status == "FAIL" for check in checks) else 0


def _progress(quiet: bool) -> Callable[[int, int, str], None] | None:
    if quiet or not sys.stderr.isatty():
        return None

    def show(done: int, total: int, what: str) -> None:
        print(f"[{done + 1}/{total}] {printable(what)}", file=sys.stderr)

    return show


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return content.decode().splitlines()
    except OSError as cause:
        raise DataError(f"{path}: cannot be read ({cause.strerror})") from None
    except UnicodeDecodeError as cause:
        raise DataError(f"{path}: no UTF-8 text (byte {cause.start})") from None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
