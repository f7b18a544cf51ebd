#!/usr/bin/env python3
"""What the machine does at best, in torch: copies from pinned memory, bf16 products, copies on the device.

usage: rates_torch.py [DEVICE]          needs: torch and a GPU
Prints one JSON object: rates in bytes and operations a second, the best of a few runs each, random data.
"""
import json
import sys

import torch

device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda:0")
torch.cuda.set_device(device)


def best_seconds(work, runs=5, times=5):
    """Seconds of one call: the fastest of some runs of several calls each, timed by the device."""
    work()
    torch.cuda.synchronize()
    best = float("inf")
    for _ in range(runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(times):
            work()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1000 / times)
    return best


rates = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
size = 1 << 30
pinned = torch.randint(0, 255, (size,), dtype=torch.uint8).pin_memory()
there = torch.empty(size, dtype=torch.uint8, device=device)
rates["host_to_device_bytes_per_second"] = size / best_seconds(lambda: there.copy_(pinned, non_blocking=True))
other = torch.empty_like(there)
# bytes that must move: read and written
rates["device_copy_bytes_per_second"] = 2 * size / best_seconds(lambda: other.copy_(there))
del pinned, there, other

# the shapes of LLaMA-7B: 2 × 2048 tokens through its seven matrices
tokens, shapes = 4096, [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
inputs = {width: torch.randn(tokens, width, dtype=torch.bfloat16, device=device) for width in (4096, 11008)}
matrices = [torch.randn(shape, dtype=torch.bfloat16, device=device) for shape in shapes]
operations = sum(2 * tokens * rows * columns for rows, columns in shapes)
seconds = best_seconds(lambda: [inputs[matrix.shape[1]] @ matrix.T for matrix in matrices])
rates["bf16_operations_per_second"] = operations / seconds
square = [torch.randn(8192, 8192, dtype=torch.bfloat16, device=device) for _ in range(2)]
rates["bf16_operations_per_second_8192"] = 2 * 8192**3 / best_seconds(lambda: square[0] @ square[1])
print(json.dumps(rates))
