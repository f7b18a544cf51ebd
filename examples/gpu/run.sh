#!/usr/bin/env bash
# Checks that a GPU computes the masks that the processor computes, then measures it beside its floors and beside torch on
# the same files in the same call; prints one table last and writes OUT/gpu.json as it goes. Under eight minutes.
# usage: examples/gpu/run.sh [--out DIR] [--device cuda:0] [--cpu-only] [--quick] [--only STAGE]...
#   --out       folder for everything it makes                                           [default: out/gpu]
#   --cpu-only  what needs no GPU, on small inputs: shows that the script works
#   --quick     a model of four blocks instead of 32, fewer windows
#   --only      some of the stages: devices fixtures bundled rates model upload ballot selection tally long
# needs: a GPU with its driver; python3 with torch and transformers (any that `python3` or FEDPRUNE_BENCH_PYTHON names); the
# libraries of CUDA 13, which torch brings; 16 GB of disk, 24 GB of memory. Without cargo on the machine, name built programs:
#   FEDPRUNE         fedprune, built with --features cuda
#   WRITE_CHECKPOINT write-synthetic-checkpoint       JITTER_BALLOT jitter-ballot
#   GPU_KERNELS      the example gpu-kernels of the crate fedprune-gpu, built with --features cuda
# CALIBRATION names a text, LLAMA7B the folder of a model that is there already, THREADS how many threads everybody gets.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${FEDPRUNE_BENCH_PYTHON:-python3}
features=(--features cuda)
case " $* " in *" --cpu-only "*) features=() ;; esac
build() { # variable, path below target/release, what cargo is told
  local variable=$1 path=$2
  shift 2
  if [ -z "${!variable:-}" ]; then
    cargo build --release --locked "$@"
    export "$variable"="${CARGO_TARGET_DIR:-target}/release/$path"
  fi
}
build FEDPRUNE fedprune -p fedprune-cli --no-default-features --features silo "${features[@]}"
build WRITE_CHECKPOINT write-synthetic-checkpoint -p fedprune-examples --bin write-synthetic-checkpoint
build JITTER_BALLOT jitter-ballot -p fedprune-examples --bin jitter-ballot
if [ ${#features[@]} -gt 0 ]; then
  build GPU_KERNELS examples/gpu-kernels -p fedprune-gpu --features cuda --example gpu-kernels
fi
# cuBLAS and cuRAND, where only torch brings them
libraries=$("$python" - <<'PYTHON' || true
import glob, os, site, sysconfig
roots = {sysconfig.get_paths()["purelib"], *site.getsitepackages()}
print(":".join(sorted({os.path.dirname(path) for root in roots for path in glob.glob(f"{root}/nvidia/**/lib*.so.*", recursive=True)})))
PYTHON
)
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries"
exec "$python" examples/gpu/measure.py "$@"
