"""The whole ssh path against a real sshd in the arm64 user land, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from saten_edge.console import Talk
from saten_edge.devices import deploy, jobs
from saten_edge.devices.board import Board
from saten_edge.devices.jobs import bench_job, eval_job, examine, run_job, run_jobs
from saten_edge.devices.kernels import Shipment
from saten_edge.devices.transports import parse_devices
from saten_runtime.bench.plan import Plan
from saten_runtime.errors import DeviceError, SatenError, UsageError

QUICK = Plan(tokens=(8,), min_time_s=0.0, rounds=2, floor=False)
LINES = ["environment", "memory", *["start", "samples", "state"] * 2]  # of its journal
SMALL = "/small"  # a file system of 8 MB inside the user land


@dataclass
class Sshd:
    """A server inside the user land. port: where it listens; keys: a folder with the user's and the server's."""

    port: int
    keys: Path
    process: subprocess.Popen[bytes]


@dataclass
class Proxy:
    """A cable that can be cut: passes TCP on to `target` until `limit` bytes went up or down."""

    target: int
    limit: dict[str, float] = field(default_factory=lambda: {"up": float("inf"), "down": float("inf")})
    passed: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    connections: int = 0

    def __post_init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._pass, args=[client], daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with (
            client,
            socket.create_connection(("127.0.0.1", self.target)) as board,
            selectors.DefaultSelector() as waiting,
        ):
            waiting.register(client, selectors.EVENT_READ, (board, "up"))
            waiting.register(board, selectors.EVENT_READ, (client, "down"))
            while True:
                for key, _ in waiting.select():
                    other, way = key.data
                    piece = key.fileobj.recv(1 << 16)
                    self.passed[way] += len(piece)
                    if not piece or self.passed[way] > self.limit[way]:
                        self.limit[way] = float("inf")  # once
                        return
                    other.sendall(piece)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="session")
def sshd(userland: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A home without anything of ours in it, and a folder that is too small."""
    keys = tmp_path_factory.mktemp("keys")
    for name in ("user", "stranger", "server", "impostor"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)], check=True)
    port = free_port()
    options = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": keys / "server",
        "AuthorizedKeysFile": keys / "user.pub",
        "PidFile": "none",
        "UsePAM": "no",
        "StrictModes": "no",
        "PasswordAuthentication": "no",
        "SetEnv": "QEMU_CPU=cortex-a76",
    }
    (keys / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    script = (
        f"mount -t tmpfs -o size=2g,mode=700 tmpfs /root && mkdir -p {SMALL} /run/sshd && "
        f"mount -t tmpfs -o size=8m,mode=700 tmpfs {SMALL} && exec /usr/sbin/sshd -D -e -f {keys}/sshd_config"
    )
    with (keys / "log").open("wb") as log:
        process = subprocess.Popen(
            userland.command("sh", "-c", script),
            env={**os.environ, "BIND": str(keys)},
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    deadline = time.monotonic() + 30
    while b"listening" not in (keys / "log").read_bytes():
        assert time.monotonic() < deadline, (keys / "log").read_text()
        time.sleep(0.1)
    yield Sshd(port, keys, process)
    process.terminate()
    process.wait(timeout=10)


@pytest.fixture
def ssh_setup(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """ssh_setup(port, server=…, user=…): what ~/.ssh would say, for an `ssh` that is first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {tmp_path}/config "$@"\n')
    (folder / "ssh").chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(port: int, *, server: str | None = "server", user: str = "user") -> None:
        words = (sshd.keys / f"{server}.pub").read_text().split()[:2] if server else []
        (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(words)}\n" if server else "")
        lines = ["IdentitiesOnly yes", f"IdentityFile {sshd.keys}/{user}", f"UserKnownHostsFile {tmp_path}/known_hosts"]
        (tmp_path / "config").write_text("\n".join([*lines, "GlobalKnownHostsFile /dev/null", ""]))

    write(sshd.port)
    return write


@pytest.fixture
def url(sshd: Sshd, ssh_setup: Callable[..., None]) -> str:
    return f"ssh://root@127.0.0.1:{sshd.port}"


def measure(url: str, job: Any, folder: Path | None = None, talk: Talk | None = None) -> dict[str, Any]:
    (device,) = parse_devices([url])
    return run_job(device, job, folder=folder, talk=talk or Talk(quiet=True))


def kinds(folder: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in (folder / "samples.jsonl").read_text().splitlines()]


def wait_until_free(url: str) -> None:
    """A run whose workstation is gone goes on for a while; nobody else may use the board meanwhile."""
    (device,) = parse_devices([url])
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(DeviceError), Board(device, "waiting"):
            return
        time.sleep(1)
    pytest.fail("the board is still busy")


@pytest.mark.parametrize("name", ["saten_bundle", "minilm_bundle"])
def test_accuracy_is_that_of_this_machine(name, url, questions, same_accuracy, tmp_path, request):
    bundle = request.getfixturevalue(name)
    result = measure(url, eval_job([bundle], questions, reference=None, threads=1), tmp_path / "out")
    metrics = result["rows"][0]["metrics"]
    agrees = same_accuracy(bundle, questions)
    assert agrees(metrics)
    assert not agrees({**metrics, "recall_at_10": metrics["recall_at_10"] - 0.1})
    assert json.loads((tmp_path / "out" / "eval.json").read_text()) == result


def test_a_benchmark_comes_home_marked_as_emulated(url, saten_bundle, tmp_path):
    result = measure(url, bench_job([saten_bundle], QUICK, None), tmp_path / "out")
    assert result["verdict"]["valid"] is False
    assert any("emulated: by qemu-aarch64" in reason for reason in result["verdict"]["reasons"])
    assert result["environment"]["machine"] == "aarch64"
    assert result["environment"]["cpu"] == "Cortex-A76"
    assert result["device"] == {"label": parse_devices([url])[0].label, "url": url}
    assert [cell["count"] >= 10 for cell in result["cells"]] == [True]
    assert kinds(tmp_path / "out") == LINES


def test_the_kernels_are_sent_and_used(url, saten_bundle, kernels_wheel, tmp_path):
    """And left out when that is asked for, on the same board."""
    (device,) = parse_devices([url])
    for shipment, state, isa in (
        (Shipment(kernels_wheel.parent), "active", "neondot"),
        (Shipment(kernels=False), "not installed", None),
    ):
        checks = {check["name"]: check["found"] for check in examine(device, saten_bundle, Talk(quiet=True), shipment)}
        assert (isa or state) in checks["kernels"]
        result = measure(url, bench_job([saten_bundle], QUICK, None, shipment))
        assert (result["environment"]["kernels"]["state"], result["environment"]["kernels"]["isa"]) == (state, isa)


def test_what_is_there_is_not_sent_again(sshd, ssh_setup, saten_bundle):
    proxy = Proxy(sshd.port)
    ssh_setup(proxy.port)
    job = bench_job([saten_bundle], QUICK, None)
    measure(f"ssh://root@127.0.0.1:{proxy.port}", job)
    proxy.passed["up"] = 0
    measure(f"ssh://root@127.0.0.1:{proxy.port}", job)
    assert proxy.passed["up"] < 200_000


class TestACutConnection:
    def test_in_the_middle_of_a_benchmark(self, sshd, ssh_setup, saten_bundle, tmp_path, monkeypatch, talk):
        proxy = Proxy(sshd.port)
        ssh_setup(proxy.port)
        add, cuts = jobs._Journal.add, [0]

        def cut_after_the_second_line(journal: Any, piece: bytes) -> None:
            add(journal, piece)
            if journal.steps >= 2 and cuts:
                proxy.limit["down"] = cuts.pop()

        monkeypatch.setattr(jobs._Journal, "add", cut_after_the_second_line)
        result = measure(
            f"ssh://root@127.0.0.1:{proxy.port}", bench_job([saten_bundle], QUICK, None), tmp_path / "out", talk
        )
        assert any(line.endswith("connecting again") for line in talk.said)
        assert proxy.connections == 2
        assert kinds(tmp_path / "out") == LINES  # no second start
        assert [cell["failed"] for cell in result["cells"]] == [None]

    def test_in_the_middle_of_an_upload(self, sshd, ssh_setup, minilm_bundle, questions, tmp_path, talk):
        with Board(parse_devices([f"ssh://root@127.0.0.1:{sshd.port}"])[0], "cleaner") as board:
            board.free([])
        proxy = Proxy(sshd.port)
        ssh_setup(proxy.port)
        size = sum(path.stat().st_size for path in minilm_bundle.rglob("*") if path.is_file())
        proxy.limit["up"] = proxy.passed["up"] + 0.8 * size
        job = bench_job([minilm_bundle], Plan(tokens=(2,), min_time_s=0.0, rounds=1, floor=False), None)
        measure(f"ssh://root@127.0.0.1:{proxy.port}", job, talk=talk)
        assert any(line.endswith("connecting again") for line in talk.said)
        assert proxy.passed["up"] < 2 * size

    def test_twice_is_an_error_that_says_what_was_kept(self, sshd, ssh_setup, saten_bundle, tmp_path, monkeypatch):
        proxy = Proxy(sshd.port)
        ssh_setup(proxy.port)
        add = jobs._Journal.add

        def cut_always(journal: Any, piece: bytes) -> None:
            add(journal, piece)
            if journal.steps:
                proxy.limit["down"] = 0

        monkeypatch.setattr(jobs._Journal, "add", cut_always)
        with pytest.raises(DeviceError, match=r"for the second time; what was measured so far is in .*samples\.jsonl"):
            measure(f"ssh://root@127.0.0.1:{proxy.port}", bench_job([saten_bundle], QUICK, None), tmp_path / "out")
        assert kinds(tmp_path / "out")[0] == "environment"
        ssh_setup(sshd.port)
        wait_until_free(f"ssh://root@127.0.0.1:{sshd.port}")


class TestABoardInUse:
    def test_a_second_run_is_refused(self, url, saten_bundle):
        (device,) = parse_devices([url])
        with Board(device, "first"), pytest.raises(DeviceError, match=r"busy: \w+@.* has used it since 20"):
            measure(url, bench_job([saten_bundle], QUICK, None))

    def test_the_next_one_is_let_in(self, url):
        (device,) = parse_devices([url])
        for token in ("first", "second"):
            with Board(device, token) as board:
                assert board.free_bytes > 0


class TestAFullDisk:
    def test_is_seen_before_anything_is_sent(self, url, saten_bundle):
        with pytest.raises(DeviceError, match=r"8 MB free, \d+ MB needed; make room"):
            measure(url + SMALL, bench_job([saten_bundle], QUICK, None))

    def test_is_one_line_when_it_fills_up_on_the_way(self, url, saten_bundle, monkeypatch):
        monkeypatch.setattr(deploy, "_make_room", lambda *_: None)
        with pytest.raises(DeviceError, match=r"No space left on device, 0 MiB free"):
            measure(url + SMALL, bench_job([saten_bundle], QUICK, None))


class TestWhoIsThere:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"server": None}, "its host key is not known here; connect once by hand"),
            ({"server": "impostor"}, "its host key is not the one in known_hosts"),
            ({"user": "stranger"}, "no key was accepted; set one up with `ssh-copy-id HOST`"),
        ],
    )
    def test_a_wrong_key_on_either_side(self, options, words, sshd, ssh_setup, saten_bundle):
        ssh_setup(sshd.port, **options)
        with pytest.raises(DeviceError) as caught:
            measure(f"ssh://root@127.0.0.1:{sshd.port}", bench_job([saten_bundle], QUICK, None))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_nobody_listens(self, ssh_setup, saten_bundle):
        with pytest.raises(DeviceError, match="no ssh server listens there"):
            measure(f"ssh://root@127.0.0.1:{free_port()}", bench_job([saten_bundle], QUICK, None))

    @pytest.mark.parametrize(
        "host", ["-oProxyCommand=touch pwned", "-oProxyCommand=touch${IFS}pwned", "a;touch pwned", "$(touch pwned)"]
    )
    def test_a_hostile_name_runs_nothing(self, host, ssh_setup, saten_bundle, tmp_path):
        command = [sys.executable, "-m", "saten_edge", "bench", str(saten_bundle), "--device", f"ssh://{host}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 2
        assert "expected ssh://[user@]host[:port][/folder]" in done.stderr
        assert not (tmp_path / "pwned").exists()


def test_ctrl_c_stops_the_board_and_keeps_what_was_measured(url, saten_bundle, tmp_path):
    command = [sys.executable, "-m", "saten_edge", "bench", str(saten_bundle), "-s", "8", "--rounds", "50"]
    command += ["--min-time", "0", "--device", url, "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    (folder,) = (tmp_path / "out" / device.label for device in parse_devices([url]))
    deadline = time.monotonic() + 300
    while not (folder / "samples.jsonl").is_file() or len(kinds(folder)) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    result = json.loads((folder / "bench.json").read_text())
    assert "interrupted" in result["verdict"]["reasons"]
    (device,) = parse_devices([url])
    with Board(device, "next"):  # nothing runs there any more, or it would be busy
        pass


def test_two_devices_are_put_side_by_side(url, saten_bundle, tmp_path):
    devices = parse_devices([f"{url},local"])
    results, _ = run_jobs(
        devices, bench_job([saten_bundle], QUICK, None), output=tmp_path / "out", overwrite=False, talk=Talk(quiet=True)
    )
    machines = {label: value["environment"]["machine"] for label, value in results.items()}
    assert machines[devices[0].label] == "aarch64"
    assert machines["local"] == os.uname().machine
    with pytest.raises(UsageError, match="already exists"):
        run_jobs(devices, bench_job([saten_bundle], QUICK, None), output=tmp_path / "out", overwrite=False, talk=Talk())
    with pytest.raises(SatenError, match="expected ssh://"):
        parse_devices(["telnet://x"])
