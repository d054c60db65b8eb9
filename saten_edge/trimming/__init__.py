"""Vocabulary trimming: a model whose word table holds only what the texts of its task use.

Source: Ushio et al. 2023, https://arxiv.org/abs/2305.15020. Entries are counted on texts of the task, those that no
text needs are left out, and tokenizer, word table and every id in the model's files are renumbered together.
"""

from __future__ import annotations

from saten_edge.trimming.run import Rows, rows_left, trim

__all__ = ["Rows", "rows_left", "trim"]
