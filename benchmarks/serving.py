"""What the server of a bundle costs: its texts per second beside those of `saten-run bench`, in turns.

    python benchmarks/serving.py BUNDLE [--clients 16] [--tokens 128] [--rounds 4] [--seconds 5] [-o FILE]

The bundle embeds texts. `saten-run bench` runs batches of as many texts as there are clients. The clients are threads
of this process; each sends one text of that many tokens after the other over a connection of its own. A round
measures both; the ratio is the median over rounds. Exit code 1 where the server reaches less than 0.9 of the benchmark.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from saten_runtime import Runner

LEAST_SHARE = 0.9
PROGRAM = (sys.executable, "-m", "saten_runtime")


def main() -> int:
    """Measure, print one table, and write it; exit code 0 when the server reaches `LEAST_SHARE`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    result = measure(asked)
    print("\n".join(f"{name:>24}  {value:.4g}" for name, value in result.items()))
    if asked.output:
        asked.output.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    return 0 if result["share"] >= LEAST_SHARE else 1


def measure(asked: argparse.Namespace) -> dict[str, float]:
    """Rates in texts per second, latencies in milliseconds."""
    text, vector = text_of(asked.bundle, asked.tokens)
    benched, served, latencies = [], [], []
    with server(asked.bundle) as (url, name):
        body = json.dumps({"model": name, "input": text, "encoding_format": "base64"}, allow_nan=False).encode()
        for _ in range(asked.rounds):
            benched.append(bench_rate(asked.bundle, asked.clients, asked.tokens, asked.seconds))
            took = crowd(url, body, vector, asked.clients, asked.seconds)
            served.append(len(took) / asked.seconds)
            latencies += [1e3 * each for each in took]
    shares = [one / other for one, other in zip(served, benched, strict=True)]
    return {
        "bench, texts/s": statistics.median(benched),
        "server, texts/s": statistics.median(served),
        "share": statistics.median(shares),
        "p50, ms": float(np.percentile(latencies, 50)),
        "p99, ms": float(np.percentile(latencies, 99)),
        "requests": len(latencies),
    }


def text_of(bundle: Path, tokens: int) -> tuple[str, np.ndarray]:
    """A text of so many tokens, and its vector."""
    runner = Runner.load(bundle)
    for word in ("the", "a", "w1"):
        for count in range(tokens + 1):
            text = " ".join([word] * count)
            if len(runner.encoder.encode([text])[0]) == tokens:
                return text, runner.predict([text])[0]
    raise SystemExit(f"{bundle}: no text of {tokens} tokens was found; try other --tokens")


@contextmanager
def server(bundle: Path) -> Iterator[tuple[str, str]]:
    """A server of the bundle: its address, and the bundle's name."""
    command = [*PROGRAM, "serve", str(bundle), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        listening = json.loads(process.stdout.readline())
        try:
            yield listening["url"], listening["models"][0]
        finally:
            process.terminate()


def bench_rate(bundle: Path, batch: int, tokens: int, seconds: float) -> float:
    """Texts per second of `saten-run bench`."""
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "-b",
            str(batch),
            "-s",
            str(tokens),
            "--rounds",
            "1",
            "--min-time",
            str(seconds),
            "--no-floor",
            "--json",
        ]
        command = [*PROGRAM, "bench", str(bundle), "-o", f"{folder}/out", *options]
        done = subprocess.run(
            command, capture_output=True, text=True
        )  # exit code 4: too few rounds to be believed alone
        (cell,) = json.loads(done.stdout)["cells"]
        return float(batch / cell["p50_ms"] * 1e3)


def crowd(url: str, body: bytes, vector: np.ndarray, clients: int, seconds: float) -> list[float]:
    """The seconds of every answer that came within so many, after as many to begin with; each has the right vector.

    It counts when an answer came, not when it was asked for: what is under way at the begin makes up for it
    at the end.
    """
    took: list[tuple[float, float]] = []
    wrong: list[str] = []
    begin = time.perf_counter() + seconds
    end = begin + seconds
    threads = [threading.Thread(target=client, args=(url, body, vector, end, took, wrong)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise SystemExit(f"{len(wrong)} wrong answers, the first: {wrong[0]}")
    return [each for at, each in took if begin <= at < end]


def client(
    url: str, body: bytes, vector: np.ndarray, end: float, took: list[tuple[float, float]], wrong: list[str]
) -> None:
    """Ask until the end."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port)
    while (start := time.perf_counter()) < end:
        connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content: Any = json.loads(answer.read())
        now = time.perf_counter()
        found = (
            np.frombuffer(base64.b64decode(content["data"][0]["embedding"]), "<f4") if answer.status == 200 else None
        )
        if found is None or np.abs(found - vector).max() > 1e-5:
            wrong.append(str(content)[:200])
        else:
            took.append((now, now - start))
    connection.close()


if __name__ == "__main__":
    sys.exit(main())
