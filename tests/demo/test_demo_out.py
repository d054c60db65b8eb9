"""What `make demo` left in demo-out/ holds what the README promises. Skipped where no demo has run."""

import json
from pathlib import Path

import pytest

from saten_edge.demo import BUNDLES, FAST, OPERATORS, SMALL
from saten_runtime.bundle.folder import Bundle

DEMO_OUT = Path(__file__).parents[2] / "demo-out"
KEYS = {"name", "bytes", "p50_ms", "peak_anon_mib", "recall_at_1", "recall_at_10", "cosine"}

pytestmark = pytest.mark.skipif(
    not (DEMO_OUT / "summary.json").is_file(), reason="demo-out/summary.json is not there; run `make demo` first"
)


@pytest.fixture(scope="module")
def rows():
    """By name; without those of the fast bundle that were measured once more without the native kernels."""
    listed = json.loads((DEMO_OUT / "summary.json").read_text())
    assert all(set(row) == KEYS for row in listed)
    assert {row["name"] for row in listed} - set(BUNDLES) <= {f"{FAST} @ {OPERATORS}"}
    return {row["name"]: row for row in listed if row["name"] in BUNDLES}


def test_every_bundle_has_a_row_and_verifies(rows):
    assert tuple(rows) == BUNDLES
    for name, row in rows.items():
        bundle = Bundle.open(DEMO_OUT / "bundles" / name)
        assert bundle.size_bytes == row["bytes"]


def test_the_small_one_takes_at_most_8_5_hundredths_of_the_bytes(rows):
    assert rows[SMALL]["bytes"] <= 0.085 * rows["dense-fp32"]["bytes"]


def test_the_fast_one_takes_less_time_and_bytes_than_dense_int8(rows):
    assert rows[FAST]["p50_ms"]["128"] < 0.85 * rows["dense-int8"]["p50_ms"]["128"]
    assert rows[FAST]["bytes"] < 0.5 * rows["dense-int8"]["bytes"]


def test_the_compressed_model_still_finds_what_chance_would_not(rows):
    for row in rows.values():
        assert row["recall_at_10"] > 0.7
        assert 0 <= row["recall_at_1"] <= row["recall_at_10"] <= 1
    assert rows["dense-fp32"]["cosine"] == pytest.approx(1, abs=1e-6)


def test_the_page_is_one_file_without_network(rows):
    page = (DEMO_OUT / "report.html").read_text()
    assert all(name in page for name in rows)
    assert "<script" not in page
    assert 'src="http' not in page
