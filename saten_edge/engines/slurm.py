"""Slurm, by submitit: one job for each request, from a machine that may submit jobs."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

from saten_edge.engines.pool import ANSWER_S, Pool, Request, given, imported
from saten_edge.engines.work import answer
from saten_runtime.errors import DeviceError, SatenError, UsageError
from saten_runtime.records.plain_text import last_line, one_line

__all__ = ["LOCAL", "Slurm"]

LOCAL = "local"
MOST_MINUTES = 24 * 60
LOGS = "slurm"


class Slurm(Pool):
    """address: a partition; None is the usual one, "local" submitit's own processes here, to try it out."""

    def __init__(self, folder: Path, workers: int = 0, threads: int = 0, address: str | None = None) -> None:
        super().__init__(folder, workers, threads)
        self._submitit = imported("submitit", "slurm")
        if address != LOCAL:
            _reach()
        self._logs = self.folder / LOGS  # what jobs say, on whatever machine they run
        self._executor = self._submitit.AutoExecutor(self._logs, cluster=LOCAL if address == LOCAL else "slurm")
        self._executor.update_parameters(
            timeout_min=MOST_MINUTES,
            cpus_per_task=self.threads,
            slurm_setup=[f"export OMP_NUM_THREADS={self.threads}"],
            local_setup=[f"export OMP_NUM_THREADS={self.threads}"],
            **({"slurm_partition": address} if address not in (None, LOCAL) else {}),
        )
        self._jobs: set[Any] = set()

    def _ask(self, request: Request) -> dict[str, Any]:
        errors = self._submitit.core.utils
        with self._lock:  # whoever ends the pool has to see every job
            if self._ended:
                raise DeviceError("the work has ended; --resume goes on with it")
            try:
                job = self._executor.submit(answer, dict(request))
            except errors.FailedSubmissionError as cause:
                raise SatenError(f"--engine slurm: {one_line(cause, 200)}") from None
            self._jobs.add(job)
        try:
            return given(job.result())
        except (errors.UncompletedJobError, errors.FailedJobError) as cause:
            raise DeviceError(f"Slurm's job {job.job_id} was lost ({one_line(cause, 200)})") from None

    def _end(self) -> None:
        for job in self._jobs:
            with contextlib.suppress(Exception):  # it has ended
                job.cancel()
        shutil.rmtree(self._logs, ignore_errors=True)


def _reach() -> None:
    """Ask Slurm whether it is there.

    Raises:
        UsageError: this machine cannot submit jobs.
        DeviceError: it does not answer, or refuses.
    """
    if shutil.which("sinfo") is None or shutil.which("sbatch") is None:
        raise UsageError(
            "--engine slurm: there is no sinfo or sbatch here; run it where jobs are submitted, or add --address local "
            "to try it out"
        )
    try:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        raise DeviceError(f"--engine slurm: Slurm gave no answer within {ANSWER_S:g} s") from None
    if done.returncode:
        raise DeviceError(f"--engine slurm: {last_line(done.stderr, 'sinfo failed')}")
