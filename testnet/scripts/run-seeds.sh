#!/bin/sh
# Runs the manifests of a range of seeds, one after the other, a line each.
#
#     testnet/scripts/run-seeds.sh FIRST LAST [PROGRAM]
#
# PROGRAM is target/release/fedprune unless given, with `fedprune-lying-node` beside it:
# `cargo build --release -p fedprune-cli -p fedprune-tests --bins`. What each left stays in a new folder that is named at the
# end; of a run that passed only its report and manifest. At the end stands how many ended as expected, and how many faults
# of links of each kind began while nodes had not finished.
set -u
[ $# -ge 2 ] || { echo "usage: $0 FIRST LAST [PROGRAM]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
program=${3:-$root/target/release/fedprune}
[ -x "$program" ] || { echo "there is no $program" >&2; exit 2; }
passed=0
kept=${KEPT:-$(mktemp -d "${TMPDIR:-/tmp}/fedprune-seeds.XXXXXX")}
mkdir -p "$kept"
failed=0
for seed in $(seq "$1" "$2"); do
    began=$(date +%s)
    if ${BEFORE:-} "$program" --quiet testnet run --seed "$seed" --out "$kept/$seed" >"$kept/$seed.report" 2>&1; then
        word=passed
        passed=$((passed + 1))
        cp "$kept/$seed/manifest.toml" "$kept/$seed.toml"
        rm -rf "${kept:?}/$seed"
    else
        word=FAILED
        failed=$((failed + 1))
    fi
    drawn=$(grep -hoE '^(what = "[a-z-]*"|lie = "[a-z-]*"|start = false|kill = .*|clock_skew|start_after|outcome = "[a-z]*"|strategy = "iter[a-z]*"|tally = "elected")' "$kept/$seed.toml" "$kept/$seed/manifest.toml" 2>/dev/null | sed -e 's/^[a-z_]* = //' -e 's/"//g' | tr '\n' ' ')
    echo "$word  seed $seed  $(( $(date +%s) - began )) s  $drawn"
done
echo "$passed ended as expected, $failed did not; faults of links that met a round:"
for seed in $(seq "$1" "$2"); do
    grep -oE '`[a-z]+` of links began' "$kept/$seed.report"
done | sort | uniq -c
echo "everything is in $kept"
[ "$failed" -eq 0 ]
