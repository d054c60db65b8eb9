"""Where work runs, as a table: files in, files out, the same under every engine and any number of workers.

The machines of an engine see one folder in common, in which all files lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from saten_edge.engines.local import Local
from saten_edge.engines.pool import Pool, default_workers
from saten_edge.engines.ray import Ray
from saten_edge.engines.slurm import Slurm

__all__ = ["ENGINES", "Pool", "default_workers"]

# --engine → engine, from the folder of all files, the number of workers, the threads of each, and the address; the
# names are those of `saten_edge.options.ENGINES`.
ENGINES: Mapping[str, Callable[[Path, int, int, str | None], Pool]] = {"local": Local, "ray": Ray, "slurm": Slurm}
