"""Prices of a browser: the page times small graphs as `saten_runtime.bench.probing` does on other devices."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from saten_edge.console import Talk
from saten_edge.devices.calibrate import write_known
from saten_edge.phone import ort
from saten_edge.phone.received import Mismatch, Received
from saten_edge.phone.schema import MOST_SAMPLES, End, Post
from saten_edge.phone.schema import Prices as PricesPost
from saten_edge.phone.server import Address, serve
from saten_exporters.choice.fitting import fitted
from saten_exporters.choice.prices import MeasuredOn, Rates
from saten_exporters.choice.probes import Sizes, Subject, samples_of, write_probes
from saten_exporters.choice.targets import WEB_MACHINE, target_of
from saten_runtime.bench.plan import turns
from saten_runtime.bench.probing import IDLE, PROBES_FILE, SCHEMA_VERSION, Probe, ProbeTime, ProbingResult, few
from saten_runtime.bench.results import Verdict
from saten_runtime.bench.verdict import Timed, judge
from saten_runtime.errors import DeviceError
from saten_runtime.records.files import parse_json

__all__ = ["PAGE", "PriceJob", "PriceRun", "Priced", "calibrate_page", "make_price_job"]

# Less than a board gets: all of it lies in a phone's memory at once.
PAGE = Sizes(((384, 384), (384, 1536), (1536, 384)), (4_000, 384), (1, 8, 32, 128))
ROUNDS = 3
LEAST_RUNS, TURN_MS, LIMIT_MS = 4, 2.0, 150_000.0  # as `saten_runtime.bench.probing`


@dataclass(frozen=True)
class PriceJob:
    """The same for every browser. subjects: what each probe is; pack: the graphs of `probes` one after the other."""

    subjects: dict[str, Subject]
    probes: list[Probe]
    sizes: list[int]
    pack: bytes
    rows: list[int]
    rounds: int

    @property
    def threads(self) -> int:
        """Prices are of one."""
        return 1

    @cached_property
    def sha256(self) -> str:
        """Of the pack."""
        return hashlib.sha256(self.pack).hexdigest()

    def files(self) -> dict[str, Path | bytes]:
        """The pack."""
        return {self.sha256: self.pack}

    def to_json(self) -> dict[str, Any]:
        """For the page; everything it loops over is spelled out, in order."""
        offsets = np.cumsum([0, *self.sizes[:-1]]).tolist()
        indices = [str(index) for index in range(len(self.probes))]
        listed = zip(self.probes, offsets, self.sizes, strict=True)
        return {
            "ort": {"version": ort.VERSION, "module": ort.MODULE, "wasm": ort.WASM},
            "bundles": [],
            "probes": [
                {"name": probe.name, "width": probe.width, "ids": probe.ids, "offset": offset, "bytes": size}
                for probe, offset, size in listed
            ],
            "pack": {"name": "graphs", "bytes": len(self.pack), "sha256": self.sha256},
            "rows": self.rows,
            "rounds": [[int(index) for index in turns(indices, number)] for number in range(self.rounds)],
            "runs": LEAST_RUNS,
            "turn_ms": TURN_MS,
            "limit_ms": LIMIT_MS,
            "most_samples": max(LEAST_RUNS, MOST_SAMPLES // (self.rounds * len(self.rows) * len(self.probes))),
        }


def make_price_job(sizes: Sizes = PAGE, rounds: int = ROUNDS) -> PriceJob:
    """The probes that no native kernel runs: browsers have none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probes.zip"
        subjects = write_probes(path, sizes, target_of(WEB_MACHINE))
        with zipfile.ZipFile(path) as archive:
            listed = [Probe(**each) for each in parse_json(archive.read(PROBES_FILE))["probes"]]
            probes = [probe for probe in listed if not probe.native]
            graphs = [archive.read(probe.name) for probe in probes]
    return PriceJob(subjects, probes, list(map(len, graphs)), b"".join(graphs), list(sizes.rows), rounds)


@dataclass(frozen=True)
class Priced:
    """What came of a browser's times."""

    device: MeasuredOn
    verdict: Verdict
    prices: dict[str, Rates]


class PriceRun(Received):
    """One browser's times; `priced` is None before they came."""

    def __init__(self, job: PriceJob, folder: Path) -> None:
        super().__init__(job.to_json(), folder)
        self.priced: Priced | None = None
        self._job = job

    @property
    def has_results(self) -> bool:
        """Whether the times came."""
        return self.priced is not None

    def _take(self, post: Post, user_agent: str) -> dict[str, Any]:
        if isinstance(post, End):
            self.close()
            return {"rows": []}
        if not isinstance(post, PricesPost):
            return super()._take(post, user_agent)
        if post.loaded != self._job.sha256:
            raise Mismatch("the page ran graphs of another sha256 than this run serves; load the page again")
        device, rounds = _device(post, user_agent), self._rounds(post)
        result = _result(self._job, post, rounds, asdict(device))
        prices = fitted([sample for _, sample in samples_of(self._job.subjects, result)])
        self.priced = Priced(device, result.verdict, prices)
        return {"verdict": asdict(result.verdict)}

    def _rounds(self, post: PricesPost) -> dict[tuple[str, int], list[list[int]]]:
        """Samples (ns) by probe and rows, one list per round: every round of every probe once, none left out.

        Raises:
            Mismatch: something that was not asked for, or is missing.
        """
        job, found = self._job, defaultdict[tuple[str, int], list[list[int]]](list)
        for turn in sorted(post.turns, key=lambda turn: turn.round):
            if turn.probe >= len(job.probes) or turn.rows not in job.rows:
                raise Mismatch(f"turns: graph {turn.probe} on {turn.rows} rows was not asked for")
            samples = found[job.probes[turn.probe].name, turn.rows]
            if turn.round != len(samples):
                raise Mismatch(f"turns: round {turn.round} of graph {turn.probe}, expected {len(samples)}")
            samples.append(turn.samples_ns)
        if len(found) < len(job.probes) * len(job.rows) or len({len(each) for each in found.values()}) > 1:
            wanted = len(job.probes) * len(job.rows)
            raise Mismatch(f"turns: of {len(found)} graphs and rows, expected {wanted} with as many rounds each")
        return found


def calibrate_page(
    job: PriceJob, address: Address, output: Path | None, opened: Callable[[str], None], talk: Talk
) -> tuple[Path, Verdict]:
    """Write the prices of the first browser that opens the link, which `opened` gets; as `devices.calibrate.calibrate`.

    Raises:
        DeviceError: the address cannot be bound, or the page ended without times.
        KeyboardInterrupt: before a browser had measured.
    """
    runs: list[PriceRun] = []
    with tempfile.TemporaryDirectory() as folder:
        run_of = partial(PriceRun, job)
        serve(job, run_of, Path(folder), address, opened=opened, done=runs.append, once=True, talk=talk)
    found = runs[0].priced if runs else None
    if found is None:
        raise DeviceError("page: it ended without times; measure again")
    return write_known(output, found.device, found.verdict, found.prices)


def _device(post: PricesPost, user_agent: str) -> MeasuredOn:
    """What a browser tells of its device: its own name stands for the processor, which no browser tells."""
    return MeasuredOn(
        name="browser",
        machine=WEB_MACHINE,
        cpu=user_agent,
        board=None,
        cores=post.device.cores,
        cpu_flags=[],
        emulator=None,
        onnxruntime=f"{ort.VERSION} for the web",
        kernels="none",
    )


def _result(
    job: PriceJob, post: PricesPost, rounds: dict[tuple[str, int], list[list[int]]], device: dict[str, Any]
) -> ProbingResult:
    """The medians, and whether they may be believed; a browser tells nothing of other programs or of the clock."""
    cells = [Timed(f"{name}, {rows} rows", found) for (name, rows), found in rounds.items() if name != IDLE]
    hidden = ["the page was in the background during the run; keep it open and the screen on"] if post.hidden else []
    verdict = judge([], cells, hidden, cores=post.device.cores)
    times = [
        ProbeTime(name, rows, sum(map(len, found)), float(np.median(np.concatenate(found))))
        for (name, rows), found in rounds.items()
    ]
    return ProbingResult(
        SCHEMA_VERSION,
        job.sha256,
        device,
        Verdict(verdict.valid, few(verdict.reasons)),
        min(each.p50_ns for each in times if each.probe == IDLE),
        [each for each in times if each.probe != IDLE],
    )
