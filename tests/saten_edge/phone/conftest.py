"""Tiny exported bundles, a server in a thread, and a page written in Python."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import http.client
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnx
import pytest

import saten_edge.phone
from saten_edge.phone import Address, Job, Run, make_job, ort
from saten_edge.phone.app import TOKEN_HEADER, make_app
from saten_edge.phone.connection import Allowance
from saten_edge.phone.job import graph_files
from saten_edge.phone.prices import PriceJob, make_price_job
from saten_edge.phone.questions import Question
from saten_edge.phone.server import uvicorn_server
from saten_exporters.choice.probes import Sizes
from saten_runtime.bench.plan import Plan
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import MANIFEST_FILE
from saten_runtime.errors import RuntimeMismatch
from saten_runtime.records.files import sha256_file
from saten_runtime.run.session import make_session

PLAN = Plan(tokens=(8, 16), min_time_s=0.0, rounds=2)


@pytest.fixture(scope="session")
def dense(tiny_bundle: Callable[[str], Path]) -> Path:
    return tiny_bundle("dense-fp32")


@pytest.fixture(scope="session")
def saten(tiny_bundle: Callable[[str], Path]) -> Path:
    return tiny_bundle("saten-int8")


@pytest.fixture(scope="session")
def foreign(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an operator no ONNX Runtime has."""
    folder = shutil.copytree(dense, tmp_path_factory.mktemp("bundles") / "foreign")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "LayerNormalization").op_type = "Unheard"
    onnx.save(model, folder / "model.onnx")
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    path = folder / "model.onnx"
    manifest["files"]["model.onnx"] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    manifest["name"] = "foreign"
    del manifest["seal"]
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def pairs(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search task of twelve examples, texts of differing length."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"query": " ".join(text.split()[: 2 + k % 5]), "answer": text} for k, text in enumerate(texts[:12])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def job(dense: Path, saten: Path, pairs: Path) -> Job:
    """Two bundles, two sizes, two rounds, and data."""
    return make_job([dense, saten], PLAN, baseline=dense, reference=dense, data=pairs)


@pytest.fixture(scope="session")
def small_prices() -> PriceJob:
    """Graphs of small layers, few rows."""
    return make_price_job(Sizes(((128, 128),), (256, 64), (1, 4)))


@dataclasses.dataclass
class Client:
    """Talks to a server as a browser would, or worse."""

    host: str
    port: int
    token: str

    def request(
        self, method: str, path: str, body: bytes | str | None = None, **headers: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer. headers: with _ for -; None leaves one of the page's out."""
        own: dict[str, str | None] = {TOKEN_HEADER: self.token}
        if body is not None:
            own["Content-Type"] = "application/json"
        own |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host="Host" in own, skip_accept_encoding=True)
            content = body.encode() if isinstance(body, str) else body
            if content is not None and "Content-Length" not in own:
                own["Content-Length"] = str(len(content))
            for name, value in own.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(content)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def get(self, path: str) -> Any:
        status, _, body = self.request("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, value: dict[str, Any]) -> Any:
        status, _, body = self.request("POST", path, json.dumps(value))
        assert status == 200, body
        return json.loads(body)


@dataclasses.dataclass
class Counter:
    """A desk with one run, which counts."""

    run: Run
    fetches: int = 0
    ends: int = 0

    def fetched(self, user_agent: str) -> None:
        self.fetches += 1

    def ended(self) -> None:
        self.ends += 1


@dataclasses.dataclass
class Served:
    """A server in a thread of this process."""

    client: Client
    desk: Counter

    @property
    def run(self) -> Run:
        return self.desk.run


@contextlib.contextmanager
def serving(job: Job, folder: Path, allowance: Allowance | None = None) -> Iterator[Served]:
    address = Address("127.0.0.1")
    desk = Counter(Run(job, folder))
    with address.listen() as listening:
        server = uvicorn_server(make_app(job, desk, address.hosts(), allowance), address)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Served(Client("127.0.0.1", listening.getsockname()[1], desk.run.token), desk)
        finally:
            server.should_exit = True
            thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="session", autouse=True)
def _engine() -> None:
    """Nothing here works without onnxruntime-web."""
    try:
        ort.read_files()
    except RuntimeMismatch as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def _server(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all tests: starting one takes a while. It lets them ask as often as they like."""
    with serving(job, tmp_path_factory.mktemp("run") / "run", Allowance(burst=1e9)) as running:
        yield running


@pytest.fixture
def served(_server: Served, job: Job, tmp_path: Path) -> Served:
    """A server with a fresh run, whose files are in `tmp_path`/run."""
    desk = _server.desk
    desk.run, desk.fetches, desk.ends = Run(job, tmp_path / "run"), 0, 0
    return Served(dataclasses.replace(_server.client, token=desk.run.token), desk)


def loaded(bundle: Bundle) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in graph_files(bundle).items()}


def packed(array: np.ndarray) -> dict[str, Any]:
    content = np.ascontiguousarray(array, "<f4")
    return {"shape": list(array.shape), "float32": base64.b64encode(content.tobytes()).decode()}


def ask(session: Any, question: Question) -> dict[str, np.ndarray]:
    """What the page answers: raw outputs, pooled but not normalized."""
    names = list(question.outputs)
    outputs = dict(zip(names, session.run(names, question.feeds), strict=True))
    if question.pooling == "mean":
        weights = question.feeds["attention_mask"][:, :, None].astype(np.float32)
        outputs = {name: (value * weights).sum(axis=1) / weights.sum(axis=1) for name, value in outputs.items()}
    return outputs


def answers_of(job: Job, run: str, names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Posts with the answers of each bundle to each of its questions."""
    for index, (name, exam) in enumerate(job.exams.items()):
        if names is not None and name not in names:
            continue
        session = make_session(exam.bundle)
        for number, question in enumerate(exam.questions):
            yield {
                "run": run,
                "bundle": index,
                "question": number,
                "loaded": loaded(exam.bundle),
                "elapsed_ns": 1000,
                "outputs": {output: packed(value) for output, value in ask(session, question).items()},
            }


def bench_of(job: Job, run: str, **changes: Any) -> dict[str, Any]:
    """A post with times that are made up: 2 ms for bundle 0, 1 ms for bundle 1, times tokens / 8."""
    plan, indices = job.plan, range(len(job.bundles))
    starts = [
        {"bundle": b, "threads": 1, "round": r, "cold_load_ms": 9.0, "session_ms": 5.0, "first_run_ms": 1.0}
        for r in range(plan.rounds)
        for b in indices
    ]
    turns = [
        {
            "bundle": b,
            "threads": 1,
            "batch": size.batch,
            "tokens": size.tokens,
            "round": r,
            "runs_per_sample": 1,
            "samples_ns": [(2 - b) * 1_000_000 * size.tokens // 8 + step for step in range(5)],
        }
        for r in range(plan.rounds)
        for size in job.sizes
        for b in indices
    ]
    return {
        "run": run,
        "loaded": {str(index): loaded(bundle) for index, bundle in enumerate(job.bundles.values())},
        "device": {"cores": 8, "memory_gib": 4.0, "isolated": False, "secure": False, "tick_ns": 100_000},
        "hidden": False,
        "starts": starts,
        "turns": turns,
        "failures": [],
        **changes,
    }


@pytest.fixture(name="answers_of")
def _answers_of(job: Job) -> Callable[..., Iterator[dict[str, Any]]]:
    """answers_of(run, names=None, job=job) -> posts."""
    usual = job
    return lambda run, names=None, job=usual: answers_of(job, run, names)


@pytest.fixture(name="bench_of")
def _bench_of(job: Job) -> Callable[..., dict[str, Any]]:
    """bench_of(run, **changes) -> a post."""
    return functools.partial(bench_of, job)


@pytest.fixture(name="serving")
def _serving() -> Callable[..., contextlib.AbstractContextManager[Served]]:
    """serving(job, folder, allowance=None) -> a server of its own, in a `with`."""
    return serving


@pytest.fixture(scope="session")
def client_of() -> Callable[[str], Client]:
    """client_of(link) -> a client with the link's token."""

    def make(link: str) -> Client:
        parts = urlsplit(link)
        return Client(str(parts.hostname), int(parts.port or 0), parts.fragment)

    return make


@pytest.fixture(scope="session")
def static() -> Path:
    """The folder of the page."""
    return Path(saten_edge.phone.__file__).parent / "static"
