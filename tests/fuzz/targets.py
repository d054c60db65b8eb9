"""Coverage-guided fuzzing of what reads bytes from elsewhere; only our own errors may come out.

    python tests/fuzz/targets.py NAME [options of libFuzzer] [folder of seeds]

`make fuzz` runs all of `TARGETS`. Needs atheris (pip install atheris), which has wheels for Linux and macOS.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["saten_edge", "saten_runtime", "saten_exporters"]):
    from saten_edge.checkpoints.checkpoint import verify_folder
    from saten_edge.checkpoints.gguf_header import read_gguf_header
    from saten_edge.checkpoints.guard import read_headers
    from saten_edge.phone.schema import Answer, Bench, End, parse_post
    from saten_runtime.accuracy.results import read_evaluation
    from saten_runtime.bench.journal import read_journal
    from saten_runtime.bench.profiling import read_profile
    from saten_runtime.bench.results import read_bench
    from saten_runtime.bundle.graph import read_graph
    from saten_runtime.bundle.manifest import read_manifest
    from saten_runtime.errors import DataError, SatenError
    from saten_runtime.records.files import parse_object

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
CONFIG = b'{"model_type": "bert", "num_hidden_layers": 1}'


def checkpoint(content: bytes) -> None:
    """The first byte chooses: a weight file, its config, or an index."""
    config = content[1:] if content[:1] == b"c" else CONFIG
    (FOLDER / "config.json").write_bytes(config)
    (FOLDER / "model.safetensors").write_bytes(content[1:] if content[:1] != b"c" else b"\2" + bytes(7) + b"{}")
    index = FOLDER / "model.safetensors.index.json"
    index.unlink(missing_ok=True)
    if content[:1] == b"i":
        index.write_bytes(content[1:])
    verify_folder(FOLDER, read_headers(FOLDER))


def gguf(content: bytes) -> None:
    """A GGUF file; what it says of its tensors must be in it."""
    (FOLDER / "model.gguf").write_bytes(content)
    found = read_gguf_header(FOLDER / "model.gguf")
    assert all(tensor.offset + tensor.size_bytes <= len(content) for tensor in found.tensors.values())


def bundle(content: bytes) -> None:
    """The first byte chooses: a graph or a manifest."""
    if content[:1] == b"m":
        (FOLDER / "saten_edge.json").write_bytes(content[1:])
        read_manifest(FOLDER)
    else:
        (FOLDER / "model.onnx").write_bytes(content[1:])
        read_graph(FOLDER / "model.onnx", {"model.onnx.data"})


def result(content: bytes) -> None:
    """The first byte chooses: a journal, or one of the results."""
    readers = {b"b": read_bench, b"e": read_evaluation, b"p": read_profile}
    if content[:1] in readers:
        readers[content[:1]](parse_object(content[1:], "result", DataError, "measure again"))
    else:
        (FOLDER / "samples.jsonl").write_bytes(content[1:])
        read_journal(FOLDER / "samples.jsonl")


def http_body(content: bytes) -> None:
    """The first byte chooses what is posted."""
    parse_post({b"a": Answer, b"e": End}.get(content[:1], Bench), content[1:])


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (checkpoint, gguf, bundle, result, http_body)
}


def main() -> None:
    """Fuzz one target until libFuzzer ends it."""
    target = TARGETS[sys.argv[1]]

    def once(content: bytes) -> None:
        with contextlib.suppress(SatenError):
            target(content)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
