"""`ssh://[user@]host[:port][/folder]`: a board, through the system's OpenSSH.

The user's configuration, known hosts, agent, jump hosts and hardware keys are used as they are. What is
given on the command line here only narrows: no questions, no unknown host keys, no forwarding.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

from saten_runtime.errors import DeviceError, UsageError
from saten_runtime.records.plain_text import last_line, printable

__all__ = ["Ssh", "parse_ssh"]

_URL = re.compile(
    r"ssh://"
    r"(?:(?P<user>[A-Za-z_][A-Za-z0-9_.-]{0,31})@)?"
    r"(?P<host>[A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:]{2,39}(?:%[A-Za-z0-9]{1,15})?\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<folder>(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,63}){1,16})?/?"
)
_MOST_PORT = 65535

_OPTIONS = {
    "BatchMode": "yes",  # never ask: passwords are not ours to handle
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "15",
    # A board that lost its power says nothing any more: 15 seconds without a sign end the connection.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "EscapeChar": "none",
    "ControlPath": "none",
    "Compression": "no",
    "LogLevel": "ERROR",
}

# What OpenSSH says → what to do. The first that is found counts.
_ADVICE = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "its host key is not the one in known_hosts; if the board was set up anew, `ssh-keygen -R HOST` and connect "
        "by hand, else somebody is in between"
    ),
    "Host key verification failed": (
        "its host key is not known here; connect once by hand with `ssh HOST` and compare the fingerprint"
    ),
    "Permission denied": "no key was accepted; set one up with `ssh-copy-id HOST` and load it into your ssh-agent",
    "Could not resolve hostname": "there is no such name; is the board in this network?",
    "Connection refused": "no ssh server listens there; enable it on the board (raspi-config, Interface Options, SSH)",
    "timed out": "no answer; is the board on, and in this network?",
    "No route to host": "no answer; is the board on, and in this network?",
    "hostname contains invalid characters": "no such name can be a host",
}
_NO_PYTHON = 127
_OPENSSH = 255


@dataclass(frozen=True)
class Ssh:
    """See `Device`. host: a name, an address, or an alias of the user's ssh configuration."""

    url: str
    user: str | None
    host: str
    port: int | None
    folder: str | None
    ready: bool = False

    @property
    def label(self) -> str:
        """The host, with the port where one was given."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", self.host.strip("[]"))
        return name if self.port is None else f"{name}-{self.port}"

    def command(self, bootstrap: str) -> list[str]:
        """`ssh`, with everything of ours before `--`."""
        if shutil.which("ssh") is None:
            raise DeviceError("ssh is not installed here; on Debian: apt install openssh-client")
        options = [part for key, value in _OPTIONS.items() for part in ("-o", f"{key}={value}")]
        user = [] if self.user is None else ["-l", self.user]
        port = [] if self.port is None else ["-p", str(self.port)]
        return ["ssh", "-T", *options, *user, *port, "--", self.host.strip("[]"), bootstrap]

    def explain(self, returncode: int | None, last_words: str) -> str:
        """What OpenSSH's message means."""
        if returncode == _NO_PYTHON:
            return "has no python3; install Python 3.10 or newer there"
        last = last_line(last_words, "no message")
        for words, advice in _ADVICE.items():
            if returncode == _OPENSSH and words in last_words:
                return f"cannot be reached ({last}): {advice}"
        return f"cannot be reached (exit code {returncode}: {last})"


def parse_ssh(url: str) -> Ssh:
    """The parts of an ssh URL.

    Raises:
        UsageError: another form, or characters that no host has; nothing is started then.
    """
    match = _URL.fullmatch(url)
    if match is None or int(match["port"] or 1) > _MOST_PORT:
        raise UsageError(f"--device {printable(url)[:80]}: expected ssh://[user@]host[:port][/folder]")
    port = None if match["port"] is None else int(match["port"])
    return Ssh(url, match["user"], match["host"], port, match["folder"])
