"""The decomposition of a layer, here or by an engine's worker: its matrix in a file, its parts in another."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saten_edge.checkpoints.kept import Kept, write_parts
from saten_edge.checkpoints.mapped import map_file, release, write_tensors
from saten_edge.decomposition.decompose import Decomposition, decompose
from saten_edge.decomposition.prices import prices_of, time_of
from saten_edge.decomposition.recipe import Recipe
from saten_edge.decomposition.residual import pattern_named
from saten_edge.engines import Pool
from saten_runtime.errors import SatenError

__all__ = ["LayerTask", "decompose_file", "decompose_layer", "named", "run_tasks"]


@dataclasses.dataclass(frozen=True)
class LayerTask:
    """How a layer is decomposed, as `compress` decides it.

    budget_bytes: None where the recipe says every size. precision: as `Stored` has it.
    """

    name: str
    kind: str
    budget_bytes: int | None
    pattern: str
    group: int
    recipe: Recipe
    precision: str | None = None


@contextlib.contextmanager
def named(layer: str) -> Iterator[None]:
    """Errors in the block name the layer."""
    try:
        yield
    except SatenError as cause:
        raise type(cause)(f"{layer}: {cause}") from None


def decompose_layer(task: LayerTask, weight: Tensor, moments: Tensor | None) -> Decomposition:
    """The parts of a layer's M (in, out), found in float32 and on a GPU where there is one; errors name the layer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = weight.to(device, torch.float32).contiguous()
    chosen = pattern_named(task.pattern, task.kind, group=task.group, width=matrix.shape[1])
    known = None if moments is None else moments.to(device)
    about = (task.kind, (matrix.shape[0], matrix.shape[1]), chosen, task.precision)
    with named(task.name):
        time = time_of(*about, task.recipe.timed_on)
        return decompose(matrix, task.budget_bytes, chosen, task.recipe, known, prices_of(*about), time)


def run_tasks(
    engine: Pool,
    tasks: Sequence[LayerTask],
    matrices: Mapping[str, Tensor],
    moments: Callable[[str], Tensor | None],
    kept: Kept,
    progress: Callable[[str, int, int], None],
) -> None:
    """Have an engine decompose layers, in the order given; `kept` holds their parts then.

    moments: of a layer by name, asked for in the same order, just before the layer is given to a worker.

    Raises:
        SatenError: as `decompose_layer` or `Pool.run` has it.
    """
    folder = kept.folder
    if folder is None:
        raise ValueError("an engine needs a folder")
    left = [task for task in tasks if not (folder / kept.file(task.name)).is_file()]

    def requests() -> Iterator[dict[str, Any]]:
        for task in left:
            output = kept.file(task.name)
            tensors = {"matrix": matrices[task.name], "moments": moments(task.name)}
            there = {name: tensor for name, tensor in tensors.items() if tensor is not None}
            write_tensors(there, folder / f"input.{output}")
            release(matrices[task.name])
            yield {"do": "layer", "task": dataclasses.asdict(task), "output": output}

    def told(done: int) -> None:
        progress("", len(tasks) - len(left) + done, len(tasks))

    engine.run(requests(), told)


def decompose_file(folder: Path, task: dict[str, Any], output: str) -> dict[str, Any]:
    """Decompose the matrix in a file of `folder`, which goes; what an engine's worker calls."""
    source = folder / f"input.{output}"
    if not (folder / output).is_file():  # else a worker was lost just behind it
        tensors, _ = map_file(source)
        how = LayerTask(**{**task, "recipe": Recipe(**task["recipe"])})
        write_parts(decompose_layer(how, tensors["matrix"], tensors.get("moments")), folder / output)
    source.unlink(missing_ok=True)
    return {}
