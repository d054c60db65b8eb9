#!/usr/bin/env bash
# Builds the wheel for 64-bit ARM Linux into FOLDER, by Debian's cross compiler. PYTHON: the interpreter whose pip does it.
# Exit code 77: a tool is missing here; the line on stderr names it.
set -euo pipefail
folder=$(realpath "${1:?usage: aarch64_wheel.sh FOLDER}")
cd "$(dirname "$0")/.."
# CMake and ninja too: in their stead pip would fetch those of the other machine.
for tool in aarch64-linux-gnu-g++ cmake ninja; do
  command -v "$tool" >/dev/null || { echo "aarch64 wheel: no $tool here" >&2 && exit 77; }
done
# These tell CMake, and the wheel's name, which machine it is for.
export CMAKE_ARGS="--toolchain $PWD/cmake/aarch64.cmake" _PYTHON_HOST_PLATFORM=linux-aarch64
exec "${PYTHON:-python3}" -m pip --disable-pip-version-check --quiet wheel --no-deps --wheel-dir "$folder" .
