#!/usr/bin/env bash
# Unpacks the headers of Debian's libonnxruntime-dev into FOLDER, from the mirror this machine's apt already uses.
# Needs no root: apt keeps its state in a temporary folder. Debian has carried the package since trixie.
set -euo pipefail
folder=${1:?usage: fetch_onnxruntime_headers.sh FOLDER}
suite=${SATEN_DEBIAN_SUITE:-trixie}
[ -e "$folder/onnxruntime_c_api.h" ] && exit 0

mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -m1 -E '/debian/?$' || echo http://deb.debian.org/debian)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$work/sources.list"
# -qq: what apt says of its sandbox is about the temporary folder; errors are still printed.
apt=(apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o Dir::State="$work/state" -o Dir::State::status=/dev/null -o Dir::Cache="$work/cache"
  -o Acquire::Languages=none -o APT::Sandbox::User="$(id -un)")
"${apt[@]}" update
(cd "$work" && "${apt[@]}" download libonnxruntime-dev)
dpkg -x "$work"/libonnxruntime-dev_*.deb "$work/root"
mkdir -p "$folder"
cp "$(find "$work/root/usr/include" -name onnxruntime_c_api.h -printf '%h')"/*.h "$folder/"
