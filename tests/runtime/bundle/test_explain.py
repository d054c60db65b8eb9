"""What `explain` says of a bundle, with no torch and no graph needed where the manifest has it all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from saten_runtime import Bundle
from saten_runtime.bundle.explain import explain, explain_table
from saten_runtime.bundle.manifest import Layer, Rejected, read_manifest
from saten_runtime.errors import BundleError

LAYER = Layer(
    name="encoder.0",
    kind="linear",
    form="LowRankLinear",
    shape=[3072, 768],
    ranks=[16, 48, 16],
    nnz=1234,
    bytes=737_280,
    dense_fp32_bytes=9_437_184,
    macs_per_row=184_320,
    lowering="low-rank",
    predicted_us=310.25,
    rejected=[Rejected("dense", "DenseLinear", 2890.0)],
)


def with_layers(folder: Path, **changes: object) -> Bundle:
    path = folder / "saten_edge.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "layers": [dataclasses.asdict(LAYER)], **changes}))
    return Bundle.open(folder)


def test_the_table(make_bundle: Callable[..., Path], copy_of: Callable[[Path], Path], tiny: Path) -> None:
    found = explain(with_layers(copy_of(tiny), rows=128, target="x86-64"))
    text = explain_table(found)
    first, head, row, total, recipe = text.splitlines()
    assert recipe == "recipe: not recorded"
    assert first.endswith("chosen for x86-64 and 128 rows per layer")
    assert head.split()[:3] == ["layer", "lowering", "form"]
    for words in (
        "encoder.0",
        "low-rank",
        "3072 × 768",
        "16·48·16",
        "1,234",
        "737,280",
        "184,320",
        "310.2",
        "dense 2890.0",
    ):
        assert words in row
    assert total.split() == ["all", "1,234", "737,280", "184,320", "310.2"]
    assert found["layers"] == [dataclasses.asdict(LAYER)]


def test_a_dense_bundle_lists_its_matrices(tiny: Path) -> None:
    found = explain(Bundle.open(tiny))
    assert [layer["predicted_us"] for layer in found["layers"]] == [None] * len(found["layers"])
    assert "chosen for cpu and an unknown number of rows per layer" in explain_table(found)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_manifests_say_less(version: int, tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(tiny)
    path = folder / "saten_edge.json"
    manifest = json.loads(path.read_text())
    layer = dataclasses.asdict(LAYER)
    for key in ("lowering", "predicted_us", "rejected") if version < 3 else ():
        del layer[key]
    lacking = {1: ("labels", "image", "generation", "target", "rows"), 2: ("target", "rows"), 3: ()}[version]
    for key in (*lacking, "recipe"):
        manifest.pop(key, None)
    path.write_text(json.dumps({**manifest, "schema_version": version, "layers": [layer]}))
    (read,) = read_manifest(folder).layers
    known = ("low-rank", 310.25, LAYER.rejected) if version == 3 else ("", None, [])
    assert (read.name, read.lowering, read.predicted_us, read.rejected) == ("encoder.0", *known)
    assert read_manifest(folder).rows is None
    assert read_manifest(folder).recipe is None


@pytest.mark.parametrize(
    "damage",
    [{"layers": 3}, {"layers": [3]}, {"layers": [{"name": "x"}]}, {"rows": "many"}, {"target": None}, {"recipe": {}}],
)
def test_a_manifest_of_another_shape_is_refused(
    damage: dict[str, object], tiny: Path, copy_of: Callable[[Path], Path]
) -> None:
    with pytest.raises(BundleError, match=r"saten_edge\.json"):
        with_layers(copy_of(tiny), **damage)
