#!/usr/bin/env bash
# Unpacks the CUDA compiler (no driver, no installer, no root) from its Python packages into .cuda, which git ignores.
#
#   kernels/cuda/toolchain.sh                 installs; does nothing where it is there
#   kernels/cuda/toolchain.sh compile [DIR]   compiles every kernel into one fatbin each (sm_80, sm_90a, and PTX for what is
#                                             newer) in .cuda/kernels, and copies them to DIR; what was compiled from the
#                                             same text is kept; says so and succeeds where there is no compiler
#
# TARN_CUDA  a CUDA 13.0 toolkit to compile with instead, the folder that has bin/nvcc
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD/.cuda
nvcc=${TARN_CUDA:-$root/nvidia/cu13}/bin/nvcc
packages=(
  nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
  nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96
)

install() {
  [ -x "$nvcc" ] && { echo "CUDA compiler: $nvcc"; return; }
  python3 -m pip --version >/dev/null 2>&1 || { echo "the CUDA compiler comes as Python packages: install python3-pip" >&2; exit 1; }
  rm -rf "$root/wheels" && mkdir -p "$root/wheels"
  python3 -m pip download --quiet --disable-pip-version-check --timeout 30 --retries 2 --no-deps --only-binary=:all: \
    --dest "$root/wheels" "${packages[@]}"
  for wheel in "$root"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$root"
  done
  rm -rf "$root/wheels"
  # A zip does not carry the run bits.
  chmod +x "$root"/nvidia/cu13/bin/* "$root"/nvidia/cu13/nvvm/bin/*
  "$nvcc" --version | tail -1
}

flags=(
  -std=c++17 -O3 --Werror all-warnings -Xptxas=-warn-spills,-warn-lmem-usage -Ikernels/cuda
  -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_90,code=compute_90
)

one() { # one OBJECT SOURCE: what is not whole never has the name
  "$nvcc" "${flags[@]}" -fatbin "$2" -o "$1.part"
  mv "$1.part" "$1"
}

compile() {
  if [ ! -x "$nvcc" ]; then
    echo "device kernels were not compiled for GPUs: there is no CUDA compiler (make cuda-toolchain installs one)"
    return
  fi
  local to=${1:-} kept=$root/kernels source object name shared stale=() copies=()
  mkdir -p "$kept" ${to:+"$to"}
  shared=$({ echo "${flags[@]}"; "$nvcc" --version; cat kernels/cuda/*.cuh; } | sha256sum)
  for source in kernels/cuda/*.cu; do
    name=$(basename "$source" .cu)
    object=$kept/$name-$({ echo "$shared"; cat "$source"; } | sha256sum | cut -c 1-16).fatbin
    copies+=("$object" "$to/$name.fatbin")
    [ -f "$object" ] && continue
    rm -f "$kept/$name"-*
    stale+=("$object" "$source")
  done
  if [ ${#stale[@]} -gt 0 ]; then
    printf '%s\0' "${stale[@]}" | xargs -0 -n 2 -P "$(nproc)" kernels/cuda/toolchain.sh one
  fi
  [ -z "$to" ] || printf '%s\0' "${copies[@]}" | xargs -0 -n 2 cp
  echo "device kernels: compiled for sm_80, sm_90a and newer; $((${#stale[@]} / 2)) of $((${#copies[@]} / 2)) files anew"
}

case ${1:-install} in
  install) install ;;
  compile) compile "${2:-}" ;;
  one) one "$2" "$3" ;;
  *) echo "usage: $0 [install|compile [DIR]]" >&2; exit 2 ;;
esac
