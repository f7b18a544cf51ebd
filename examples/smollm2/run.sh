#!/usr/bin/env bash
# Prunes SmolLM2-135M to 50 % from a text, and checks the result with Hugging Face transformers.
# usage: examples/smollm2/run.sh [WORK]        needs: cargo, python3 with venv and pip; about 6 GB of disk for torch
# CALIBRATION and EVALUATION (text files) override the bundled texts; PYTHON a Python that has torch and transformers.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:-out/smollm2}
calibration=${CALIBRATION:-examples/bundled-model/silos}
evaluation=${EVALUATION:-examples/bundled-model/held_out.txt}
mkdir -p "$work"

cargo build --release --locked
fedprune=target/release/fedprune
examples/smollm2/fetch.sh "$work/dense"

echo "== the model"
"$fedprune" model inspect "$work/dense"

for group in row layer 2:4; do
  ballot="$work/${group/:/of}.ballot"
  rm -f "$ballot"
  echo "== a 50 % mask, local group $group"
  "$fedprune" mask compute --model "$work/dense" --data "$calibration" --local-group "$group" \
    --nsamples 2 --seqlen 512 --out "$ballot"
done
"$fedprune" mask show "$work/row.ballot" "$work/layer.ballot" "$work/2of4.ballot" --model "$work/dense"

echo "== the pruned copy"
rm -rf "$work/pruned"
"$fedprune" apply --model "$work/dense" --mask "$work/row.ballot" --out "$work/pruned"

python=${PYTHON:-}
if [ -z "$python" ]; then
  [ -d "$work/venv" ] || python3 -m venv "$work/venv"
  python="$work/venv/bin/python"
  "$python" -c 'import torch, transformers' 2>/dev/null || "$python" -m pip -q install torch transformers safetensors
fi
for model in dense pruned; do
  echo "== perplexity, $model: ours and transformers'"
  "$fedprune" eval perplexity --model "$work/$model" --data "$evaluation" --seqlen 1024 --max-windows 4 \
    --format json >"$work/$model.ours.json"
  "$python" examples/smollm2/perplexity_hf.py "$work/$model" "$evaluation" 1024 4 >"$work/$model.hf.json"
  "$python" - "$work/$model.ours.json" "$work/$model.hf.json" <<'PY'
import json, sys
ours, theirs = (json.load(open(path)) for path in sys.argv[1:])
difference = abs(ours["perplexity"] / theirs["perplexity"] - 1)
print(f"fedprune {ours['perplexity']:.4f}, transformers {theirs['perplexity']:.4f}, {difference:.4%} apart")
assert ours["windows"] == theirs["windows"], "different windows"
assert difference < 0.001, "more than 0.1 % apart"
PY
done
