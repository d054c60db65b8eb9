"""`saten-run`: data on stdout, talk on stderr, errors as one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saten_runtime.accuracy.options import EvalOptions
from saten_runtime.arguments import PROGRAM, make_parser
from saten_runtime.bench.plan import BenchFiles, Plan
from saten_runtime.errors import InvalidRun, SatenError, UsageError, system_refusal
from saten_runtime.options import values_of
from saten_runtime.records.files import refuse_existing, write_json
from saten_runtime.records.plain_text import align, printable
from saten_runtime.serve.options import ServeOptions
from saten_runtime.start import INTERRUPTED

if TYPE_CHECKING:
    from saten_runtime.run.generation import Sampling
    from saten_runtime.run.runner import Runner

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 2 unusable input, 3 mismatch, 4 invalid run, 130 Ctrl-C."""
    try:
        arguments = make_parser(_COMMANDS).parse_args(argv)
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except SatenError as error:
        print(f"{PROGRAM}: error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of stdout went away (`| head`); flushing again at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full or read-only disk, a file that went away
        print(f"{PROGRAM}: error: {printable(system_refusal(error))}", file=sys.stderr)
        return SatenError.exit_code
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _predict(arguments: argparse.Namespace) -> int:
    from saten_runtime.accuracy.items import items_of, read_given
    from saten_runtime.run.runner import Runner

    given = read_given(arguments.texts, arguments.pairs, arguments.context, arguments.file)
    runner = Runner.load(arguments.bundle, threads=arguments.threads, memory=arguments.memory)
    items = items_of(runner.bundle, given)
    result = runner.predict([item.value for item in items], batch_size=arguments.batch)
    records = runner.predictor.records(result, runner.bundle)
    rows = ({**item.shown, **record} for item, record in zip(items, records, strict=True))
    if arguments.as_json:
        print(json.dumps(list(rows), indent=2, ensure_ascii=False, allow_nan=False))
        return 0
    for row in rows:
        print(json.dumps(row, ensure_ascii=False, allow_nan=False))
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from saten_runtime.bundle.chat import SYSTEM, USER

    if arguments.system is not None and not arguments.chat:
        raise UsageError("--system: a text to continue has no system message; pass --chat")
    runner, how = _runner(arguments), _sampling(arguments)
    roles = {SYSTEM: arguments.system, USER: arguments.prompt}
    messages = [{"role": role, "content": text} for role, text in roles.items() if text is not None]
    pieces = runner.generate(messages if arguments.chat else arguments.prompt, how)
    if arguments.as_json:
        found = {"prompt": arguments.prompt, "text": "".join(pieces)}
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
        return 0
    _stream(pieces)
    return 0


def _chat(arguments: argparse.Namespace) -> int:
    from saten_runtime.run.conversation import Conversation

    talk = Conversation(_runner(arguments), _sampling(arguments), arguments.system)
    shown = sys.stdin.isatty() and not arguments.quiet
    for line in iter(lambda: _line("> " if shown else ""), None):
        pieces = talk.say(line)
        if arguments.as_json:
            found = {"role": "assistant", "content": "".join(pieces)}
            print(json.dumps(found, ensure_ascii=False, allow_nan=False), flush=True)
        else:
            _stream(pieces)
    return 0


def _line(prompt: str) -> str | None:
    """A line of the input; None at its end."""
    try:
        return input(prompt)
    except EOFError:
        return None


def _stream(pieces: Iterable[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _runner(arguments: argparse.Namespace) -> Runner:
    from saten_runtime.run.runner import Runner

    return Runner.load(arguments.bundle, threads=arguments.threads, memory=arguments.memory)


def _sampling(arguments: argparse.Namespace) -> Sampling:
    from saten_runtime.run.generation import Sampling

    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Sampling)}
    return Sampling(**{**given, "stop": tuple(arguments.stop)})


def _bench(arguments: argparse.Namespace) -> int:
    from saten_runtime.bench.measure import Interrupted, bench
    from saten_runtime.bench.results import table

    plan, files = values_of(Plan, arguments), values_of(BenchFiles, arguments)
    try:
        result = bench(arguments.bundles, plan, **vars(files), progress=_progress(arguments.quiet), notice=_notice)
        code = 0 if result.verdict.valid else InvalidRun.exit_code
    except Interrupted as interrupt:
        result, code = interrupt.result, INTERRUPTED
    print(json.dumps(result.to_json(), indent=2, allow_nan=False) if arguments.as_json else table(result))
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code


def _eval(arguments: argparse.Namespace) -> int:
    from saten_runtime.accuracy.evaluate import evaluate
    from saten_runtime.accuracy.results import eval_table

    options = values_of(EvalOptions, arguments)
    options.refuse_existing()
    result = evaluate(
        arguments.bundles,
        arguments.data,
        reference=options.reference,
        threads=options.threads,
        examples=options.examples,
        resume=options.resume,
        overwrite=options.overwrite,
        progress=_progress(arguments.quiet),
        notice=_notice,
    )
    _write(arguments.output, result)
    print(json.dumps(result.to_json(), indent=2, allow_nan=False) if arguments.as_json else eval_table(result))
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from saten_runtime.bench.plan import Setup
    from saten_runtime.bench.profiling import profile, profile_table
    from saten_runtime.bundle.folder import Bundle

    if arguments.output is not None and not arguments.overwrite:
        refuse_existing(arguments.output)
    if arguments.runs < 1:
        raise UsageError(f"runs {arguments.runs}: must be at least 1")
    bundle = Bundle.open(arguments.bundle)
    size = Plan(batches=(arguments.batch,), tokens=(arguments.tokens,)).sizes(bundle.items)[0]
    result = profile(bundle, Setup(arguments.threads, arguments.memory), size, runs=arguments.runs)
    _write(arguments.output, result)
    print(json.dumps(result.to_json(), indent=2, allow_nan=False) if arguments.as_json else profile_table(result))
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from saten_runtime.bundle.folder import Bundle
    from saten_runtime.run.parity import compare, judge, parity_table

    bundle = Bundle.open(arguments.bundle)
    rows = compare(bundle)
    shown = [row.to_json() for row in rows]
    print(json.dumps(shown, indent=2, allow_nan=False) if arguments.as_json else parity_table(rows))
    judge(bundle.name, rows)
    return 0


def _floor(arguments: argparse.Namespace) -> int:
    from saten_runtime.bench.floor import floor_report, floor_table
    from saten_runtime.bundle.folder import open_bundles

    plan = Plan(threads=(arguments.threads,), batches=(arguments.batch,), tokens=arguments.tokens)
    report = floor_report(open_bundles(arguments.bundles), plan)
    print(json.dumps(report, indent=2, allow_nan=False) if arguments.as_json else floor_table(report))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from saten_runtime.doctor import examine

    checks = examine(arguments.bundle)
    if arguments.as_json:
        print(json.dumps([check.to_json() for check in checks], indent=2, allow_nan=False))
    else:
        shown = [check for check in checks if not arguments.quiet or check.status != "OK"]
        print(align([(check.status, check.name, check.found, check.advice) for check in shown]) if shown else "OK")
    return SatenError.exit_code if any(check.status == "FAIL" for check in checks) else 0


def _serve(arguments: argparse.Namespace) -> int:
    needed = ("starlette", "uvicorn")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise UsageError(f"serve needs {' and '.join(missing)}; pip install 'saten-runtime[serve]'")
    from saten_runtime.serve.server import serve

    def listening(url: str, names: list[str]) -> None:
        if arguments.as_json:
            print(json.dumps({"url": url, "models": names}, ensure_ascii=False, allow_nan=False), flush=True)
        elif not arguments.quiet:
            _notice(f"{', '.join(names)}: listening on {url}/v1")

    serve(arguments.bundles, values_of(ServeOptions, arguments), listening=listening, notice=_notice)
    return 0


def _device(arguments: argparse.Namespace) -> int:
    from saten_runtime.bench.probing import device_facts

    facts = device_facts()
    print(json.dumps(facts, indent=2, allow_nan=False) if arguments.as_json else _facts_table(facts))
    return 0


def _calibrate(arguments: argparse.Namespace) -> int:
    from saten_runtime.bench.probing import time_probes

    result = time_probes(arguments.probes)
    _write(arguments.output, result)
    if arguments.as_json:
        print(json.dumps(result.to_json(), indent=2, allow_nan=False))
    else:
        print(f"{len(result.times)} times; {'; '.join(result.verdict.reasons) or 'VALID'}")
    return 0 if result.verdict.valid else InvalidRun.exit_code


_COMMANDS = {
    "predict": _predict,
    "generate": _generate,
    "chat": _chat,
    "bench": _bench,
    "eval": _eval,
    "profile": _profile,
    "validate": _validate,
    "serve": _serve,
    "floor": _floor,
    "doctor": _doctor,
    "device": _device,
    "calibrate": _calibrate,
}


def _facts_table(facts: dict[str, Any]) -> str:
    return align([(name, str(value)) for name, value in facts.items() if value is not None])


def _write(path: Path | None, result: Any) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result.to_json())


def _progress(quiet: bool) -> Callable[[int, int, str], None] | None:
    if quiet or not sys.stderr.isatty():
        return None

    def show(done: int, total: int, what: str) -> None:
        print(f"[{done + 1}/{total}] {printable(what)}", file=sys.stderr)

    return show


def _notice(text: str) -> None:
    print(f"{PROGRAM}: {printable(text)}", file=sys.stderr)
