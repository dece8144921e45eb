#!/usr/bin/env bash
# Unpacks the CUDA compiler (no driver, no installer, no root) from its Python packages into .cuda, which git ignores.
#
#   kernels/cuda/toolchain.sh            installs; does nothing where it is there
#   kernels/cuda/toolchain.sh compile    compiles every kernel for sm_80 and sm_90a into .cuda/kernels; says so and
#                                        succeeds where there is no compiler
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD/.cuda
nvcc=$root/nvidia/cu13/bin/nvcc
packages=(
  nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
  nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96
)

install() {
  [ -x "$nvcc" ] && { echo "CUDA compiler: $nvcc"; return; }
  python3 -m pip --version >/dev/null 2>&1 || { echo "the CUDA compiler comes as Python packages: install python3-pip" >&2; exit 1; }
  rm -rf "$root/wheels" && mkdir -p "$root/wheels"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --dest "$root/wheels" "${packages[@]}"
  for wheel in "$root"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$root"
  done
  rm -rf "$root/wheels"
  # A zip does not carry the run bits.
  chmod +x "$root"/nvidia/cu13/bin/* "$root"/nvidia/cu13/nvvm/bin/*
  "$nvcc" --version | tail -1
}

compile() {
  if [ ! -x "$nvcc" ]; then
    echo "device kernels were not compiled for GPUs: there is no CUDA compiler (make cuda-toolchain installs one)"
    return
  fi
  mkdir -p "$root/kernels"
  local source object status=0
  for source in kernels/cuda/*.cu; do
    object=$root/kernels/$(basename "$source" .cu).fatbin
    # What was compiled from the same text is kept.
    if [ "$object" -nt "$source" ] && [ "$object" -nt kernels/cuda/device.cuh ]; then continue; fi
    "$nvcc" -std=c++17 -O3 --Werror all-warnings -Xptxas=-warn-spills,-warn-lmem-usage -Ikernels/cuda \
      -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a -fatbin "$source" -o "$object" || status=1
  done
  [ "$status" -eq 0 ] && echo "device kernels: compiled for sm_80 and sm_90a"
  return "$status"
}

case ${1:-install} in
  install) install ;;
  compile) compile ;;
  *) echo "usage: $0 [install|compile]" >&2; exit 2 ;;
esac
