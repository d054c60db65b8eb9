"""Who may ask, how much, and what happens to those who do not wait."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from saten_runtime.run.runner import Runner

JSON = {"Content-Type": "application/json"}
TEXT = {"model": "tiny", "input": "w1 w2"}
PROMPT = {"model": "writer", "prompt": "w1", "max_tokens": 40, "temperature": 0}


def ask(
    url: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, http.client.HTTPMessage]:
    """(status, JSON or text, headers) of one request."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=20)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", path, content, JSON if headers is None else headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if text.startswith("{") else text, answer.headers


@pytest.fixture
def slow_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every token takes 50 ms; the tokens that were made."""
    made: list[int] = []
    original = Runner.continue_ids

    def slowly(self: Runner, *arguments: Any) -> Iterator[int]:
        for token in original(self, *arguments):
            time.sleep(0.05)
            made.append(token)
            yield token

    monkeypatch.setattr(Runner, "continue_ids", slowly)
    return made


def settled(count: Callable[[], int]) -> int:
    """A count once it has been the same for a while."""
    last = -1
    while (now := count()) != last:
        last = now
        time.sleep(0.3)
    return last


def test_with_a_key_only_the_health_is_open(serving: Any, tiny: Path) -> None:
    key = {"Authorization": "Bearer s3cret"}
    with serving([tiny], api_key="s3cret") as url:
        assert ask(url, "/healthz")[:2] == (200, {"status": "ok"})
        for wrong in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}):
            status, refusal, _ = ask(url, "/v1/embeddings", TEXT, {**JSON, **wrong})
            assert (status, refusal["error"]["code"]) == (401, "invalid_api_key")
            assert ask(url, "/metrics", headers=wrong)[0] == 401
        assert ask(url, "/v1/embeddings", TEXT, {**JSON, **key})[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/embeddings", TEXT, {"Content-Type": "text/plain"}, 415),
        ("/v1/embeddings", TEXT, {**JSON, "Host": "evil.example"}, 400),
        ("/v1/embeddings", b"x" * 5001, JSON, 413),
        ("/v1/embeddings", b"{", JSON, 400),
        ("/v1/embeddings", b'{"model": "tiny", "model": "tiny", "input": "w1"}', JSON, 400),
        ("/v1/embeddings", {**TEXT, "model": "other"}, JSON, 404),
        ("/v1/embeddings", None, JSON, 405),
        ("/v1/nothing", TEXT, JSON, 404),
    ],
)
def test_other_requests_are_refused(
    serving: Any, tiny: Path, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    with serving([tiny], max_body=5000) as url:
        found, refusal, _ = ask(url, path, body, headers)
        assert found == status
        assert ("model_not_found" in str(refusal)) is (path == "/v1/embeddings" and status == 404)
        assert ask(url, "/v1/embeddings", TEXT)[0] == 200


def test_more_than_may_wait_are_turned_away_and_the_others_answered(
    serving: Any, writer: Path, slow_tokens: list[int]
) -> None:
    with serving([writer], queue=2) as url, ThreadPoolExecutor(8) as pool:
        asked = {**PROMPT, "max_tokens": 8}
        found = list(pool.map(lambda _: ask(url, "/v1/completions", asked), range(8)))
    assert sorted(status for status, _, _ in found) == [200] * 3 + [429] * 5  # one runs, two wait
    busy = next(answer for answer in found if answer[0] == 429)
    assert busy[1]["error"]["code"] == "rate_limit_exceeded"
    assert int(busy[2]["Retry-After"]) >= 1
    assert len({answer[1]["choices"][0]["text"] for answer in found if answer[0] == 200}) == 1


def test_more_texts_than_ever_may_wait_are_no_matter_of_time(serving: Any, tiny: Path) -> None:
    with serving([tiny], queue=4) as url:
        status, refusal, _ = ask(url, "/v1/embeddings", {**TEXT, "input": ["w1"] * 5})
        assert (status, "has 5 texts, and at most 4 may wait" in refusal["error"]["message"]) == (400, True)
        assert ask(url, "/v1/embeddings", {**TEXT, "input": ["w1"] * 4})[0] == 200


def test_seats_are_side_by_side(serving: Any, writer: Path, slow_tokens: list[int]) -> None:
    def two(url: str) -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: ask(url, "/v1/completions", {**PROMPT, "max_tokens": 12}), range(2)))
        return time.perf_counter() - start

    with serving([writer], slots=1) as url:
        one_by_one = two(url)
    with serving([writer], slots=2) as url:
        assert two(url) < 0.8 * one_by_one


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_ends(serving: Any, writer: Path, slow_tokens: list[int], stream: bool) -> None:
    with serving([writer], timeout_s=0.3) as url:
        status, answer, _ = ask(url, "/v1/completions", {**PROMPT, "stream": stream})
        assert "took too long" in str(answer)
        assert status == (200 if stream else 504)
        assert settled(lambda: len(slow_tokens)) < 20
        assert ask(url, "/v1/completions", {**PROMPT, "max_tokens": 2})[0] == 200  # the seat is free again


def test_the_time_is_that_of_all_prompts_of_a_request(serving: Any, writer: Path, slow_tokens: list[int]) -> None:
    asked = {**PROMPT, "max_tokens": 8, "stream": True}
    with serving([writer], timeout_s=1.5) as url:  # 30 tokens at most: enough for the 8 of one prompt
        assert "took too long" not in ask(url, "/v1/completions", asked)[1]
        made = len(slow_tokens)
        assert "took too long" in ask(url, "/v1/completions", {**asked, "prompt": ["w1"] * 8})[1]
    assert made == 8
    assert len(slow_tokens) - made <= 31  # one more was being made


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_went_away_gets_nothing_more_made(
    serving: Any, writer: Path, slow_tokens: list[int], stream: bool
) -> None:
    with serving([writer]) as url:
        place = urlsplit(url)
        body = json.dumps({**PROMPT, "stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((place.hostname, place.port)) as gone:
            gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.4)
        assert 0 < settled(lambda: len(slow_tokens)) < 25  # of 40
        assert ask(url, "/v1/completions", {**PROMPT, "max_tokens": 2})[0] == 200
        assert 'saten_requests_total{route="/v1/completions",code="200"}' in ask(url, "/metrics")[1]


def test_a_head_that_does_not_end_is_dropped(serving: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saten_runtime.serve.connection.READ_DEADLINE_S", 0.2)
    with serving([tiny]) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port), timeout=10) as slow:
            slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\n")
            assert slow.recv(1) == b""


def test_a_client_that_goes_away_amid_its_body_is_no_defect(
    serving: Any, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counted = 'saten_requests_total{route="/v1/embeddings",code="499"} 1'
    with serving([tiny]) as url:
        place = urlsplit(url)
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((place.hostname, place.port)) as gone:
            gone.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            time.sleep(0.1)
        end = time.monotonic() + 10
        while counted not in ask(url, "/metrics")[1] and time.monotonic() < end:
            time.sleep(0.05)
        assert counted in ask(url, "/metrics")[1]
    assert caplog.text == ""


def test_a_defect_is_said_without_its_inside(
    serving: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Runner, "batched", lambda *_: 1 / 0)
    with serving([tiny]) as url:
        status, answer, _ = ask(url, "/v1/embeddings", TEXT)
        assert ask(url, "/healthz")[0] == 200
        assert 'saten_requests_total{route="/v1/embeddings",code="500"} 1' in ask(url, "/metrics")[1]
    assert (status, answer["error"]["message"]) == (500, "a defect of the server; its log says more")
    assert "ZeroDivisionError" in caplog.text


def test_what_is_under_way_is_finished_when_the_server_ends(serving: Any, writer: Path, slow_tokens: list[int]) -> None:
    found: list[Any] = []
    with serving([writer], grace_s=10) as url:
        asking = threading.Thread(target=lambda: found.append(ask(url, "/v1/completions", {**PROMPT, "max_tokens": 8})))
        asking.start()
        time.sleep(0.2)
    asking.join(10)
    assert found[0][0] == 200
    assert found[0][1]["usage"]["completion_tokens"] == 8


def test_what_is_not_finished_in_time_is_given_up(serving: Any, writer: Path, slow_tokens: list[int]) -> None:
    with (
        serving([writer], grace_s=0) as url,
        socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as c,
    ):
        body = json.dumps(PROMPT).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        c.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.3)
    assert 0 < len(slow_tokens) < 25


def test_metrics_count_what_was_done(serving: Any, tiny: Path, writer: Path) -> None:
    with serving([tiny, writer]) as url:
        ask(url, "/v1/embeddings", {**TEXT, "input": ["w1 w2", "w3"]})
        ask(url, "/v1/completions", {**PROMPT, "max_tokens": 5})
        ask(url, "/v1/secret-path", {})
        status, text, headers = ask(url, "/metrics")
    lines = text.splitlines()
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "text/plain")
    for line in (
        'saten_requests_total{route="/v1/embeddings",code="200"} 1',
        'saten_requests_total{route="other",code="404"} 1',
        'saten_tokens_total{model="tiny",kind="prompt"} 7',
        'saten_tokens_total{model="writer",kind="completion"} 5',
        'saten_request_seconds_count{route="/v1/embeddings"} 1',
        'saten_batch_texts_bucket{model="tiny",le="2"} 1',
        'saten_waiting{model="writer"} 0',
    ):
        assert line in lines
    assert "secret-path" not in text
