"""A layer as a task of an engine: its matrix in a file, its parts in another."""

from __future__ import annotations
