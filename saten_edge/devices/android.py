"""A phone without Python: a bundle as files for ONNX Runtime's own Android packages, and the commands that use them.

model.ort                            the graph and its weights, in the format those packages load
required_operators_and_types.config  what a reduced build of ONNX Runtime has to contain
tokenizer.json
test_data_set_0/                     one case of the bundle's validation, for onnxruntime_perf_test
README.md                            the commands, filled in
"""

from __future__ import annotations

import shutil
import string
import subprocess
import sys
from pathlib import Path

import numpy as np

from saten_runtime.bundle.folder import VALIDATION_FOLDER, Bundle
from saten_runtime.errors import BundleError, ParityError
from saten_runtime.records.folders import check_output, new_folder
from saten_runtime.records.plain_text import last_line
from saten_runtime.vocabulary.files import CARD_FILE, TOKENIZER_FILE

__all__ = ["write_android"]

_LIMIT_S = 900
_MODEL = "model.ort"
_CASE = "test_data_set_0"
_FOLDER = "/data/local/tmp/saten-edge"

_README = string.Template("""\
# $name on Android

Made by `saten-edge devices android` with ONNX Runtime $version; `model.ort` gave the outputs of `model.onnx` there.
It can be loaded by ONNX Runtime $version and newer.

## In an app

```kotlin
// build.gradle.kts: implementation("com.microsoft.onnxruntime:onnxruntime-android:$version")
val environment = OrtEnvironment.getEnvironment()
val session = environment.createSession(assets.open("model.ort").readBytes(), OrtSession.SessionOptions())
// inputs: $inputs, each int64 (batch, tokens); outputs: $outputs
```

Texts become ids by `tokenizer.json` (a `tokenizers` file).
After the graph: pooling $pooling, normalize $normalize$more.
The package with only the operators in `required_operators_and_types.config` is smaller:

```sh
git clone --recursive --branch v$version https://github.com/microsoft/onnxruntime
onnxruntime/build.sh --config MinSizeRel --android --android_sdk_path SDK --android_ndk_path NDK \\
  --android_abi arm64-v8a --android_api 27 --build_java --minimal_build extended --disable_ml_ops \\
  --include_ops_by_config required_operators_and_types.config --enable_reduced_operator_type_support
```

## Latency, without an app

`onnxruntime_perf_test` comes out of the same build without `--minimal_build` and its options.

```sh
adb shell mkdir -p $folder
adb push model.ort $case onnxruntime_perf_test $folder/
adb shell "cd $folder && chmod +x onnxruntime_perf_test && ./onnxruntime_perf_test -e cpu -x 1 -t 10 -s model.ort"
```
""")


def write_android(bundle: Bundle, output: Path, *, overwrite: bool = False) -> None:
    """Write the files for one bundle to a new folder.

    Raises:
        BundleError: ONNX Runtime cannot convert the graph.
        ParityError: the converted graph computes something else.
        UsageError: the output exists.
    """
    check_output(output, overwrite=overwrite, inputs=[bundle.path])
    with new_folder(output, overwrite=overwrite) as aside:
        _convert(bundle, aside)
        _check(bundle, aside / _MODEL)
        _write_case(bundle, aside / _CASE)
        shutil.copyfile(bundle.path / bundle.tokenizer.file, aside / TOKENIZER_FILE)
        (aside / CARD_FILE).write_text(_readme(bundle), "utf-8")


def _convert(bundle: Bundle, folder: Path) -> None:
    command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(bundle.path.resolve())]
    command += ["--output_dir", str(folder), "--optimization_style", "Fixed", "--target_platform", "arm"]
    done = subprocess.run([*command, "--enable_type_reduction"], capture_output=True, text=True, timeout=_LIMIT_S)
    if done.returncode or not (folder / _MODEL).is_file():
        words = last_line(done.stderr, "no message")
        raise BundleError(f"{bundle.path}: cannot be converted to {_MODEL}: {words}")


def _cases(bundle: Bundle) -> list[str]:
    return sorted({path.name.partition(".")[0] for path in (bundle.path / VALIDATION_FOLDER).glob("*.npy")})


def _inputs(bundle: Bundle, case: str) -> dict[str, np.ndarray]:
    folder = bundle.path / VALIDATION_FOLDER
    return {name: np.load(folder / f"{case}.{name}.npy", allow_pickle=False) for name in bundle.manifest.inputs}


def _check(bundle: Bundle, model: Path) -> None:
    """The same optimizations on the same machine: the outputs have to be the same, bit by bit."""
    import onnxruntime

    original, converted = (onnxruntime.InferenceSession(str(path)) for path in (bundle.model, model))
    for case in _cases(bundle):
        inputs = _inputs(bundle, case)
        for name, one, other in zip(
            bundle.manifest.outputs, original.run(None, inputs), converted.run(None, inputs), strict=True
        ):
            if not np.array_equal(one, other):
                raise ParityError(f"{bundle.path}: {_MODEL} gives another {name!r} for case {case!r} than model.onnx")


def _write_case(bundle: Bundle, folder: Path) -> None:
    """The first case as the protobuf files that onnxruntime_perf_test reads."""
    from onnx import numpy_helper

    folder.mkdir()
    for index, (name, array) in enumerate(_inputs(bundle, _cases(bundle)[0]).items()):
        (folder / f"input_{index}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())


def _readme(bundle: Bundle) -> str:
    import onnxruntime

    manifest = bundle.manifest
    further = manifest.postprocess.modules or manifest.postprocess.dimensions
    return _README.substitute(
        name=bundle.name,
        version=onnxruntime.__version__,
        inputs=", ".join(manifest.inputs),
        outputs=", ".join(manifest.outputs),
        pooling=manifest.postprocess.pooling,
        normalize=str(manifest.postprocess.normalize).lower(),
        more=", and the layers and the cut in `postprocess` of the manifest" * bool(further),
        folder=_FOLDER,
        case=_CASE,
    )
