#!/usr/bin/env bash
# The long run: each target for so many seconds of processor time, and what came of it as a table and as JSON.
#
#   tests/fuzz/run.sh [SECONDS [TARGET…]]        60 seconds, all targets
#
# Seconds are those that the target itself computes, so that a busy machine does not shorten the run. FUZZ_JOBS targets run
# at once, one unless said otherwise.
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

# one target TARGET: a line of JSON in logs/TARGET.json; fails if the target does
one() {
  local target=$1 corpus="$out/corpus/$1" artifacts="$out/artifacts/$1" log="$out/logs/$1.log"
  mkdir -p "$corpus" "$artifacts"
  local inputs=("$corpus" "corpus/$target")
  [ -d "regressions/$target" ] && inputs+=("regressions/$target")
  local before started computed=0 failed=0 fuzzer
  before=$(find "$artifacts" -type f ! -name 'slow-unit-*' | wc -l)
  started=$(date +%s)
  # the limit on one input is by the clock, and others may have the processor
  "$built/$target" "${inputs[@]}" -artifact_prefix="$artifacts/" -rss_limit_mb=2048 \
    -timeout=120 -max_len=32768 -print_final_stats=1 -use_value_profile=0 >"$log" 2>&1 &
  fuzzer=$!
  # utime and stime are the 14th and 15th field; the name before them has no space
  while read -r -a stat 2>/dev/null <"/proc/$fuzzer/stat" && [ "${stat[2]}" != Z ]; do
    computed=$(((stat[13] + stat[14]) / $(getconf CLK_TCK)))
    # it ends with its figures then, and without an error
    [ "$computed" -lt "$seconds" ] || kill -TERM "$fuzzer" 2>/dev/null || true
    sleep 1
  done
  wait "$fuzzer" || failed=1
  ./figures.py row "$target" "$(($(date +%s) - started))" "$computed" \
    "$(($(find "$artifacts" -type f ! -name 'slow-unit-*' | wc -l) - before))" "$log" >"$out/logs/$target.json"
  return $failed
}
export -f one
export out built seconds

failed=0
printf '%s\0' "${targets[@]}" | xargs -0 -n 1 -P "${FUZZ_JOBS:-1}" bash -c 'set -euo pipefail; one "$0"' || failed=1
for target in "${targets[@]}"; do cat "$out/logs/$target.json"; done | ./figures.py table "$out/report.json"
exit $failed
