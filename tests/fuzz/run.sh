#!/usr/bin/env bash
# The long run: each target for so many seconds, one after another, and what came of it as a table and as JSON.
#
#   tests/fuzz/run.sh [SECONDS [TARGET…]]        60 seconds, all targets
#
# It needs a nightly compiler and `cargo install cargo-fuzz`. Inputs that reached something new stay in target/fuzz/corpus,
# what failed in target/fuzz/artifacts; FUZZ_OUT puts both elsewhere. A failing input belongs into regressions/TARGET, where
# every `cargo test` tries it. FUZZ_SANITIZER is `address`, or `none`, which is faster.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cd libfuzzer/fuzz_targets && ls | sed 's/\.rs$//')
out=${FUZZ_OUT:-$PWD/../../target/fuzz}
sanitizer=${FUZZ_SANITIZER:-address}
mkdir -p "$out/corpus" "$out/artifacts" "$out/logs"

# all at once: the crates below them are built once
(cd libfuzzer && cargo +nightly fuzz build --fuzz-dir . --sanitizer "$sanitizer" --target-dir "$out/build")
built="$out/build/x86_64-unknown-linux-gnu/release"

failed=0
rows=()
for target in "${targets[@]}"; do
  corpus="$out/corpus/$target" artifacts="$out/artifacts/$target" log="$out/logs/$target.log"
  mkdir -p "$corpus" "$artifacts"
  inputs=("$corpus" "corpus/$target")
  [ -d "regressions/$target" ] && inputs+=("regressions/$target")
  before=$(find "$artifacts" -type f | wc -l)
  started=$(date +%s)
  "$built/$target" "${inputs[@]}" -artifact_prefix="$artifacts/" -max_total_time="$seconds" -rss_limit_mb=2048 \
    -timeout=20 -max_len=32768 -print_final_stats=1 -use_value_profile=0 >"$log" 2>&1 || failed=1
  took=$(($(date +%s) - started))
  crashes=$(($(find "$artifacts" -type f | wc -l) - before))
  rows+=("$(./figures.py row "$target" "$took" "$crashes" "$log")")
done
printf '%s\n' "${rows[@]}" | ./figures.py table "$out/report.json"
exit $failed
