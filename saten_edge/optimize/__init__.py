"""A goal in, the best bundle out: which compression of a model meets a size, a time and an accuracy.

    from saten_edge.optimize import optimize
    found = optimize("model", "out", "train.jsonl", "validation.jsonl", OptimizeOptions(max_drop=1.0))

Trials are drawn by Optuna and judged at rising cost; each step drops what cannot win any more. Every step is a task
whose folder is named by the hash of what it depends on, so that a search that was killed goes on where it was.
"""

from __future__ import annotations

from saten_edge.optimize.replay import replay
from saten_edge.optimize.run import Found, optimize, plan

__all__ = ["Found", "optimize", "plan", "replay"]
