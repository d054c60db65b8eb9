"""Paths by which programs outside of the project import from the runtime."""

from __future__ import annotations

from importlib import import_module

import pytest

PATHS = {
    ("saten_runtime.runner", "Runner"): "saten_runtime.run.runner",
    ("saten_runtime.generation", "Sampling"): "saten_runtime.run.generation",
    ("saten_runtime.parity", "compare"): "saten_runtime.run.parity",
    ("saten_runtime.parity", "check_parity"): "saten_runtime.run.parity",
    ("saten_runtime.bundle", "Bundle"): "saten_runtime.bundle.folder",
}


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_a_path_leads_to_where_it_is_defined(path: tuple[str, str]) -> None:
    module, name = path
    assert getattr(import_module(module), name) is getattr(import_module(PATHS[path]), name)


def test_a_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Bundles'"):
        import_module("saten_runtime.bundle").Bundles  # noqa: B018
