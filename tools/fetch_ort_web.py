"""Fetch the files of onnxruntime-web that the page runs on, as `saten_edge.phone.ort` lists them.

    python tools/fetch_ort_web.py

Uses `npm pack`, so that npm's own settings (registry, proxy) hold; every file is compared with its
sha256 before it is kept. Does nothing when the files are there.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from saten_edge.phone import ort
from saten_runtime.errors import RuntimeMismatch, SatenError
from saten_runtime.records.files import replace_file


def main() -> int:
    """Exit code 0 when every file is in place."""
    try:
        try:
            ort.read_files()
        except RuntimeMismatch:
            fetch()
    except SatenError as error:
        print(f"fetch_ort_web: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def fetch() -> None:
    """Put the files into `ort.FOLDER`.

    Raises:
        SatenError: npm is missing or failed, or the package holds other files.
    """
    package = f"onnxruntime-web@{ort.VERSION}"
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", package, "--silent", "--pack-destination", folder]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise SatenError("npm: not found; install npm, it fetches onnxruntime-web from its registry") from None
        except subprocess.CalledProcessError as cause:
            raise SatenError(f"npm pack {package}: {cause.stderr.strip()[-300:] or cause}") from None
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as members:
            contents = {name: _read(members, name) for name in ort.FILES}
    ort.FOLDER.mkdir(exist_ok=True)
    for name, content in contents.items():
        replace_file(ort.FOLDER / name, content)


def _read(members: tarfile.TarFile, name: str) -> bytes:
    stream = members.extractfile(f"package/dist/{name}")
    content = stream.read() if stream else b""
    if hashlib.sha256(content).hexdigest() != ort.FILES[name]:
        raise SatenError(f"{name}: its sha256 is not the one of onnxruntime-web {ort.VERSION}; nothing was kept")
    return content


if __name__ == "__main__":
    sys.exit(main())
