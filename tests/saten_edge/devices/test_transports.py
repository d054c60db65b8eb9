"""URLs become argument lists; what could mean something to ssh, adb or a shell is refused before anything runs."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saten_edge.devices.channel import BOOTSTRAP
from saten_edge.devices.transports import TRANSPORTS, parse_devices
from saten_runtime.errors import DeviceError, UsageError

GOOD = {
    "ssh://raspberrypi": "raspberrypi",
    "ssh://pi@raspberrypi.local": "raspberrypi.local",
    "ssh://pi@192.168.1.7:2222": "192.168.1.7-2222",
    "ssh://pi@[fe80::1%eth0]:22": "fe80--1-eth0-22",
    "ssh://my_board-5/mnt/usb/saten": "my_board-5",
    "adb:R58M123ABC": "adb-R58M123ABC",
    "adb:192.168.1.9:5555": "adb-192.168.1.9-5555",
    "local": "local",
}
HOSTILE = [
    "ssh://-oProxyCommand=touch pwned",
    "ssh://-oProxyCommand=x@host",
    "ssh://pi@-oProxyCommand=x",
    "ssh://-l@host",
    "ssh://host;touch pwned",
    "ssh://host`id`",
    "ssh://$(id)",
    "ssh://host\ntouch",
    "ssh://host:0",
    "ssh://host:65536",
    "ssh://host:22x",
    "ssh://pi:secret@host",
    "ssh://host/a b",
    "ssh://host/../etc",
    "ssh://host/-rf",
    "ssh://",
    "ssh:host",
    "adb:-s",
    "adb:",
    "adb:a b",
    "adb:$(id)",
    "local/x",
    "localhost",
    "telnet://x",
    "\x1b[31m",
    "",
]


@pytest.mark.parametrize(("url", "label"), GOOD.items())
def test_good_urls(url: str, label: str):
    (device,) = parse_devices([url])
    assert (device.url, device.label) == (url, label)


def test_every_transport_has_a_good_url():
    assert {url.partition(":")[0] for url in GOOD} == set(TRANSPORTS)


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_urls_are_one_line(url: str):
    with pytest.raises(UsageError, match=r"^--device .*(expected|nothing may follow)") as caught:
        parse_devices([url])
    assert str(caught.value).isprintable()


@given(st.text(max_size=40))
def test_no_text_becomes_an_option_or_reaches_a_shell(text: str):
    try:
        devices = parse_devices([f"ssh://{text}"])
    except UsageError:
        return
    for device in devices:
        command = device.command("bootstrap")
        assert command[-3] == "--"
        assert not command[-2].startswith("-")
        assert not set(command[-2]) & set(" \t\n;&|<>$`\"'\\()*?!#~")
        assert "-l" not in command or not command[command.index("-l") + 1].startswith("-")


def test_a_list_and_several_options():
    devices = parse_devices(["ssh://a,ssh://b", "local"])
    assert [device.label for device in devices] == ["a", "b", "local"]


@pytest.mark.parametrize("urls", [["ssh://a,ssh://a"], ["ssh://a", "ssh://pi@a/other"], ["local,local"]])
def test_one_device_twice(urls: list[str]):
    with pytest.raises(UsageError, match="is named twice"):
        parse_devices(urls)


class TestSsh:
    def test_it_never_asks_and_never_trusts_an_unknown_host(self):
        (device,) = parse_devices(["ssh://pi@host:2222"])
        command = device.command(BOOTSTRAP)
        settings = {command[place + 1] for place, word in enumerate(command) if word == "-o"}
        assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "ForwardAgent=no", "ConnectTimeout=15"} <= settings
        assert command[command.index("-l") + 1 : command.index("--")] == ["pi", "-p", "2222"]
        assert command[-2:] == ["host", BOOTSTRAP]

    def test_openssh_takes_every_option(self):
        """`ssh -G` prints the settings and connects nowhere."""
        (device,) = parse_devices(["ssh://pi@host:2222"])
        command = device.command("true")
        done = subprocess.run([command[0], "-F", "none", "-G", *command[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shown = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
        assert (shown["user"], shown["hostname"], shown["port"]) == ("pi", "host", "2222")
        assert (shown["batchmode"], shown["stricthostkeychecking"]) == ("yes", "true")
        assert shown["serveraliveinterval"] == "5"

    @pytest.mark.parametrize(
        ("code", "words", "advice"),
        [
            (255, "Host key verification failed.", "is not known here"),
            (
                255,
                "@@@\nWARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.",
                "is not the one",
            ),
            (255, "pi@host: Permission denied (publickey).", "ssh-copy-id"),
            (255, "ssh: Could not resolve hostname nowhere", "no such name"),
            (255, "connect to host h port 22: Connection refused", "no ssh server"),
            (255, "connect to host h port 22: Connection timed out", "is the board on"),
            (127, "sh: 1: exec: python3: not found", "install Python 3.10"),
            (1, "SyntaxError: future feature annotations is not defined", "exit code 1: SyntaxError"),
            (255, "", "exit code 255: no message"),
        ],
    )
    def test_what_went_wrong_is_explained(self, code: int, words: str, advice: str):
        (device,) = parse_devices(["ssh://pi@host"])
        assert advice in device.explain(code, words)

    def test_without_ssh(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(shutil, "which", lambda name: None)
        (device,) = parse_devices(["ssh://host"])
        with pytest.raises(DeviceError, match="apt install openssh-client"):
            device.command("")
