#!/usr/bin/env bash
# An arm64 user land of Debian packages, run by qemu-user: what a board would run, without a board.
#
#   userland.sh build ROOT        make it, or do nothing when it is there (about 3 minutes; needs root, apt and a network)
#   userland.sh run ROOT COMMAND  run a command inside; the mounts it needs are gone when it ends
#
# QEMU_CPU: the processor, that of a Raspberry Pi 5 (cortex-a76) where it is not set; cortex-a72 is that of a Pi 4.
# BIND: folders of this machine that the command may read, at the same paths, separated by colons.
# Exit code 77: this machine cannot do it; the line on stderr says why.
set -euo pipefail
verb=${1:?build or run} root=${2:?folder of the user land}
packages=python3,libgomp1,libstdc++6,openssh-server
export QEMU_CPU=${QEMU_CPU:-cortex-a76}
case $QEMU_CPU in
  cortex-a72) part=0xd08 features='fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid' ;;
  *) part=0xd0b features='fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp' ;;
esac
script=$(realpath "$0")

cannot() {
  echo "arm64 user land: $1" >&2
  exit 77
}

register() {
  mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc ||
    cannot "binfmt_misc cannot be mounted here"
  [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] && return
  # F opens the emulator now, so that it is found inside the user land too.
  printf '%s' ':qemu-aarch64:M::\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:F' \
    >/proc/sys/fs/binfmt_misc/register || cannot "binfmt_misc takes no emulator here"
}

build() {
  [ "$(id -u)" = 0 ] || cannot "needs root, for chroot and binfmt_misc"
  command -v apt-get >/dev/null || cannot "needs apt, for debootstrap and qemu-user-static"
  if ! { command -v debootstrap && command -v qemu-aarch64-static; } >/dev/null; then
    { apt-get update -q && apt-get install -y -q --no-install-recommends debootstrap qemu-user-static debian-archive-keyring; } \
      >/dev/null || cannot "apt cannot install debootstrap and qemu-user-static"
  fi
  register
  [ "$(cat "$root/.complete" 2>/dev/null)" = "$packages" ] || bootstrap
  "$script" run "$root" true || cannot "a program of it cannot be started here"
}

bootstrap() {
  rm -rf "$root"
  mkdir -p "$root"
  debootstrap --arch=arm64 --variant=minbase --foreign --include="$packages" bookworm "$root" >"$root.log" 2>&1 ||
    cannot "debootstrap failed, see $root.log"
  chroot "$root" /debootstrap/debootstrap --second-stage >>"$root.log" 2>&1 || cannot "debootstrap failed, see $root.log"
  rm -rf "$root"/var/cache/apt/archives/*.deb
  face
  echo "$packages" >"$root/.complete"
}

# What the kernel would say on a Raspberry Pi. It has to fit the processor that is emulated: onnxruntime reads it, and
# dies at import where an x86 machine's own files are found.
face() {
  mkdir -p "$root/face/sys"
  for core in 0 1 2 3; do
    folder=$root/face/sys/devices/system/cpu/cpu$core/topology
    mkdir -p "$folder"
    echo 0 >"$folder/physical_package_id"
    echo "$core" | tee "$folder/core_id" "$folder/core_siblings_list" "$folder/core_cpus_list" >"$folder/thread_siblings_list"
    echo 0-3 >"$folder/package_cpus_list"
  done
  for list in possible present online; do echo 0-3 >"$root/face/sys/devices/system/cpu/$list"; done
  echo 255 >"$root/face/sys/devices/system/cpu/kernel_max"
}

cpuinfo() {
  for core in 0 1 2 3; do
    printf 'processor\t: %s\nBogoMIPS\t: 108.00\nFeatures\t: %s\n' "$core" "$features"
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: %s\nCPU revision\t: 1\n\n' "$part"
  done
}

inside() {
  mount --make-rprivate /
  mount -t proc proc "$root/proc"
  cpuinfo >"$root/face/cpuinfo-$QEMU_CPU"
  mount --bind "$root/face/cpuinfo-$QEMU_CPU" "$root/proc/cpuinfo"
  mount --rbind "$root/face/sys" "$root/sys"
  mount --rbind /dev "$root/dev"
  for folder in $(tr : ' ' <<<"${BIND:-}"); do
    mkdir -p "$root$folder"
    mount --rbind "$folder" "$root$folder"
  done
  unset BIND
  exec chroot "$root" "$@"
}

case $verb in
  build) build ;;
  run) register && shift 2 && exec unshare --mount "$script" inside "$root" "$@" ;;
  inside) shift 2 && inside "$@" ;;
  *) echo "userland.sh: build or run, not $verb" >&2 && exit 2 ;;
esac
