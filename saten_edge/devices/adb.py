"""`adb:SERIAL`: an Android phone, or a board that runs adbd, through the `adb` program.

The agent needs a Python of the glibc kind there, which Android does not have: see `android` for what to
do with a phone that has none.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

from saten_runtime.errors import DeviceError, UsageError
from saten_runtime.records.plain_text import last_line, printable

__all__ = ["Adb", "parse_adb"]

_SERIAL = re.compile(r"adb:(?P<serial>[A-Za-z0-9][A-Za-z0-9._:-]{0,63})")
_FOLDER = "/data/local/tmp/saten-edge"
_NO_PYTHON = 127

# What adb says → what to do. The first that is found counts.
_ADVICE = {
    "unauthorized": "allow USB debugging in the dialog on the phone's screen",
    "offline": "replug it, or `adb reconnect`",
    "not found": "it is not among `adb devices`; plug it in, switch on USB debugging",
    "no devices": "it is not among `adb devices`; plug it in, switch on USB debugging",
    "more than one": "name one of `adb devices`",
}


@dataclass(frozen=True)
class Adb:
    """See `Device`. serial: as `adb devices` lists it, or host:port of a phone in the network."""

    url: str
    serial: str
    folder: str | None = None
    ready: bool = False

    @property
    def label(self) -> str:
        """`adb-SERIAL`."""
        return "adb-" + self.serial.replace(":", "-")

    def command(self, bootstrap: str) -> list[str]:
        """`adb shell` without a terminal, so that bytes pass unchanged."""
        if shutil.which("adb") is None:
            raise DeviceError("adb is not installed here; on Debian: apt install adb")
        # Android's shell user has no home.
        line = f'export HOME=${{HOME:-{_FOLDER}}}; [ -w "$HOME" ] || HOME={_FOLDER}; {bootstrap}'
        return ["adb", "-s", self.serial, "shell", "-T", "-x", line]

    def explain(self, returncode: int | None, last_words: str) -> str:
        """What adb's message means."""
        last = last_line(last_words, "no message")
        for words, advice in _ADVICE.items():
            if words in last_words and "python3" not in last_words:
                return f"cannot be reached ({last}): {advice}"
        if returncode == _NO_PYTHON or "python3" in last_words:
            return (
                "has no python3, as Android comes; run `saten-edge devices android BUNDLE -o DIR` for a way without, "
                "or see docs/devices.md for one with Termux"
            )
        return f"cannot be reached (exit code {returncode}: {last})"


def parse_adb(url: str) -> Adb:
    """The serial number of an adb URL.

    Raises:
        UsageError: another form, or characters that no serial number has.
    """
    match = _SERIAL.fullmatch(url)
    if match is None:
        raise UsageError(f"--device {printable(url)[:80]}: expected adb:SERIAL, one of `adb devices`")
    return Adb(url, match["serial"])
