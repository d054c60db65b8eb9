"""Where the command listens, what it shows, and how it ends."""

from __future__ import annotations

import io
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from saten_edge.console import Talk
from saten_edge.phone import Address, Run, make_job, serve, server
from saten_runtime.bench.plan import Plan
from saten_runtime.errors import DeviceError, UsageError


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) for localhost, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl here")
    return certificate, key


class TestAddress:
    @pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "*", "::1", "fe80::1"])
    def test_every_address_at_once_is_refused(self, host):
        with pytest.raises(UsageError, match="expected one IPv4 address or name"):
            Address(host)

    def test_the_link(self):
        assert Address("192.168.1.5", 8000).url("abc") == "http://192.168.1.5:8000/#abc"

    def test_the_names_it_answers_to(self):
        assert Address("192.168.1.5").hosts() == ["192.168.1.5"]
        assert set(Address("127.0.0.1").hosts()) == {"127.0.0.1", "localhost"}

    def test_it_listens_there_and_nowhere_else(self):
        with Address("127.0.0.1").listen() as listening:
            assert listening.getsockname()[0] == "127.0.0.1"

    def test_a_port_that_is_taken(self):
        with Address("127.0.0.1").listen() as listening:
            port = listening.getsockname()[1]
            with pytest.raises(DeviceError, match=f"127.0.0.1:{port}: cannot listen"):
                Address("127.0.0.1", port).listen()

    def test_an_address_of_another_machine(self):
        with pytest.raises(DeviceError, match="cannot listen"):
            Address("198.51.100.7").listen()

    def test_certificate_and_key_belong_together(self, certificate, tmp_path):
        path, key = certificate
        assert Address("127.0.0.1", 1, path, key).url("t").startswith("https://")
        (tmp_path / "other.pem").write_text("no key")
        for pair in [
            (path, None),
            (None, key),
            (path, tmp_path / "nowhere"),
            (path, tmp_path / "other.pem"),
            (key, path),
        ]:
            with pytest.raises(UsageError):
                Address("127.0.0.1", 1, *pair)

    def test_the_local_address_is_one_to_bind(self):
        with Address(server.lan_address()).listen() as listening:
            assert listening.getsockname()[1] > 0


class TestLink:
    def test_a_terminal_gets_the_code_too(self, monkeypatch):
        shown = io.StringIO()
        shown.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", shown)
        server.show_link("http://192.168.1.5:8000/#abc")
        *code, last = shown.getvalue().splitlines()
        assert last == "open on the phone: http://192.168.1.5:8000/#abc"
        assert len(code) > 10

    def test_off_a_terminal_there_is_one_line(self, capsys):
        server.show_link("http://192.168.1.5:8000/#abc")
        assert capsys.readouterr().err == "open on the phone: http://192.168.1.5:8000/#abc\n"


def test_threads_need_a_page_that_can_be_isolated(dense, tmp_path):
    job = make_job([dense], Plan(threads=(1, 2), tokens=(8,)))
    with pytest.raises(UsageError, match="--threads 2: browsers give one thread over plain http"):
        serve(job, partial(Run, job), tmp_path, Address("192.168.1.5"), opened=print, done=print, talk=Talk(quiet=True))


def test_over_https_the_same_page(job, certificate, tmp_path):
    links: list[str] = []
    opened = threading.Event()

    def note(link: str) -> None:
        links.append(link)
        opened.set()

    address = Address("localhost", 0, *certificate)
    options = {"opened": note, "done": lambda run: None, "once": True, "talk": Talk(quiet=True)}
    thread = threading.Thread(target=serve, args=(job, partial(Run, job), tmp_path / "out", address), kwargs=options)
    thread.start()
    assert opened.wait(10)
    link = urlsplit(links[0])
    context = ssl.create_default_context(cafile=certificate[0])

    def ask(method: str, path: str, body: str = "") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Saten-Token: {link.fragment}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with (
            socket.create_connection((str(link.hostname), int(link.port or 0)), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as stream,
        ):
            stream.sendall((head + body).encode())
            return b"".join(iter(lambda: stream.recv(65536), b""))

    given = ask("GET", "/api/job")
    assert given.startswith(b"HTTP/1.1 200 ")
    run = json.loads(given.partition(b"\r\n\r\n")[2])["run"]
    assert ask("POST", "/api/end", json.dumps({"run": run})).startswith(b"HTTP/1.1 200 ")
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def command(dense, saten, tmp_path) -> Iterator[subprocess.Popen[str]]:
    """`saten-edge phone` on 127.0.0.1, writing to `tmp_path`/out."""
    options = ["-o", tmp_path / "out", "--host", "127.0.0.1", "--tokens", "8,16", "--rounds", "2", "--min-time", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "saten_edge", "phone", dense, saten, "--baseline", dense, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def read_link(process: subprocess.Popen[str]) -> str:
    for line in process.stderr:
        if line.startswith("open on the phone: "):
            return line.rpartition(" ")[2].strip()
    raise AssertionError("no link was shown")


class TestCommand:
    def test_ctrl_c_ends_it_in_two_seconds_and_keeps_what_came(self, command, bench_of, client_of, tmp_path):
        client = client_of(read_link(command))
        # A connection that only hangs there must not hold the end up.
        with socket.create_connection((client.host, client.port)) as idle:
            idle.sendall(b"GET / HT")
            client.post("/api/bench", bench_of(client.get("/api/job")["run"]))
            start = time.monotonic()
            command.send_signal(signal.SIGINT)
            printed, shown = command.communicate(timeout=10)
        assert time.monotonic() - start < 2
        assert (command.returncode, "Traceback" in shown) == (0, False)
        assert "saten-int8" in printed
        assert json.loads((tmp_path / "out" / "run-1" / "bench.json").read_text())["cells"]

    def test_ctrl_c_without_a_phone_leaves_nothing(self, command, tmp_path):
        read_link(command)
        command.send_signal(signal.SIGINT)
        printed, _ = command.communicate(timeout=10)
        assert (command.returncode, printed) == (0, "")
        assert not (tmp_path / "out").exists()

    def test_every_run_has_a_link_and_a_folder_of_its_own(self, command, bench_of, client_of, tmp_path):
        links = []
        for _ in range(2):
            links.append(read_link(command))
            client = client_of(links[-1])
            run = client.get("/api/job")["run"]
            client.post("/api/bench", bench_of(run))
            client.post("/api/end", {"run": run})
        assert client_of(links[0]).request("GET", "/api/job")[0] == 403
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=10)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run-1", "run-2"]
