"""The runtime on another processor: its own tests, real accuracy, and a benchmark that says what it is worth."""

from __future__ import annotations

import json

import pytest

# Tests that judge latencies, which an emulator has none of, or that start processes by the dozen with a time limit.
TIMED = (
    "bench/test_bench.py",
    "bench/test_independent.py",
    "bench/test_resume.py",
    "test_cli.py",
    "test_doctor.py",
    "test_isolation.py",
)
TIMED_TEST = "tests/runtime/bench/test_floor.py::test_rates_are_of_this_world"


def test_the_tests_of_the_runtime_pass(arm_python):
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", f"--deselect={TIMED_TEST}"]
    options += [f"--ignore=tests/runtime/{name}" for name in TIMED]
    done = arm_python("-m", "pytest", "tests/runtime", *options)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", ["saten_bundle", "minilm_bundle"])
def test_accuracy_is_that_of_this_machine(name, arm_python, questions, same_accuracy, tmp_path, request):
    bundle = request.getfixturevalue(name)
    out = tmp_path / "eval.json"
    command = ["-m", "saten_runtime", "eval", bundle, "--data", questions, "-o", out]
    done = arm_python(*command, bind=[bundle.parent, questions.parent, tmp_path])
    assert done.returncode == 0, done.stderr
    metrics = json.loads(out.read_text())["rows"][0]["metrics"]
    agrees = same_accuracy(bundle, questions)
    assert agrees(metrics)
    assert not agrees({**metrics, "recall_at_10": metrics["recall_at_10"] - 0.1})


@pytest.mark.parametrize("name", ["saten_bundle", "minilm_bundle"])
def test_it_computes_what_torch_computed(name, arm_python, request):
    """The bound is the one the export was held to; tests/runtime/run/test_parity.py shows that it can fail."""
    bundle = request.getfixturevalue(name)
    code = "import sys; from saten_runtime.bundle.folder import Bundle; "
    code += "from saten_runtime.run.parity import check_parity; "
    code += "print(max(one.relative_error for one in check_parity(Bundle.open(sys.argv[1]))))"
    done = arm_python("-c", code, bundle, bind=[bundle.parent])
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < json.loads((bundle / "saten_edge.json").read_text())["tolerance"]["relative"]


def test_a_benchmark_runs_and_is_marked(arm_python, saten_bundle, tmp_path):
    command = ["-m", "saten_runtime", "bench", saten_bundle, "-s", "8", "--min-time", "0", "--rounds", "2"]
    done = arm_python(*command, "-o", tmp_path / "out", bind=[saten_bundle.parent, tmp_path])
    assert done.returncode == 4, done.stderr
    result = json.loads((tmp_path / "out/bench.json").read_text())
    assert result["environment"]["emulator"] == "qemu-aarch64-static"
    assert [reason for reason in result["verdict"]["reasons"] if reason.startswith("emulated: by qemu-aarch64")]
    assert result["cells"][0]["failed"] is None
    assert "INVALID: emulated" in done.stdout


@pytest.mark.parametrize("processor", ["cortex-a72", "cortex-a76"])
def test_sums_of_bytes_are_exact_with_and_without_dot_products(processor, arm_python):
    """A Raspberry Pi 4 has no instruction for products of four bytes, a Pi 5 has: neither saturates."""
    code = (
        "from saten_runtime.run.products import exact_bytes as e; print(e(), e(optimized=False), e(entry=('a', '0')))"
    )
    done = arm_python("-c", code, processor=processor)
    assert (done.returncode, done.stdout) == (0, "True True True\n"), done.stderr
