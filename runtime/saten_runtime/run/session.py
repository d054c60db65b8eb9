"""Making an ONNX Runtime session: one table of options, and every failure as one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import BundleError, RuntimeMismatch, SatenError, UsageError
from saten_runtime.records.plain_text import one_line
from saten_runtime.run.kernels import register
from saten_runtime.run.memory_modes import MEMORY_MODES, MemoryMode
from saten_runtime.run.products import exact_entries

__all__ = ["OPTIMIZED_FILE", "make_session", "ort_errors", "refuse_older", "session_entries", "session_options"]

OPTIMIZED_FILE = "optimized.onnx"
# What decides which of ONNX Runtime's kernels multiply by 2, 4 and 8 bits in blocks. These are its defaults, said so
# that a benchmark records them: lookup tables (LUT) take no less time than its other kernel of 2 bits.
_BLOCK_PRODUCTS = {"mlas.disable_kleidiai": "0", "mlas.qnbit.force_fp32": "0", "mlas.use_lut_gemm": "0"}


# What ONNX Runtime says when the file is sound but this build of it cannot run it.
_MISMATCH_WORDS = (
    "is not a registered function/op",
    "no op registered for",
    "unsupported model ir version",
    "max supported ir version",
    "official support for domain",
    "till opset",
    "could not find an implementation",
    "no opset import for domain",
)
# File, line and C++ signature, which come before some of its sentences.
_SOURCE_PLACE = re.compile(r"/onnxruntime_src/\S+ .*?\) (?=[A-Z])")
_MOST_CHARACTERS = 500


def make_session(
    bundle: Bundle,
    *,
    threads: int = 1,
    memory: str = "fast",
    optimized: bool = True,
    profile_folder: Path | None = None,
) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, threads not spinning between runs, with the native kernels
    where they are installed.

    optimized: whether ONNX Runtime may rewrite the graph; off only to check that it computes the same. Standard
    operators do it then, for a kernel wants constants, and what is computed from constants is none unless it is
    rewritten. profile_folder: where it leaves a profile, and the rewritten graph as `OPTIMIZED_FILE`.

    Raises:
        UsageError: no such memory mode, or fewer than one thread.
        RuntimeMismatch: this ONNX Runtime is too old for the graph, or lacks an operator.
        BundleError: the graph is damaged.
    """
    if memory not in MEMORY_MODES:
        raise UsageError(f"memory mode {memory!r}: there are {', '.join(MEMORY_MODES)}")
    if threads < 1:
        raise UsageError(f"threads {threads}: must be at least 1")
    import onnxruntime

    refuse_older(str(bundle.path), bundle.manifest.smallest_onnxruntime, onnxruntime.__version__)
    options = session_options(threads, MEMORY_MODES[memory])
    if optimized:
        register(options)
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile_folder is not None:
        _profile_into(profile_folder, options)
    with ort_errors(f"{bundle.model}", BundleError):
        return onnxruntime.InferenceSession(str(bundle.model), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def ort_errors(where: str, otherwise: type[SatenError]) -> Iterator[None]:
    """Turn what ONNX Runtime raises into one line beginning with `where`.

    Raises:
        RuntimeMismatch: an opset, IR version or operator that this build does not know.
        SatenError: of the kind `otherwise`, for all the rest.
    """
    try:
        yield
    except SatenError:
        raise
    except Exception as cause:  # the exception types of ONNX Runtime share no base of their own
        line = _SOURCE_PLACE.sub("", one_line(cause))[:_MOST_CHARACTERS]
        if any(words in line.lower() for words in _MISMATCH_WORDS):
            raise RuntimeMismatch(
                f"{where}: {line}; install a newer onnxruntime, or export again for this one"
            ) from None
        raise otherwise(f"{where}: {line}") from None


def session_entries(mode: MemoryMode) -> dict[str, str]:
    """The entries of every session's configuration, by their names in ONNX Runtime."""
    return {
        "session.disable_prepacking": "0" if mode.prepacking else "1",
        "session.intra_op.allow_spinning": "0",
        **_BLOCK_PRODUCTS,
        **exact_entries(),
    }


def session_options(threads: int, mode: MemoryMode) -> Any:
    """`onnxruntime.SessionOptions` as every session of ours has them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = mode.arena
    # One block for all buffers of an input shape, besides those of its first run: it pays where a shape comes again,
    # costs where it does not, as in generation, and takes as much memory once more.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # failures arrive as exceptions; printing them too would say them twice
    for entry in session_entries(mode).items():
        options.add_session_config_entry(*entry)
    return options


def _profile_into(folder: Path, options: Any) -> None:
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / OPTIMIZED_FILE)
    weights = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{weights}_file_name", f"{OPTIMIZED_FILE}.data")
    options.add_session_config_entry(f"{weights}_min_size_in_bytes", "1024")


def refuse_older(what: str, smallest: str, installed: str) -> None:
    """Refuse an ONNX Runtime that is older than what is to run needs; both are "major.minor" and perhaps more.

    Raises:
        RuntimeMismatch: it is.
        BundleError: one of them is no version.
    """
    if _major_minor(installed) < _major_minor(smallest):
        raise RuntimeMismatch(
            f"{what}: needs onnxruntime {smallest} or newer, found {installed}; pip install 'onnxruntime>={smallest}'"
        )


def _major_minor(version: str) -> tuple[int, int]:
    try:
        major, minor = version.split(".")[:2]
        return int(major), int(minor)
    except ValueError:
        raise BundleError(f"onnxruntime version {version!r}: expected major.minor") from None
