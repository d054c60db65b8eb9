"""The benchmark programs run, and time only what computes the right thing."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

LAYERS = Path(__file__).parents[2] / "benchmarks" / "layers.py"


@pytest.fixture(scope="module")
def layers():
    spec = importlib.util.spec_from_file_location("layers", LAYERS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_every_form_and_its_own_baseline_is_one(tmp_path):
    out = tmp_path / "layers.json"
    command = [sys.executable, LAYERS, "--shape", "64x128", "--rows", "1,3", "--rounds", "2", "-o", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    table = json.loads(out.read_text())["table"]
    assert len(table) == 2 * 12
    assert all(row["bytes"] > 0 and len(row["round_medians_ns"]) == 2 for row in table)
    assert all(row["ratio"] == [1, 1, 1] for row in table if row["form"] == "dense fp32")
    assert len(done.stdout.splitlines()) == 2 + 12


def test_a_form_that_computes_something_else_is_not_timed(layers):
    for name, model, matrix, _ in layers.models(64, 128):
        run = layers.session(model)
        layers.check(name, run, matrix)
        with pytest.raises(SystemExit, match="relative error"):
            layers.check(name, run, np.roll(matrix, 1, axis=1))
