"""Registers Saten checkpoints with transformers without importing it.

`import saten_edge` has to be enough for `AutoModel.from_pretrained` to read a Saten checkpoint, and
cheap enough for a command line that only prints its help. So the registration waits for the
moment transformers loads its quantizer table.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["register_when_loaded"]

TABLE_MODULE = "transformers.quantizers.auto"
REGISTERING_MODULE = "saten_edge.checkpoints.checkpoint"


def register_when_loaded() -> None:
    """Register now if transformers' table is loaded, else as soon as it is."""
    if TABLE_MODULE in sys.modules:
        importlib.import_module(REGISTERING_MODULE)
    elif not any(isinstance(finder, _TableFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TableFinder())


class _TableFinder(importlib.abc.MetaPathFinder):
    """Finds the table's module once, as anyone would, and has its loader register afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TABLE_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        importlib.import_module(REGISTERING_MODULE)
