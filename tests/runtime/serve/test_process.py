"""`saten-run serve` as a process: how it begins and ends, and many clients of it at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from saten_runtime import Runner
from saten_runtime.cli import main

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed (extra saten-edge[test])")

CLIENTS = 64


@contextmanager
def process(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that listens, and its address."""
    command = [sys.executable, "-m", "saten_runtime", "serve", "--port", "0", "--json", *map(str, arguments)]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert started.stdout is not None
        yield started, json.loads(started.stdout.readline())["url"]
    finally:
        started.kill()
        started.wait()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
def test_a_signal_ends_it_and_is_no_failure(tiny: Path, ending: signal.Signals) -> None:
    with process(tiny, SATEN_API_KEY="from the environment") as (server, url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="from the environment", max_retries=0) as client:
            assert len(client.embeddings.create(model="tiny", input="w1").data) == 1
        other = openai.OpenAI(base_url=f"{url}/v1", api_key="other", max_retries=0)
        with other, pytest.raises(openai.AuthenticationError):
            other.models.list()
        server.send_signal(ending)
        stdout, stderr = server.communicate(timeout=20)
    assert (server.returncode, stdout, stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "--port 70000: expected a number from 0 to 65535"),
        (["--host", "::1"], "--host '::1': expected an IPv4 address"),
        (["--host", "192.0.2.1"], "192.0.2.1:8080: cannot listen"),
        (["--slots", "0"], "--slots 0"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    tiny: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tiny), *arguments]) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("saten-run: error: ")
    assert words in stderr


def test_a_task_without_a_route_is_refused(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(classifier), "--port", "0"]) == 2
    assert (
        "text-classification of texts; the server takes feature-extraction, text-generation" in capsys.readouterr().err
    )


def test_without_the_extra_it_says_what_to_install(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("saten_runtime.cli.find_spec", lambda name: None if name == "uvicorn" else object())
    assert main(["serve", str(tiny)]) == 2
    assert "serve needs uvicorn; pip install 'saten-runtime[serve]'" in capsys.readouterr().err


def test_an_address_that_others_reach_wants_a_key(tiny: Path) -> None:
    with process(tiny, "--host", "0.0.0.0", SATEN_API_KEY="") as (server, _):
        server.terminate()
        assert "set --api-key" in server.communicate(timeout=20)[1]
    with process(tiny, "--host", "0.0.0.0", "--api-key", "k") as (server, _):
        server.terminate()
        assert server.communicate(timeout=20)[1] == ""


class Crowd:
    """Clients that ask one thing after another, each in a thread, until the time is over."""

    def __init__(self, url: str, expected: np.ndarray, texts: list[str]) -> None:
        self._url, self._expected, self._texts = url, expected, texts
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    def ask(self, number: int, seconds: float) -> None:
        chance, end = random.Random(number), time.monotonic() + seconds
        with openai.OpenAI(base_url=f"{self._url}/v1", api_key="none", max_retries=0) as client:
            while time.monotonic() < end:
                try:
                    self.seen[(self._embed if number % 4 else self._speak)(client, chance)] += 1
                except openai.RateLimitError:
                    self.seen["busy"] += 1
                    time.sleep(0.05)
                except Exception as error:
                    self.wrong.append(f"{type(error).__name__}: {error}")

    def _embed(self, client: Any, chance: random.Random) -> str:
        chosen = [chance.randrange(len(self._texts)) for _ in range(chance.choice((1, 1, 1, 8)))]
        answer = client.embeddings.create(model="tiny", input=[self._texts[index] for index in chosen])
        if np.abs(np.array([each.embedding for each in answer.data]) - self._expected[chosen]).max() > 1e-6:
            self.wrong.append("another text's vector")
        return "vectors"

    def _speak(self, client: Any, chance: random.Random) -> str:
        asked = {"model": "writer", "prompt": "w1", "max_tokens": 8, "temperature": 0}
        if chance.random() < 0.5:
            client.completions.create(**asked)
            return "texts"
        pieces = client.completions.create(**asked, stream=True)
        if chance.random() < 0.3:
            next(iter(pieces))
            pieces.close()
            return "left"
        list(pieces)
        return "streams"


def crowd(tiny: Path, writer: Path, seconds: float) -> tuple[Crowd, list[int]]:
    """What 64 clients met, and the resident memory of the server after each tenth of the time."""
    texts = [" ".join(f"w{(start + step) % 60}" for step in range(1 + start % 40)) for start in range(50)]
    with process(tiny, writer, "--queue", "40", "--slots", "2") as (server, url):
        everybody = Crowd(url, Runner.load(tiny).predict(texts), texts)
        threads = [threading.Thread(target=everybody.ask, args=(number, seconds)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        sizes = []
        for _ in range(10):
            time.sleep(seconds / 10)
            sizes.append(psutil.Process(server.pid).memory_info().rss)
        for thread in threads:
            thread.join(60)
        server.terminate()
        assert "Traceback" not in server.communicate(timeout=20)[1]
        assert server.returncode == 0
    return everybody, sizes


def check(everybody: Crowd, sizes: list[int]) -> None:
    assert everybody.wrong == []
    assert all(everybody.seen[kind] for kind in ("vectors", "texts", "streams", "left"))
    # Buffers for the largest batch and sixty-four connections are there by the middle of the time.
    assert max(sizes[5:]) < 1.1 * sizes[4] + 4e6


def test_64_clients_get_their_own_answers_and_nothing_but_429_besides(tiny: Path, writer: Path) -> None:
    check(*crowd(tiny, writer, 4))


@pytest.mark.slow
def test_64_clients_for_a_minute(tiny: Path, writer: Path) -> None:
    everybody, sizes = crowd(tiny, writer, 60)
    check(everybody, sizes)
    print(dict(everybody.seen), [size >> 20 for size in sizes])
