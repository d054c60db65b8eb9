"""Recipes as files: what a result depends on, written as YAML and read back strictly.

A recipe is the record that every stage writes into checkpoint and bundle, `saten_runtime.bundle.recipe`. In a file it
is the same list of stages; what is not said of a stage takes its default.
"""

from __future__ import annotations

from saten_edge.recipes.schema import (
    RecipeFile,
    given_by,
    merged,
    other_inputs,
    read_recipe,
    recorded,
    stages_in,
    write_recipe,
)

__all__ = ["RecipeFile", "given_by", "merged", "other_inputs", "read_recipe", "recorded", "stages_in", "write_recipe"]
