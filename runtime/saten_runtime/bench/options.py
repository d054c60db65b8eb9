"""The arguments of `saten-run`, one function per command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from saten_runtime import __version__
from saten_runtime.errors import UsageError

__all__ = ["PROGRAM", "make_parser"]

PROGRAM = "saten-run"
Commands = Mapping[str, Callable[[argparse.Namespace], int]]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def make_parser(commands: Commands) -> argparse.ArgumentParser:
    """The parser; `arguments.command` is the function of the chosen command."""
    parser = _Parser(prog=PROGRAM, description="Run and measure saten-edge bundles on this device.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    chosen = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (about, add) in _COMMANDS.items():
        sub = chosen.add_parser(name, help=about, description=about)
        sub.set_defaults(command=commands[name])
        add(sub)
    return parser


def _predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "texts", nargs="*", metavar="ITEM", help="a text; for an image model, a .npy, .ppm or .pgm file"
    )
    parser.add_argument("--file", type=Path, help="one item per line; - for standard input")
    parser.add_argument("--context", help="the text that the items are questions about")
    parser.add_argument("-b", "--batch", type=int, default=32, help="items per run (default: 32)")
    _setup(parser)


def _generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("-n", "--max-tokens", type=int, default=64, help="at most so many (default: 64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw among this much probability (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    _setup(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--baseline", type=Path, metavar="BUNDLE", help="give each bundle's ratio to this one")
    parser.add_argument("-t", "--threads", type=_numbers, default=(1,), metavar="LIST", help="(default: 1)")
    parser.add_argument("-b", "--batch", type=_numbers, default=(1,), metavar="LIST", help="(default: 1)")
    parser.add_argument("-s", "--tokens", type=_numbers, default=(32, 128), metavar="LIST", help="(default: 32,128)")
    parser.add_argument(
        "-g", "--generate", type=_numbers, default=(64,), metavar="LIST", help="tokens a decoder makes (default: 64)"
    )
    parser.add_argument(
        "-d", "--depth", type=_numbers, default=(0,), metavar="LIST", help="tokens a decoder has read (default: 0)"
    )
    parser.add_argument(
        "--memory", type=_words, default=("fast",), metavar="LIST", help="of fast, small (default: fast)"
    )
    parser.add_argument("--min-time", type=float, default=1.0, metavar="S", help="seconds per cell (default: 1.0)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each bundle per cell (default: 10)")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="of one request (default: 600)")
    parser.add_argument("--no-floor", action="store_true", help="do not measure the rates of the machine")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for samples.jsonl and bench.json")
    parser.add_argument("--resume", action="store_true", help="measure only what DIR lacks")
    _output(parser)


def _eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="JSON Lines or CSV; the fields say what is measured"
    )
    parser.add_argument("--reference", type=Path, metavar="BUNDLE", help="also say how far each agrees with it")
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("--examples", type=Path, metavar="FILE", help="write the values of every example, JSON Lines")
    parser.add_argument("--resume", action="store_true", help="run only the bundles that --examples lacks")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the result as JSON")
    _output(parser)


def _profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("-s", "--tokens", type=int, default=128, help="(default: 128)")
    parser.add_argument("-b", "--batch", type=int, default=1, help="(default: 1)")
    parser.add_argument("-n", "--runs", type=int, default=20, help="runs to average (default: 20)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the profile as JSON")
    _setup(parser)
    _output(parser)


def _floor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE")
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("-b", "--batch", type=int, default=1, help="(default: 1)")
    parser.add_argument("-s", "--tokens", type=_numbers, default=(32, 128), metavar="LIST", help="(default: 32,128)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _setup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("--memory", default="fast", help="fast or small (default: fast)")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers with commas between them") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], Any]]] = {
    "predict": ("Print what a bundle says about texts or pictures, one JSON object per line.", _predict),
    "generate": ("Print the continuation of a prompt as it is made.", _generate),
    "bench": ("Measure latency, start and memory of bundles, taking turns.", _bench),
    "eval": ("Measure the accuracy of bundles on a data file.", _eval),
    "profile": ("Print where the time of a run goes, by layer.", _profile),
    "floor": ("Print the rates of this machine, and the time no program could beat with them.", _floor),
    "doctor": ("Check what could stop a run on this device.", _doctor),
}
