"""A benchmark or the like on a board: deploy, check, run, fetch, clean up, and go on after one lost connection."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saten_edge.console import Advance, Talk
from saten_edge.devices.board import Board
from saten_edge.devices.channel import Disconnected
from saten_edge.devices.deploy import Cargo, bundle_path, data_path, deploy
from saten_edge.devices.device import Device
from saten_edge.devices.kernels import Shipment
from saten_runtime.accuracy.results import read_evaluation
from saten_runtime.bench.plan import Plan
from saten_runtime.bench.probing import read_probing
from saten_runtime.bench.results import read_bench
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import DeviceError, SatenError
from saten_runtime.options import arguments_of
from saten_runtime.records.files import parse_json, parse_object, refuse_existing, write_json
from saten_runtime.records.plain_text import last_line, printable

__all__ = [
    "RECONNECT_S",
    "Job",
    "bench_job",
    "device_facts",
    "eval_job",
    "examine",
    "probing_job",
    "run_job",
    "run_jobs",
]

RECONNECT_S = 90.0
_RUN_LIMIT_S = 24 * 3600.0
_MOST_RESULT_BYTES = 16 << 20
_MOST_JOURNAL_BYTES = 1 << 30
_MOST_WORDS_BYTES = 1 << 20
_JOURNAL = "samples.jsonl"
# From the folder of a run to the one that holds everything.
_UP = "../../.."
_USUAL = Shipment()
_CHECKERS: dict[str, Callable[[object], object]] = {
    "bench": read_bench,
    "eval": read_evaluation,
    "calibrate": read_probing,
}


@dataclass(frozen=True)
class Job:
    """One `saten-run` command. steps: lines that its journal will have, 0 when it writes none."""

    verb: str
    cargo: Cargo
    arguments: list[str]
    steps: int

    @property
    def result(self) -> str:
        """Name of the file with the result."""
        return f"{self.verb}.json"


def bench_job(bundles: Sequence[Path], plan: Plan, baseline: Path | None, shipment: Shipment = _USUAL) -> Job:
    """`saten-run bench` by a plan.

    Raises:
        BundleError: a bundle that cannot be opened.
    """
    opened = [Bundle.open(path) for path in bundles]
    other = [] if baseline is None else [Bundle.open(baseline)]
    others = [bundle for bundle in other if bundle_path(bundle) not in map(bundle_path, opened)]
    cargo = Cargo([*opened, *others], shipment=shipment)
    arguments = ["bench", *map(_there, opened), "-o", "out", "--quiet", *arguments_of(plan)]
    arguments += [part for bundle in other for part in ("--baseline", _there(bundle))]
    return Job("bench", cargo, arguments, _journal_lines(plan, cargo.bundles))


def _journal_lines(plan: Plan, bundles: Sequence[Bundle]) -> int:
    """Environment and rates; for each setup, memory, and in each round starts, sizes and the state of the machine."""
    sizes = max(len(plan.sizes(bundle.items)) for bundle in bundles)
    a_round = len(bundles) * (1 + sizes) + 1
    return 1 + plan.floor * len(plan.threads) + len(plan.setups) * (len(bundles) + a_round * plan.rounds)


def eval_job(
    bundles: Sequence[Path], data: Path, *, reference: Path | None, threads: int, shipment: Shipment = _USUAL
) -> Job:
    """`saten-run eval` on a data file.

    Raises:
        BundleError: a bundle that cannot be opened.
    """
    opened = [Bundle.open(path) for path in bundles]
    other = [] if reference is None else [Bundle.open(reference)]
    arguments = ["eval", *map(_there, opened), "--data", f"{_UP}/{data_path(data)}", "--threads", str(threads)]
    arguments += ["-o", "out/eval.json", "--quiet"]
    arguments += [part for bundle in other for part in ("--reference", _there(bundle))]
    return Job("eval", Cargo([*opened, *other], data, shipment), arguments, 0)


def probing_job(probes: Path, shipment: Shipment = _USUAL) -> Job:
    """`saten-run calibrate` on an archive of probes."""
    arguments = ["calibrate", f"{_UP}/{data_path(probes)}", "-o", "out/calibrate.json", "--quiet"]
    return Job("calibrate", Cargo([], probes, shipment), arguments, 0)


def run_jobs(
    devices: Sequence[Device], job: Job, *, output: Path | None, overwrite: bool, talk: Talk
) -> tuple[dict[str, dict[str, Any]], list[SatenError]]:
    """The job on one device after the other: results by label, as written below output/LABEL, and what failed.

    A device that fails does not keep the others from their turn.

    Raises:
        UsageError: there is something where a result would be written, or a device that the job does not fit.
        KeyboardInterrupt: Ctrl-C; what was measured until then is written.
    """
    job.cargo.shipment.refuse_unused(devices)
    folders = {device.label: None if output is None else output / device.label for device in devices}
    for folder in folders.values():
        if folder is not None and not overwrite:
            refuse_existing(folder)
    results: dict[str, dict[str, Any]] = {}
    failures: list[SatenError] = []
    for device in devices:
        try:
            results[device.label] = run_job(device, job, folder=folders[device.label], talk=talk)
        except SatenError as error:
            talk.say(printable(str(error)))
            failures.append(error)
    return results, failures


def run_job(device: Device, job: Job, *, folder: Path | None, talk: Talk) -> dict[str, Any]:
    """The job on one device; with a folder, the journal is written there as it grows, and the result at the end.

    Raises:
        DeviceError: the board cannot be used, or was lost for good.
        SatenError: what `saten-run` found wrong there, with its exit code.
        KeyboardInterrupt: Ctrl-C, after the board was told to stop and what it had was written.
    """
    token = secrets.token_hex(8)
    journal = _Journal(folder)
    with Board(device, token) as board:
        try:
            return _run(board, device, job, journal, talk)
        except Disconnected as lost:
            talk.say(printable(f"{lost}; connecting again"))
    with _connect_again(device, token, journal) as board:
        try:
            return _run(board, device, job, journal, talk)
        except Disconnected as lost:
            raise DeviceError(f"{lost}, for the second time{journal.kept}") from None


def examine(device: Device, bundle: Path | None, talk: Talk, shipment: Shipment = _USUAL) -> list[dict[str, str]]:
    """The rows of `saten-run doctor` on a device: name, status, found, advice.

    Raises:
        DeviceError: the board cannot be used at all.
    """
    shipment.refuse_unused([device])
    bundles = [] if bundle is None else [Bundle.open(bundle)]
    with Board(device, secrets.token_hex(8)) as board:
        env = _deploy(board, device, Cargo(bundles, shipment=shipment), talk)
        with talk.stage(f"{device.label}: check"):
            checks = _checks(board, env, "doctor", [_there(bundle) for bundle in bundles])
        board.forget()
    return checks


def device_facts(device: Device, talk: Talk, shipment: Shipment = _USUAL) -> dict[str, Any]:
    """What `saten-run device` says of a device.

    Raises:
        DeviceError: the board cannot be used at all.
    """
    with Board(device, secrets.token_hex(8)) as board:
        env = _deploy(board, device, Cargo([], shipment=shipment), talk)
        content = _said(board, env, "device", ["device", "--json"])
        board.forget()
    return parse_object(content, f"{device.label}: saten-run device", DeviceError, "run it again")


class _Journal:
    """What a board has sent of its journal: appended to a file, or only counted.

    offset: bytes so far; steps: whole lines so far. The folder is made, or emptied of an earlier run, when there
    is something to write.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._ready = False
        self.offset = self.steps = 0

    def add(self, piece: bytes) -> None:
        """The next bytes."""
        if self._folder is not None and piece:
            self._prepare(self._folder)
            with (self._folder / _JOURNAL).open("ab") as file:
                file.write(piece)
        self.offset += len(piece)
        self.steps += piece.count(b"\n")

    def finish(self, name: str, result: dict[str, Any]) -> None:
        """Write the result beside it."""
        if self._folder is not None:
            self._prepare(self._folder)
            write_json(self._folder / name, result)

    def _prepare(self, folder: Path) -> None:
        if not self._ready:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (_JOURNAL, *(f"{verb}.json" for verb in _CHECKERS)):
                (folder / name).unlink(missing_ok=True)
            self._ready = True

    @property
    def kept(self) -> str:
        """Where what was measured so far is, as the end of a sentence."""
        if self._folder is None or not self.offset:
            return ""
        return f"; what was measured so far is in {self._folder / _JOURNAL}"


def _there(bundle: Bundle) -> str:
    return f"{_UP}/{bundle_path(bundle)}"


def _connect_again(device: Device, token: str, journal: _Journal) -> Board:
    """The second connection, tried for as long as a board takes to start anew."""
    deadline, pause_s = time.monotonic() + RECONNECT_S, 1.0
    while True:
        try:
            return Board(device, token)
        except DeviceError as error:
            if time.monotonic() + pause_s > deadline:
                raise DeviceError(f"{error}{journal.kept}") from None
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 15.0)


def _run(board: Board, device: Device, job: Job, journal: _Journal, talk: Talk) -> dict[str, Any]:
    env = _deploy(board, device, job.cargo, talk)
    with talk.stage(f"{device.label}: check"):
        warnings = _warnings(board, env, job.cargo.bundles)
    for warning in warnings:
        talk.say(printable(f"{device.label}: {warning}"))
    bundles = f" {len(job.cargo.bundles)} bundles" if job.cargo.bundles else ""
    with talk.stage(f"{device.label}: {job.verb}{bundles}") as advance:
        interrupted = _measure(board, env, job, journal, advance)
    result = _fetch(board, device, job, journal, interrupted)
    board.forget()
    if interrupted:
        raise KeyboardInterrupt
    return result


def _deploy(board: Board, device: Device, cargo: Cargo, talk: Talk) -> str | None:
    with talk.stage(f"{device.label}: deploy") as advance:
        return deploy(board, device, cargo, advance, lambda line: talk.say(printable(line)))


def _warnings(board: Board, env: str | None, bundles: Sequence[Bundle]) -> list[str]:
    """What `saten-run doctor` warns of, each thing once.

    Raises:
        DeviceError: a bundle will not run there.
    """
    said: list[str] = []
    for index, bundle in enumerate(bundles):
        for check in _checks(board, env, f"doctor-{index}", [_there(bundle)]):
            line = f"{check['name']}: {check['found']}; {check['advice']}"
            if check["status"] == "FAIL":
                raise DeviceError(f"{board.label}: {line}")
            if check["status"] == "WARN" and line not in said:
                said.append(line)
    return said


def _checks(board: Board, env: str | None, name: str, arguments: list[str]) -> list[dict[str, str]]:
    """The rows of `saten-run doctor`, run under that name."""
    content = _said(board, env, name, ["doctor", *arguments, "--json"])
    try:
        checks = parse_json(content)
        return [{key: str(check[key])[:500] for key in ("name", "status", "found", "advice")} for check in checks]
    except (ValueError, RecursionError, TypeError, KeyError):
        words = _last_words(board, name) or "no answer"
        raise DeviceError(f"{board.label}: saten-run doctor: {words}") from None


def _said(board: Board, env: str | None, name: str, arguments: list[str]) -> bytes:
    """What a short `saten-run` prints, run under that name."""
    board.start(name, env, arguments)
    for _ in board.follow(name, 0):
        pass
    return board.get(name, "stdout", most=_MOST_WORDS_BYTES)


def _measure(board: Board, env: str | None, job: Job, journal: _Journal, advance: Advance) -> bool:
    """Follow the run to its end, starting it if need be; whether Ctrl-C ended it.

    Raises:
        DeviceError: the board was started anew meanwhile and its runtime cannot go on, or the run takes a day.
    """
    if board.start(job.verb, env, job.arguments) == "died":
        _start_again(board, env, job, journal)
    try:
        _listen(board.follow(job.verb, journal.offset), job, journal, advance)
    except KeyboardInterrupt:
        _listen(board.stop(), job, journal, advance)
        return True
    return False


def _listen(pieces: Iterator[bytes], job: Job, journal: _Journal, advance: Advance) -> None:
    deadline = time.monotonic() + _RUN_LIMIT_S
    for piece in pieces:
        journal.add(piece)
        if time.monotonic() > deadline or journal.offset > _MOST_JOURNAL_BYTES:
            raise DeviceError(f"{job.verb}: no end after {_RUN_LIMIT_S / 3600:.0f} hours or {journal.offset} bytes")
        if job.steps:
            advance(min(journal.steps, job.steps), job.steps, "")


def _start_again(board: Board, env: str | None, job: Job, journal: _Journal) -> None:
    """Go on with a run that died with the board, where the runtime can."""
    if b"--resume" not in _said(board, env, "help", [job.verb, "--help"]) and job.steps:
        raise DeviceError(f"{board.label}: the run ended without a result; was the board restarted?{journal.kept}")
    board.start(job.verb, env, [*job.arguments, *(["--resume"] if job.steps else [])], again=True)


def _fetch(board: Board, device: Device, job: Job, journal: _Journal, interrupted: bool) -> dict[str, Any]:
    """The result with the device it is of, checked, and written when there is a folder.

    Raises:
        SatenError: there is none; the message is the last line of `saten-run`.
        DataError: it is not what `saten-run` writes.
    """
    content = board.get(job.verb, f"out/{job.result}", most=_MOST_RESULT_BYTES)
    if not content:
        if interrupted:
            return {}
        raise _failure(board, job, journal)
    value = parse_object(content, f"{board.label}: {job.result}", DeviceError, "run it again")
    _CHECKERS[job.verb](value)
    value["device"] = {"label": device.label, "url": device.url}
    journal.finish(job.result, value)
    return value


def _failure(board: Board, job: Job, journal: _Journal) -> SatenError:
    rc = board.rc(job.verb)
    words = _last_words(board, job.verb).removeprefix("saten-run: error: ")
    if rc is not None and rc < 0:
        words = f"killed by signal {-rc}" + (" (out of memory?)" if rc == -9 else "")
    error = SatenError(f"{board.label}: {words or f'saten-run ended with code {rc}'}{journal.kept}")
    error.exit_code = rc if rc in (3, 4) else SatenError.exit_code
    return error


def _last_words(board: Board, name: str) -> str:
    text = board.get(name, "stderr", most=_MOST_WORDS_BYTES).decode(errors="replace")
    return last_line(text)[:500]
