#!/usr/bin/env bash
# Measures what fedprune takes, beside what is possible and what others take, on the same files in the same run; prints
# one table and writes OUT/performance.json.
# usage: examples/benchmarks/run.sh [--out DIR] [--quick] [--only SECTION]... [--record]
#   --out      folder for everything it makes                                            [default: out/benchmarks]
#   --quick    the short way: fewer rounds, smaller inputs, without the large model and the network
#   --only     one section, anew; the others as DIR has them (compute ballots matrix tally digest large wire idle)
#   --record   also writes docs/performance.json, and from it the tables of README.md and docs/performance.md
# needs: cargo, python3 with venv and pip, 6 GB of disk for torch and 60 GB for the large model
# FEDPRUNE_BENCH_PYTHON names a Python that has torch and transformers, SMOLLM2 and LLAMA7B the folders of models that
# are there already, CALIBRATION a text, THREADS how many threads everybody gets (2).
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --release --locked
cargo build --release --locked -p fedprune-examples --examples --bin write-synthetic-checkpoint
python=${FEDPRUNE_BENCH_PYTHON:-}
if [ -z "$python" ]; then
  python=.venv/bin/python
  [ -x "$python" ] || python3 -m venv .venv
  "$python" -c 'import torch, transformers' 2>/dev/null ||
    "$python" -m pip -q install 'torch>=2.6,<3' 'transformers>=4.50,<6' 'numpy>=2,<3'
fi
smollm2=${SMOLLM2:-smollm2}
examples/smollm2/fetch.sh "$smollm2"
SMOLLM2="$smollm2" exec "$python" examples/benchmarks/measure.py "$@"
