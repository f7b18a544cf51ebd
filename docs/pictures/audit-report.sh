#!/usr/bin/env bash
# Makes docs/pictures/audit-report.png: a round of the demo, its report, and what Chromium shows of it.
#
#   docs/pictures/audit-report.sh [FEDPRUNE]       the program; target/release/fedprune unless said otherwise
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$(realpath "${1:-target/release/fedprune}")
pictures=$PWD/docs/pictures
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$program" --quiet demo --out "$scratch/demo" >/dev/null
transcript=$(ls -d "$scratch"/demo/homes/east/rounds/*/transcript)
consortium=$("$program" consortium show --home "$scratch/demo/homes/east" --format json | sed -n 's/^  "id": "\(.*\)",$/\1/p')
"$program" audit report "$transcript" --out "$scratch/report.html" --model "$scratch/demo/model" \
  --pruned "$scratch/demo/pruned/east" --consortium-id "$consortium" --round-id "$(basename "$(dirname "$transcript")")"
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1000,1540 \
  --screenshot="$pictures/audit-report.png" "file://$scratch/report.html" >/dev/null 2>&1
