#!/bin/sh
# Runs every manifest in testnet/manifests, one after the other, and says how each came out.
#
#     testnet/scripts/run-all.sh [PROGRAM]
#
# PROGRAM is target/release/fedprune unless given; build it with `cargo build --release`. Folders and reports stay in a
# new folder that is named at the end.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
program=${1:-$root/target/release/fedprune}
[ -x "$program" ] || { echo "there is no $program: cargo build --release" >&2; exit 2; }
kept=$(mktemp -d "${TMPDIR:-/tmp}/fedprune-testnets.XXXXXX")
failed=0
for manifest in "$root"/testnet/manifests/*.toml; do
    name=$(basename "$manifest" .toml)
    if "$program" --quiet testnet run "$manifest" --out "$kept/$name" >"$kept/$name.report" 2>&1; then
        echo "passed  $name"
    else
        echo "FAILED  $name: see $kept/$name.report"
        failed=1
    fi
done
echo "everything is in $kept"
exit $failed
