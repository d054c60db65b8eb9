"""Hostile requests are refused, and leave the run as it was. H1–H7: the threats of docs/browser.md."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable

import pytest

from saten_edge.phone import connection
from saten_edge.phone.app import HEADERS, PAGE
from saten_edge.phone.ort import VERSION, WASM
from saten_edge.phone.schema import MOST_BODY_BYTES, MOST_SAMPLES

POSTS = ["/api/answer", "/api/bench", "/api/end"]
GUARDED = [("GET", "/api/job"), ("GET", "/api/files/" + 64 * "0"), *(("POST", path) for path in POSTS)]


def raw(served, content: bytes, *, wait_s: float = 5.0) -> bytes:
    """What comes back for bytes that are no proper request, until the server closes."""
    with socket.create_connection((served.client.host, served.client.port), timeout=wait_s) as stream:
        stream.sendall(content)
        received = b""
        while part := stream.recv(65536):
            received += part
        return received


def post_head(served, path: str, **headers: str) -> bytes:
    own = {
        "Host": served.client.host,
        "X-Saten-Token": served.client.token,
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in own.items()), "", ""]
    return "\r\n".join(lines).encode()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """Deadlines of a fifth of a second."""
    for module in ("connection", "app"):
        monkeypatch.setattr(f"saten_edge.phone.{module}.READ_DEADLINE_S", 0.2)
    return 0.2


class TestTheHonestPage:
    def test_gets_everything_it_needs(self, served, job):
        for path, (_, media_type) in PAGE.items():
            status, headers, body = served.client.request("GET", path, X_Saten_Token=None)
            assert (status, headers["content-type"]) == (200, media_type)
            assert body
        given = served.client.get("/api/job")
        assert [bundle["name"] for bundle in given["bundles"]] == list(job.bundles)
        for bundle in given["bundles"]:
            for file in (*bundle["files"], bundle["sheet"]):
                status, _, body = served.client.request("GET", f"/api/files/{file['sha256']}")
                assert (status, len(body)) == (200, file["bytes"])
        assert served.desk.fetches == 1

    def test_onnxruntime_may_be_kept_the_rest_not(self, served):
        status, headers, _ = served.client.request("GET", f"/ort/{VERSION}/{WASM}")
        assert (status, headers["content-type"]) == (200, "application/wasm")
        assert "immutable" in headers["cache-control"]
        assert served.client.request("GET", "/app.js")[1]["cache-control"] == "no-store"

    @pytest.mark.parametrize("path", ["/", "/api/job", "/nowhere"])
    def test_every_answer_carries_the_headers(self, served, path):
        headers = served.client.request("GET", path)[1]
        assert {name: headers[name.lower()] for name in HEADERS} == HEADERS
        assert not {"access-control-allow-origin", "set-cookie", "server"} & set(headers)

    def test_the_end_is_told_once(self, served, bench_of):
        served.client.post("/api/bench", bench_of(served.run.id))
        assert served.client.post("/api/end", {"run": served.run.id}) == {"rows": []}
        assert served.desk.ends == 1


class TestH1Exhaustion:
    @pytest.mark.parametrize("path", POSTS)
    def test_a_body_without_a_length(self, served, path):
        status = served.client.request("POST", path, Content_Type="application/json", Content_Length=None)[0]
        assert status == 411
        chunked = raw(served, post_head(served, path, Transfer_Encoding="chunked") + b'5\r\n{"a":\r\n')
        assert b" 411 " in chunked.splitlines()[0]

    @pytest.mark.parametrize("length", [MOST_BODY_BYTES + 1, 10 * 2**30])
    def test_a_body_that_is_too_long_is_not_read(self, served, length):
        answer = raw(served, post_head(served, "/api/bench", Content_Length=str(length)))
        assert b" 413 " in answer.splitlines()[0]

    def test_the_longest_body_is_read(self, served):
        body = b" " * (MOST_BODY_BYTES - 2) + b"{}"
        assert served.client.request("POST", "/api/end", body)[0] == 400

    @pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "12_0", "9" * 5000])
    def test_a_length_that_is_none(self, served, length):
        answer = raw(served, post_head(served, "/api/end", Content_Length=length) + b"{}")
        assert answer.split()[1] in (b"400", b"411", b"413")

    def test_a_body_of_a_byte_per_minute(self, served, impatient):
        start = time.monotonic()
        answer = raw(served, post_head(served, "/api/end", Content_Length="100") + b"{")
        assert b" 408 " in answer.splitlines()[0]
        assert time.monotonic() - start < 10 * impatient

    @pytest.mark.parametrize("begin", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
    def test_a_head_of_a_byte_per_minute(self, served, impatient, begin):
        start = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert raw(served, begin) == b""
        assert impatient <= time.monotonic() - start < 10 * impatient

    def test_a_slow_second_head_on_a_used_connection(self, served, impatient):
        with socket.create_connection((served.client.host, served.client.port), timeout=5) as stream:
            stream.sendall(b"GET /icon.svg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b" 200 " in stream.recv(65536).splitlines()[0]
            start = time.monotonic()
            stream.sendall(b"GET / HT")
            while not is_closed(stream):
                assert time.monotonic() - start < 10 * impatient

    def test_an_endless_head(self, served):
        answer = raw(served, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 100_000)
        assert b" 400 " in answer.splitlines()[0]

    def test_a_crowd_of_connections_leaves_the_server_there(self, served):
        crowd = [socket.create_connection((served.client.host, served.client.port)) for _ in range(100)]
        try:
            time.sleep(0.3)
            dropped = sum(is_closed(stream) for stream in crowd)
            assert len(crowd) - dropped == connection.MOST_PER_ADDRESS
        finally:
            for stream in crowd:
                stream.close()
        assert eventually(lambda: served.client.request("GET", "/api/job")[0] == 200)

    def test_too_many_requests(self, job, serving, tmp_path):
        with serving(job, tmp_path / "run", connection.Allowance(burst=5, per_s=0)) as served:
            codes = [served.client.request("GET", "/icon.svg")[0] for _ in range(7)]
        assert codes == [200, 200, 200, 200, 200, 429, 429]


def is_closed(stream: socket.socket) -> bool:
    stream.settimeout(0.01)
    try:
        return stream.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def eventually(holds: Callable[[], bool]) -> bool:
    for _ in range(50):
        try:
            if holds():
                return True
        except OSError:
            pass
        time.sleep(0.1)
    return False


class TestH2Token:
    @pytest.mark.parametrize(("method", "path"), GUARDED)
    @pytest.mark.parametrize("token", [None, "", "guess", "\xe9", "A" * 22])
    def test_no_token_or_a_guess(self, served, method, path, token):
        body = b"{}" if method == "POST" else None
        status, _, answer = served.client.request(method, path, body, X_Saten_Token=token)
        assert status == 403
        assert served.run.token.encode() not in answer

    def test_a_token_in_the_url_or_a_cookie_counts_for_nothing(self, served):
        token = served.client.token
        assert served.client.request("GET", f"/api/job?token={token}", X_Saten_Token=None)[0] == 403
        assert served.client.request("GET", "/api/job", X_Saten_Token=None, Cookie=f"token={token}")[0] == 403

    @pytest.mark.parametrize(("method", "path"), GUARDED)
    def test_the_token_dies_with_its_run(self, served, method, path):
        served.client.post("/api/end", {"run": served.run.id})
        assert served.client.request(method, path, b"{}" if method == "POST" else None)[0] == 403

    def test_tokens_are_long_and_differ(self, served, job, tmp_path):
        from saten_edge.phone import Run

        tokens = {Run(job, tmp_path).token for _ in range(50)}
        assert len(tokens) == 50
        assert min(map(len, tokens)) >= 22  # 128 bits in base64


class TestH3CrossSite:
    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "[::1]"])
    def test_another_host(self, served, host):
        assert served.client.request("GET", "/", Host=host)[0] == 400
        assert served.client.request("POST", "/api/end", b"{}", Host=host)[0] == 400
        assert served.run.is_open

    def test_no_host_and_two_hosts(self, served):
        assert b" 400 " in raw(served, b"GET / HTTP/1.1\r\n\r\n").splitlines()[0]
        assert b" 400 " in raw(served, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: x\r\n\r\n").splitlines()[0]

    @pytest.mark.parametrize(
        "media_type",
        [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"],
    )
    def test_what_a_form_of_another_site_can_send(self, served, media_type):
        body = json.dumps({"run": served.run.id})
        assert served.client.request("POST", "/api/end", body, Content_Type=media_type)[0] == 415
        assert served.run.is_open

    def test_a_preflight_is_not_answered(self, served):
        asked = {"Origin": "http://evil.example", "Access_Control_Request_Method": "POST"}
        status, headers, _ = served.client.request("OPTIONS", "/api/end", X_Saten_Token=None, **asked)
        assert status == 405
        assert not [name for name in headers if name.startswith("access-control")]


class TestH4Json:
    @pytest.mark.parametrize(
        "change",
        [
            '"elapsed_ms": NaN',
            '"cold_load_ms": NaN',
            '"cold_load_ms": 1e999',
            '"cold_load_ms": -1',
            '"cold_load_ms": 0',
            '"cold_load_ms": "9"',
            '"cold_load_ms": true',
            '"cold_load_ms": null',
            '"cold_load_ms": 1' + "0" * 400,
            '"cold_load_ms": 1' + "0" * 5000,
            '"cold_load_ms": 9, "cold_load_ms": 9',
            '"cold_load_ms": 9, "unheard": 1',
        ],
        ids=lambda change: change[:40],
    )
    def test_numbers_and_keys(self, served, bench_of, change):
        body = json.dumps(bench_of(served.run.id))
        changed = body.replace('"cold_load_ms": 9.0', change, 1)
        assert changed != body
        status, _, answer = served.client.request("POST", "/api/bench", changed)
        assert (status, served.run.bench) == (400, None)
        assert len(answer) < 500

    @pytest.mark.parametrize("samples", [[], [0], [-1], [1.5], ["1"], [True], [10**13], [1] * (MOST_SAMPLES + 1)])
    def test_samples(self, served, bench_of, samples):
        post = bench_of(served.run.id)
        post["turns"][0]["samples_ns"] = samples
        assert served.client.request("POST", "/api/bench", json.dumps(post))[0] == 400
        assert served.run.bench is None

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b'"x"',
            b"[" * 400_000,
            b'{"a":' * 100_000,
            b"\xff\xfe\x00",
            b"{}",
            b'{"run": "\\ud800"}',
        ],
        ids=lambda body: repr(body[:12]),
    )
    @pytest.mark.parametrize("path", POSTS)
    def test_no_object_of_ours(self, served, path, body):
        assert served.client.request("POST", path, body)[0] == 400
        assert served.run.is_open

    @pytest.mark.parametrize("escape", ["\\ud800", "\\udfff\\ud800"])
    def test_half_a_character(self, served, bench_of, escape):
        failures = [{"bundle": 0, "threads": 1, "reason": "REASON"}]
        body = json.dumps(bench_of(served.run.id, failures=failures))
        assert served.client.request("POST", "/api/bench", body.replace("REASON", escape))[0] == 400
        assert served.client.request("POST", "/api/bench", body.replace(served.run.id, escape))[0] == 400

    def test_the_twin_that_is_taken(self, served, bench_of):
        answer = served.client.post("/api/bench", bench_of(served.run.id))
        assert answer["verdict"]["reasons"] == [
            "dense-fp32: did not answer its validation cases",
            "saten-int8: did not answer its validation cases",
        ]
        assert served.run.bench is not None


class TestH5Markup:
    def test_a_user_agent_stays_text(self, served, bench_of, dense, saten):
        from saten_edge.reports import build_report, html_page
        from saten_runtime.bundle.folder import Bundle

        evil = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
        status, _, body = served.client.request(
            "POST", "/api/bench", json.dumps(bench_of(served.run.id)), User_Agent=evil
        )
        assert status == 200
        assert b"script" not in body
        stored = json.loads((served.run.folder / "bench.json").read_text())
        assert stored["environment"]["user_agent"] == evil
        page = html_page(build_report([Bundle.open(dense), Bundle.open(saten)], stored))
        assert "<script" not in page
        assert "<img" not in page
        assert "&lt;script&gt;" in page

    def test_a_long_user_agent_is_cut(self, served, bench_of):
        served.client.request("POST", "/api/bench", json.dumps(bench_of(served.run.id)), User_Agent="a" * 3000)
        assert served.run.bench.environment["user_agent"] == "a" * 500

    def test_the_page_makes_no_markup_out_of_texts(self, static):
        for file in static.glob("*.js"):
            source = file.read_text()
            for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
                assert word not in source, f"{file.name}: {word}"

    def test_the_policy_allows_our_own_files_only(self):
        policy = dict(part.strip().partition(" ")[::2] for part in HEADERS["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'self'"
        assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
        assert HEADERS["X-Content-Type-Options"] == "nosniff"


class TestH6Paths:
    @pytest.mark.parametrize(
        "path",
        [
            "/../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/..%2f..%2fetc/passwd",
            "//etc/passwd",
            "/static/app.js",
            "/app.py",
            "/saten_edge.json",
            "/index.html",
            f"/ort/{VERSION}/../app.py",
            f"/ort/{VERSION}/%2e%2e/style.css",
            "/api/files/model.onnx",
            "/api/files/..%2f..%2fetc%2fpasswd",
            "/api/files/" + 64 * "0",
            "/api/files/",
            "/api/files/\x00",
        ],
    )
    def test_nothing_is_found_by_a_path(self, served, path):
        content = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Saten-Token: {served.client.token}\r\n\r\n".encode()
        answer = raw(served, content)
        assert answer.split()[1] in (b"404", b"400")
        assert b"root:" not in answer

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "POST"])
    def test_other_methods(self, served, method):
        assert served.client.request(method, "/api/job", b"{}")[0] == 405


class TestH7AnotherModel:
    def test_another_run(self, served, bench_of):
        assert served.client.request("POST", "/api/bench", json.dumps(bench_of("0123456789abcdef")))[0] == 409

    @pytest.mark.parametrize("change", ["sha256", "missing file", "further file", "missing bundle"])
    def test_other_files(self, served, bench_of, change):
        post = bench_of(served.run.id)
        if change == "missing bundle":
            del post["loaded"]["1"]
        if change == "missing file":
            del post["loaded"]["1"]["model.onnx"]
        if change == "sha256":
            post["loaded"]["1"]["model.onnx"] = 64 * "0"
        if change == "further file":
            post["loaded"]["1"]["more"] = 64 * "0"
        status, _, answer = served.client.request("POST", "/api/bench", json.dumps(post))
        assert (status, served.run.bench) == (409, None)
        kept = [json.loads(line) for line in (served.run.folder / "received.jsonl").read_text().splitlines()]
        assert [line["kind"] for line in kept] == ["refused"]
        assert kept[0]["reason"] == json.loads(answer)["error"]

    def test_other_files_in_an_answer(self, served, answers_of):
        post = next(iter(answers_of(served.run.id)))
        post["loaded"]["model.onnx"] = 64 * "0"
        assert served.client.request("POST", "/api/answer", json.dumps(post))[0] == 409
