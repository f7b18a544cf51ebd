#!/usr/bin/env python3
"""Counting, selecting and top-k as one writes them in torch and numpy: the rivals of `fedprune`'s kernels.

Reads what `benchmark-kernels matrix` wrote. Masks are unpacked to int8 before the clock starts, which favours them;
ties at the threshold fall as top-k lets them, ours by |W| and then by place.

usage: kernels_torch.py FOLDER ROWS COLUMNS [--rounds 3] [--threads 2]        needs: torch numpy
Prints one JSON object: best seconds of each, and how many weights were pruned at each number of votes.
"""
import argparse
import json
import os
import pathlib
import time

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("rows", type=int)
parser.add_argument("columns", type=int)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(options.threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(options.threads)
SHAPE = (options.rows, options.columns)
WEIGHTS = options.rows * options.columns
HALF = WEIGHTS // 2


def bf16(name, shape):
    return torch.from_numpy(np.fromfile(options.folder / name, np.int16)).view(torch.bfloat16).reshape(shape)


def masks():
    """One mask at a time as bytes of 0 and 1."""
    for path in sorted(options.folder.glob("mask-*.bits")):
        bits = np.unpackbits(np.fromfile(path, np.uint8), count=WEIGHTS, bitorder="little")
        yield bits.view(np.int8).reshape(SHAPE)


best = {}


def timed(name, work):
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    best[name] = min(best.get(name, seconds), seconds)
    return result


def top_half(counts):
    pruned = torch.zeros(WEIGHTS, dtype=torch.bool)
    pruned[torch.topk(counts.reshape(-1), HALF, sorted=False).indices] = True
    return pruned


def select(weights, norms, group):
    score = weights.float().abs() * norms.float()
    pools = score if group == "row" else score.reshape(1, -1)
    pruned = torch.zeros(pools.shape, dtype=torch.bool)
    count = pools.shape[1] // 2
    return pruned.scatter_(1, torch.topk(pools, count, dim=1, largest=False, sorted=False).indices, True)


with torch.inference_mode():
    for _ in range(options.rounds):
        # the sum of one round is that of its 64 additions; what lies between them is not counted
        spent = {"torch_count": 0.0, "numpy_count": 0.0}
        counts = torch.zeros(SHAPE, dtype=torch.int8)
        numpy_counts = np.zeros(SHAPE, np.int8)
        for mask in masks():
            vote = torch.from_numpy(mask)
            started = time.perf_counter()
            counts += vote
            middle = time.perf_counter()
            numpy_counts += mask
            spent["torch_count"] += middle - started
            spent["numpy_count"] += time.perf_counter() - middle
        assert np.array_equal(counts.numpy(), numpy_counts)
        for name, seconds in spent.items():
            best[name] = min(best.get(name, seconds), seconds)
        pruned = timed("torch_topk", lambda: top_half(counts))
        timed("numpy_partition", lambda: np.argpartition(numpy_counts.reshape(-1), WEIGHTS - HALF)[WEIGHTS - HALF:])
        by_count = torch.bincount(counts.reshape(-1)[pruned].int(), minlength=65).tolist()
        weights, norms = bf16("turned.bf16", SHAPE[::-1]), bf16("turned-norms.bf16", (options.rows,))
        for group in ("layer", "row"):
            timed(f"torch_select_{group}", lambda: select(weights, norms, group))
print(json.dumps(dict(seconds=best, pruned_by_count=by_count, threads=torch.get_num_threads(),
                      torch=torch.__version__, numpy=np.__version__)))
