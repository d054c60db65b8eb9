"""Commands of saten-edge as the user runs them, without the seconds in which each would import torch again.

Each runs in a process of its own, forked from a server that has imported what they need and done nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path

__all__ = ["saten_edge"]

# What compress, finetune and export import, some of it only on their way.
NEEDED = (
    "saten_edge.cli.commands",
    "saten_edge.stages",
    "saten_edge.training",
    "saten_exporters.bundles.layouts",
    "torch.export._trace",
    "torch._functorch.aot_autograd",
    "onnxscript.function_libs.torch_lib.ops",
)


def saten_edge(*arguments: object, threads: int | None = None) -> None:
    """Run a command of ours; threads: for what runs beside others.

    Raises:
        RuntimeError: it failed; what it said last.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(NEEDED))
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        said.touch()  # a process that is killed at once says nothing
        process = server.Process(target=_run, args=([*map(str, arguments), "--quiet"], threads, said))
        process.start()
        process.join()
        if process.exitcode:
            words = said.read_text(errors="replace").strip()[-300:]
            raise RuntimeError(words or f"saten-edge {arguments[0]}: exit code {process.exitcode}")


def _run(arguments: list[str], threads: int | None, said: Path) -> None:
    import torch

    from saten_edge.cli.commands import main

    with said.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if threads is not None:
        torch.set_num_threads(threads)
    main(arguments)
