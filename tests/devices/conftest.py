"""An arm64 user land to measure in, bundles to bring there, and what makes two machines' accuracy comparable.

ARM_ROOT names the folder of the user land (`make test-arm`, `make test-devices`); without it these tests are
skipped, and so they are, with the reason, where the user land cannot be built.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from saten_runtime.bundle.folder import Bundle
from saten_runtime.run.runner import Runner
from saten_runtime.run.text import Encoder

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("userland.sh")
WHEELS = REPOSITORY / "runtime" / "kernels" / "scripts" / "wheels.sh"
CANNOT = 77
PROCESSOR = "cortex-a76"
PYTHON = "3.11"  # Debian 12's

ArmPython = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Userland:
    """The arm64 user land at `root`."""

    root: Path

    def command(self, *command: object) -> list[str]:
        return [str(SCRIPT), "run", str(self.root), *map(str, command)]

    def run(
        self, *command: object, bind: Sequence[Path] = (), processor: str = PROCESSOR, timeout: float = 1800
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, with folders of this machine at the paths they have here, on a processor of QEMU's."""
        environment = {**os.environ, "BIND": ":".join(map(str, bind)), "QEMU_CPU": processor}
        return subprocess.run(
            self.command(*command),
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )


@pytest.fixture(scope="session")
def userland() -> Userland:
    where = os.environ.get("ARM_ROOT")
    if not where:
        pytest.skip("ARM_ROOT is not set; run `make test-arm` or `make test-devices`")
    root = Path(where).expanduser().absolute()
    done = subprocess.run([SCRIPT, "build", root], capture_output=True, text=True)
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return Userland(root)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """exported(model folder, name, precision) -> a verified bundle."""
    import saten_edge

    def export(model: Path, name: str, precision: str = "fp32") -> Path:
        out = tmp_path_factory.mktemp("bundles") / name
        saten_edge.export(model, out, saten_edge.ExportOptions(precision, name=name))
        return out

    return export


@pytest.fixture(scope="session")
def saten_bundle(tiny_saten: Path, exported: Callable[..., Path]) -> Path:
    """A tiny model, tensor trains with grouped residuals: every node of ours on another processor."""
    return exported(tiny_saten, "saten-tiny")


@pytest.fixture(scope="session")
def saten_int8_bundle(tiny_saten: Path, exported: Callable[..., Path]) -> Path:
    """`saten_bundle` in 8 bits."""
    return exported(tiny_saten, "saten-tiny-int8", "int8")


@pytest.fixture(scope="session")
def minilm_bundle(minilm: Path, exported: Callable[..., Path]) -> Path:
    """The real all-MiniLM-L6-v2, dense, fp32."""
    return exported(minilm, "minilm")


@pytest.fixture(scope="session")
def minilm_saten_bundles(minilm_saten: Path, exported: Callable[..., Path]) -> list[Path]:
    """The real all-MiniLM-L6-v2, compressed, fp32 and int8."""
    return [exported(minilm_saten, f"minilm-saten-{precision}", precision) for precision in ("fp32", "int8")]


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A function of `math` for each first line of its documentation."""
    functions = sorted((name, inspect.getdoc(value)) for name, value in vars(math).items() if callable(value))
    rows = [
        {"query": name, "answer": line}
        for name, text in functions[:40]
        if (line := (text or "").splitlines()[0].partition("->")[2] or (text or "").splitlines()[0])
    ]
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def kernels_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the native kernels for this machine's arm64 user land, cross-compiled here."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [str(WHEELS), str(folder), "aarch64"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.iterdir()
    return wheel


BY_RANK: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "recall_at_1": lambda rank: (rank <= 1).astype(float),
    "recall_at_10": lambda rank: (rank <= 10).astype(float),
    "mrr_at_10": lambda rank: np.where(rank <= 10, 1 / rank, 0),
}


def accuracy_bounds(folder: Path, data: Path) -> dict[str, float]:
    """How far the accuracy of one bundle may lie apart on two machines, for each metric of a search.

    Each machine's hidden states h (tokens, width) of a text are within t‖h‖ of torch's, t the bound of the bundle's
    manifest; two machines, within 2t‖h‖. Mean pooling gives ‖Δp‖ ≤ ‖Δh‖/√tokens (Cauchy-Schwarz), normalizing
    ‖Δe‖ ≤ 2‖Δp‖/‖p‖, so with δ = max over texts of 4t·(‖h‖/√tokens)/‖p‖ a score moves by at most 2δ + δ². A competitor
    that is more than twice that above or below an answer stays there, which leaves an answer the ranks from `best` to
    `worst`; every metric is the mean of a function that falls with the rank.
    """
    bundle = Bundle.open(folder)
    runner, encoder = Runner.load(bundle), Encoder(bundle)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    texts = [row[field] for field in ("query", "answer") for row in rows]
    spread = 0.0
    for ids in encoder.encode(texts):
        hidden = runner.run(encoder.feeds([ids]))["last_hidden_state"][0].astype(np.float64)
        spread = max(spread, float(np.linalg.norm(hidden) / math.sqrt(len(ids)) / np.linalg.norm(hidden.mean(axis=0))))
    delta = 4 * bundle.manifest.tolerance["relative"] * spread
    moved = 2 * (2 * delta + delta**2)
    vectors = runner.predict(texts).astype(np.float64)
    scores = vectors[: len(rows)] @ vectors[len(rows) :].T
    above = scores - np.diag(scores)[:, None]  # (queries, answers), of the own answer 0
    own = np.eye(len(rows), dtype=bool)
    best = 1 + ((above > moved) & ~own).sum(axis=1)
    worst = 1 + ((above >= -moved) & ~own).sum(axis=1)
    return {name: float((value(best) - value(worst)).mean()) for name, value in BY_RANK.items()}


@pytest.fixture(scope="session")
def same_accuracy() -> Callable[..., Callable[[dict[str, float]], bool]]:
    """same_accuracy(bundle, data) -> whether metrics from another machine agree with this one's within the bounds."""
    from saten_runtime.accuracy.evaluate import evaluate

    def prepare(bundle: Path, data: Path) -> Callable[[dict[str, float]], bool]:
        here, bounds = evaluate([bundle], data).rows[0].metrics, accuracy_bounds(bundle, data)
        assert set(here) == set(bounds)
        assert max(bounds.values()) < 0.1, "a bound that anything would keep"
        print(f"{bundle.name}: here {here}, bounds {bounds}")
        return lambda found: all(abs(found[name] - here[name]) <= bound + 1e-12 for name, bound in bounds.items())

    return prepare


@pytest.fixture(scope="session")
def arm_packages(userland: Userland) -> Path:
    """What the runtime and its tests need, as wheels for aarch64, unpacked beside the user land."""
    folder = userland.root.with_name(f"{userland.root.name}-packages")
    wanted = ["onnxruntime", "numpy", "tokenizers", "psutil", "pytest", "hypothesis", "onnx", "onnx-ir"]
    constraints = REPOSITORY / "constraints.txt"
    stamp = folder / ".complete"
    if not stamp.is_file() or stamp.read_text() != constraints.read_text():
        tags = [f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)] + ["manylinux2014_aarch64"]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(folder)]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
        command += [part for tag in tags for part in ("--platform", tag)]
        done = subprocess.run([*command, "-c", str(constraints), *wanted], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no wheels for aarch64: {done.stderr.strip().splitlines()[-1]}")
        stamp.write_text(constraints.read_text())
    return folder


@pytest.fixture(scope="session")
def arm_python(userland: Userland, arm_packages: Path) -> ArmPython:
    """arm_python(*arguments, bind=[…], site=…, processor=…, **environment) -> the finished python3 of the user land.

    It has this runtime, its packages, and what is installed in the folder `site`.
    """

    def run(
        *arguments: object,
        bind: Sequence[Path] = (),
        site: Path | None = None,
        processor: str = PROCESSOR,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        places = [*([site] if site else []), arm_packages, REPOSITORY / "runtime"]
        settings = {
            "PYTHONPATH": os.pathsep.join(map(str, places)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        words = [f"{name}={value}" for name, value in settings.items()]
        folders = [*places[:-1], REPOSITORY, *bind]
        return userland.run("env", "-C", REPOSITORY, *words, "python3", *arguments, bind=folders, processor=processor)

    return run
