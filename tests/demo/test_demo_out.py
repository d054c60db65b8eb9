"""What `make demo` left in demo-out/ holds what the README promises. Skipped where no demo has run."""

import json
from pathlib import Path

import pytest

from saten_edge.demo import BUNDLES
from saten_runtime.bundle.folder import Bundle

DEMO_OUT = Path(__file__).parents[2] / "demo-out"
KEYS = {"name", "bytes", "p50_ms", "peak_anon_mib", "recall_at_1", "recall_at_10", "cosine"}

pytestmark = pytest.mark.skipif(
    not (DEMO_OUT / "summary.json").is_file(), reason="demo-out/summary.json is not there; run `make demo` first"
)


@pytest.fixture(scope="module")
def rows():
    listed = json.loads((DEMO_OUT / "summary.json").read_text())
    assert all(set(row) == KEYS for row in listed)
    return {row["name"]: row for row in listed}


def test_every_bundle_has_a_row_and_verifies(rows):
    assert tuple(rows) == BUNDLES
    for name, row in rows.items():
        bundle = Bundle.open(DEMO_OUT / "bundles" / name)
        assert bundle.size_bytes == row["bytes"]


def test_saten_fp32_holds_at_most_three_tenths_of_the_bytes(rows):
    dense, saten = (Bundle.open(DEMO_OUT / "bundles" / name) for name in ("dense-fp32", "saten-fp32"))
    assert saten.model_bytes <= 0.30 * dense.model_bytes
    assert rows["saten-fp32"]["bytes"] <= 0.30 * rows["dense-fp32"]["bytes"]
    assert sum(layer.bytes for layer in saten.manifest.layers) <= 0.30 * sum(
        layer.dense_fp32_bytes for layer in saten.manifest.layers
    )


def test_saten_fp32_is_faster_than_dense_fp32_at_128_tokens(rows):
    assert rows["saten-fp32"]["p50_ms"]["128"] < rows["dense-fp32"]["p50_ms"]["128"]


def test_the_compressed_model_still_finds_what_chance_would_not(rows):
    chance_at_10 = 10 / 1000
    for row in rows.values():
        assert row["recall_at_10"] > 10 * chance_at_10
        assert 0 <= row["recall_at_1"] <= row["recall_at_10"] <= 1
    assert rows["dense-fp32"]["cosine"] == pytest.approx(1, abs=1e-6)


def test_the_page_is_one_file_without_network(rows):
    page = (DEMO_OUT / "report.html").read_text()
    assert all(name in page for name in rows)
    assert "<script" not in page
    assert 'src="http' not in page
