"""How an export lies on disk: the bundle itself, or the folder that another program expects, made from bundles."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx_ir as ir

from saten_exporters.bundles.export import ALIGNED_FROM_BYTES, ALIGNMENT_BYTES
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import BundleError, ExportError, UsageError
from saten_runtime.records.files import read_json, write_json
from saten_runtime.records.folders import check_output, new_folder
from saten_runtime.vocabulary.files import (
    CARD_FILE,
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    PREPROCESSOR_CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
)
from saten_runtime.vocabulary.tasks import TASKS

__all__ = ["LAYOUTS", "laid_out", "write_layout"]

# precision → (dtype of transformers.js, what it appends to the file's name)
JS_DTYPES = {"fp32": ("fp32", ""), "fp16": ("fp16", "_fp16"), "int8": ("q8", "_quantized"), "int4": ("q4", "_q4")}
# Of a bundle's files those that transformers.js reads under the same name, where they are there.
JS_FILES = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    "chat_template.jinja",
    GENERATION_CONFIG_FILE,
    PREPROCESSOR_CONFIG_FILE,
)


def write_layout(layout: str, bundles: Sequence[Bundle], out: Path, *, overwrite: bool = False) -> None:
    """Write bundles of one model, each in another precision, to `out` in a layout other than their own.

    Raises:
        UsageError: `out` exists, there is no such layout, or the bundles do not belong together.
        ExportError: the layout has no name for a precision.
    """
    write = LAYOUTS.get(layout)
    if write is None:
        others = ", ".join(name for name, writer in LAYOUTS.items() if writer)
        raise UsageError(f"--layout {layout}: bundles can be written as {others}")
    check_output(out, overwrite=overwrite, inputs=[bundle.path for bundle in bundles])
    with new_folder(out, overwrite=overwrite) as folder:
        write(bundles, folder)


@contextlib.contextmanager
def laid_out(out: Path, layout: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Where to export a bundle to, so that `out` has the layout in the end: `out` itself, or a folder beside it.

    Raises:
        UsageError: there is no such layout, or `out` exists.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"--layout {layout}: there are {', '.join(LAYOUTS)}")
    write = LAYOUTS[layout]
    if write is None:
        yield out
        return
    with (
        new_folder(out, overwrite=overwrite) as folder,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.bundle-") as aside,
    ):
        bundle = Path(aside) / out.name
        yield bundle
        write([Bundle.open(bundle)], folder)


def _write_transformersjs(bundles: Sequence[Bundle], folder: Path) -> None:
    """onnx/model*.onnx with its weights, config.json, tokenizer and card, as transformers.js looks for them."""
    first = bundles[0]
    dtypes = [_js_dtype(bundle, first) for bundle in bundles]
    files = [f"model{suffix}.onnx" for _, suffix in dtypes]
    if len(set(files)) < len(files):
        raise UsageError(f"bundles for transformers.js: two would be {max(files, key=files.count)}; give one of each")
    (folder / "onnx").mkdir()
    for bundle, file in zip(bundles, files, strict=True):
        ir.save(
            ir.load(bundle.model),
            folder / "onnx" / file,
            external_data=f"{file}_data",
            alignment=ALIGNMENT_BYTES,
            align_threshold=ALIGNED_FROM_BYTES,
        )
    for name in JS_FILES:
        if (first.path / name).is_file():
            shutil.copyfile(first.path / name, folder / name)
    config = read_json(first.path / CONFIG_FILE, BundleError)
    config.pop("quantization_config", None)  # of the checkpoint; the graph needs none
    config["transformers.js_config"] = {"dtype": dtypes[0][0], "use_external_data_format": dict.fromkeys(files, 1)}
    write_json(folder / CONFIG_FILE, config)
    (folder / CARD_FILE).write_text(_js_card(first, dtypes[0][0], folder / "onnx"), encoding="utf-8")


def _js_dtype(bundle: Bundle, first: Bundle) -> tuple[str, str]:
    manifest = bundle.manifest
    if (manifest.task, manifest.source["architecture"]) != (first.manifest.task, first.manifest.source["architecture"]):
        raise UsageError(f"{bundle.path}: another task or architecture than {first.path}; give bundles of one model")
    if manifest.precision not in JS_DTYPES:
        raise ExportError(
            f"{bundle.path}: transformers.js has no name for the precision {manifest.precision}; "
            f"export it as {', '.join(JS_DTYPES)}"
        )
    return JS_DTYPES[manifest.precision]


def _js_card(bundle: Bundle, dtype: str, folder: Path) -> str:
    manifest = bundle.manifest
    rows = [f"| onnx/{path.name} | {path.stat().st_size:,} |" for path in sorted(folder.iterdir())]
    return "\n".join(
        (
            "---",
            f"base_model: {manifest.source['model']}",
            "library_name: transformers.js",
            f"pipeline_tag: {TASKS[manifest.task].hub}",
            "tags: [onnx, transformers.js, saten, tensor-train, sparse]",
            "---",
            f"# {manifest.name}",
            "",
            f"{manifest.source['architecture']} from `{manifest.source['model']}`, exported by saten-edge "
            f"{manifest.made_by['saten-edge']} for transformers.js.",
            "",
            "```js",
            'import { pipeline } from "@huggingface/transformers";',
            "",
            f'const run = await pipeline("{TASKS[manifest.task].hub}", "owner/name", {{ dtype: "{dtype}" }});',
            "```",
            "",
            "| file | bytes |",
            "|---|--:|",
            *rows,
            "",
        )
    )


# layout → what writes it; None is how bundles lie anyway
LAYOUTS: dict[str, Callable[[Sequence[Bundle], Path], None] | None] = {
    "bundle": None,
    "transformersjs": _write_transformersjs,
}
