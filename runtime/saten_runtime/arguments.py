"""The arguments of `saten-run`, one function per command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from saten_runtime import __version__
from saten_runtime.accuracy.options import EvalOptions
from saten_runtime.bench.plan import BenchFiles, Plan
from saten_runtime.errors import UsageError
from saten_runtime.options import Printing, add_options
from saten_runtime.serve.options import ServeOptions

__all__ = ["PROGRAM", "make_parser"]

PROGRAM = "saten-run"
Commands = Mapping[str, Callable[[argparse.Namespace], int]]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


class _CommandParser(_Parser):
    """Of one command: options may stand before, between and after what the command works on."""

    _is_inner = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # The intermixed reading is made of plain readings by this method; those are passed on.
        if self._is_inner:
            return super().parse_known_args(args, namespace)
        self._is_inner = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inner = False


def make_parser(commands: Commands) -> argparse.ArgumentParser:
    """The parser; `arguments.command` is the function of the chosen command."""
    parser = _Parser(prog=PROGRAM, description="Run and measure saten-edge bundles on this device.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    chosen = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_CommandParser)
    for name, (about, add) in _COMMANDS.items():
        sub = chosen.add_parser(name, help=about, description=about)
        sub.set_defaults(command=commands[name])
        add(sub)
        add_options(sub, Printing)
    return parser


def _predict(parser: argparse.ArgumentParser) -> None:
    _one_bundle(parser)
    parser.add_argument("texts", nargs="*", metavar="ITEM", help="Text or, for an image model, the file of a picture")
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        default=[],
        dest="pairs",
        metavar=("A", "B"),
        help="Two texts that are read together; may be given several times",
    )
    parser.add_argument("--context", help="Text that the items are questions about")
    parser.add_argument(
        "--file",
        type=Path,
        help="Data as eval reads it, JSON Lines or CSV, or one item per line; - reads standard input",
    )
    parser.add_argument("-b", "--batch", type=int, default=32, help="Items per run (default: 32)")
    _setup(parser)


def _generate(parser: argparse.ArgumentParser) -> None:
    _one_bundle(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="Text to continue")
    parser.add_argument("--chat", action="store_true", help="Answer the prompt as a user's message")
    _sampling(parser, tokens=64)


def _chat(parser: argparse.ArgumentParser) -> None:
    _one_bundle(parser)
    _sampling(parser, tokens=512)


def _sampling(parser: argparse.ArgumentParser, *, tokens: int) -> None:
    said = "(default: as the model says)"
    parser.add_argument(
        "-n", "--max-tokens", type=int, default=tokens, help=f"Tokens to generate at most (default: {tokens})"
    )
    parser.add_argument("--system", metavar="TEXT", help="System message of a chat (default: as the model says)")
    parser.add_argument("--temperature", type=float, help=f"Temperature; 0 takes the likeliest token {said}")
    parser.add_argument("--top-p", type=float, help=f"Probability that the drawn tokens share {said}")
    parser.add_argument("--top-k", type=int, help=f"Likeliest tokens to draw from; 0 is all {said}")
    parser.add_argument("--min-p", type=float, help=f"Least part of the likeliest token's probability {said}")
    parser.add_argument(
        "--repetition-penalty", type=float, help=f"What tokens that were there before lose by; 1 is nothing {said}"
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="Text that ends the answer")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the draw (default: 0)")
    _setup(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    _bundles(parser, "Bundles to measure")
    add_options(parser, Plan)
    add_options(parser, BenchFiles)


def _eval(parser: argparse.ArgumentParser) -> None:
    _bundles(parser, "Bundles to evaluate")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON Lines or CSV file; its fields say what is measured",
    )
    add_options(parser, EvalOptions)


def _profile(parser: argparse.ArgumentParser) -> None:
    _one_bundle(parser)
    parser.add_argument("-s", "--tokens", type=int, default=128, help="Tokens per sequence (default: 128)")
    parser.add_argument("-b", "--batch", type=int, default=1, help="Sequences per batch (default: 1)")
    parser.add_argument("-n", "--runs", type=int, default=20, help="Runs to average (default: 20)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="Write the profile as JSON")
    parser.add_argument("--overwrite", action="store_true", help="Replace the output if it exists")
    _setup(parser)


def _serve(parser: argparse.ArgumentParser) -> None:
    _bundles(parser, "Bundles to serve: such as embed texts, and decoders")
    add_options(parser, ServeOptions)


def _floor(parser: argparse.ArgumentParser) -> None:
    _bundles(parser, "Bundles whose floor is computed", nargs="*")
    parser.add_argument("-t", "--threads", type=int, default=1, help="Number of threads (default: 1)")
    parser.add_argument("-b", "--batch", type=int, default=1, help="Sequences per batch (default: 1)")
    add_options(parser, Plan, only=("tokens",))


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="Bundle to try")


def _calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("probes", type=Path, metavar="PROBES", help="Archive that saten-edge devices calibrate sends")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="Write the times as JSON")


def _nothing(parser: argparse.ArgumentParser) -> None:
    pass


def _one_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="Bundle to run")


def _bundles(parser: argparse.ArgumentParser, what: str, nargs: str = "+") -> None:
    parser.add_argument("bundles", nargs=nargs, type=Path, metavar="BUNDLE", help=what)


def _setup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-t", "--threads", type=int, default=1, help="Number of threads (default: 1)")
    parser.add_argument("--memory", default="fast", help="Memory mode: fast or small (default: fast)")


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], Any]]] = {
    "predict": ("Print what a bundle says about texts or pictures, one JSON object per line.", _predict),
    "generate": ("Print the continuation of a prompt as it is made.", _generate),
    "chat": ("Answer messages, one per line of the input, as a conversation.", _chat),
    "bench": ("Measure latency, start and memory of bundles, taking turns.", _bench),
    "eval": ("Measure the accuracy of bundles on a data file.", _eval),
    "profile": ("Print where the time of a run goes, by layer.", _profile),
    "validate": ("Compare a bundle with the torch outputs it carries; exit code 3 where they differ.", _one_bundle),
    "serve": ("Serve bundles over HTTP, with the interface that OpenAI's clients speak.", _serve),
    "floor": ("Print the rates of this machine, and the time no program could beat with them.", _floor),
    "doctor": ("Check what could stop a run on this device.", _doctor),
    "device": ("Print what this device is: hardware, system, packages, native kernels.", _nothing),
    "calibrate": ("Time the steps of layers, for the prices that saten-edge chooses forms by.", _calibrate),
}
