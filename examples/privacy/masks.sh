#!/usr/bin/env bash
# How well masks alone give the strengths of channels away: the figures of docs/privacy.md, "Masks instead of norms".
# A consortium of one previews rounds of `mask-only` ballots, made from 48 tokens of a bundled text with the bundled model.
#   examples/privacy/masks.sh [FEDPRUNE]        the program; built if none is given
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
fedprune=${1:-}
if [ -z "$fedprune" ]; then
  (cd "$root" && cargo build --release --locked)
  fedprune=$root/target/release/fedprune
fi
fedprune=$(realpath "$fedprune")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
model=$root/examples/bundled-model/model
"$fedprune" key new --home home >/dev/null
"$fedprune" consortium new --name one --out consortium.toml >/dev/null
"$fedprune" consortium add consortium.toml --name one --key home/key.pem --address /ip4/127.0.0.1/tcp/4001 >/dev/null
"$fedprune" consortium sign consortium.toml --home home >/dev/null
printf '%-8s %-6s %10s %10s\n' pruner group middle most
for setting in "wanda layer" "wanda row" "ria layer"; do
  read -r pruner group <<<"$setting"
  "$fedprune" round new --consortium consortium.toml --model "$model" --out "$pruner-$group.toml" --pruner "$pruner" \
    --local-group "$group" --ballots mask-only --nsamples 1 --seqlen 48 --sampling sequential --bos none >/dev/null
  "$fedprune" --quiet round preview "$pruner-$group.toml" --home home --model "$model" \
    --data "$root/examples/bundled-model/silos/austen_emma.txt" --format json >preview.json
  python3 -c '
import json, sys
off = json.load(open("preview.json"))["attack"]["outcome"]["norms_off"]
print("%-8s %-6s %9.2f%% %9.2f%%" % (*sys.argv[1:], 100 * off["median"], 100 * off["largest"]))' "$pruner" "$group"
done
