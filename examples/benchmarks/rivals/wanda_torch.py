#!/usr/bin/env python3
"""Wanda in torch and HF transformers, as one would write it with care: the rival of `fedprune mask compute`.

Block by block: hooks sum the squares of what the linear layers read, a top-k of |W| * norm chooses the weights, they
are zeroed, and the block is run again, so that the next one sees what the pruned model will see. All windows are one
batch, in float32 (bfloat16 on a GPU), with scaled-dot-product attention (causal, no mask tensor) and without autograd;
inputs that several matrices share are measured once; the last block is not run again. Norms are rounded as ours are.
Windows are the first of the text, as with `--sampling sequential`. On a GPU the whole model lies there.

usage: wanda_torch.py MODEL_DIR TEXT_FILE [--nsamples 8] [--seqlen 512] [--group layer|row] [--sparsity 0.5]
                      [--threads 2] [--device cpu|cuda:0] [--out MASKS.npz]          needs: torch transformers numpy
Prints one JSON object: seconds by phase, of the whole process since it was started, and its peak memory.
"""
import os
import time


def process_age_seconds():
    """How long this process has existed: the interpreter's own start counts too."""
    with open("/proc/self/stat") as stat:
        started = int(stat.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    with open("/proc/uptime") as uptime:
        return float(uptime.read().split()[0]) - started


BEFORE = process_age_seconds()
CLOCK = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
from fractions import Fraction  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("text")
parser.add_argument("--nsamples", type=int, default=8)
parser.add_argument("--seqlen", type=int, default=512)
parser.add_argument("--group", choices=["layer", "row"], default="layer")
parser.add_argument("--sparsity", type=Fraction, default=Fraction(1, 2))
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--device", default="cpu")
parser.add_argument("--out")
options = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(options.threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

torch.set_num_threads(options.threads)
DEVICE = torch.device(options.device)
DTYPE = torch.float32 if DEVICE.type == "cpu" else torch.bfloat16

# Matrices by the input that they share; the first of each is where it is measured.
TAPS = [
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    ["self_attn.o_proj"],
    ["mlp.gate_proj", "mlp.up_proj"],
    ["mlp.down_proj"],
]
SECONDS = {"interpreter": BEFORE}


def lap(phase, since):
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    now = time.perf_counter()
    SECONDS[phase] = SECONDS.get(phase, 0.0) + now - since
    return now


def first_windows(tokenizer, text, samples, tokens):
    """Windows from the start; no more of the text is tokenised than they need."""
    needed, characters = samples * tokens, samples * tokens * 8
    while True:
        ids = tokenizer(text[:characters], return_tensors="pt").input_ids[0]
        if len(ids) > needed + 512 or characters >= len(text):
            return ids[:needed].reshape(samples, tokens)
        characters *= 2


def smallest(score, group, sparsity):
    """True where pruned: the smallest scores of the matrix, or of each row."""
    pools = score if group == "row" else score.reshape(1, -1)
    pruned = torch.zeros(pools.shape, dtype=torch.bool, device=score.device)
    count = int(Fraction(pools.shape[1]) * sparsity)
    pruned.scatter_(1, torch.topk(pools, count, dim=1, largest=False, sorted=False).indices, True)
    return pruned.reshape(score.shape)


@torch.inference_mode()
def main():
    now = lap("import", CLOCK)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=DTYPE, attn_implementation="sdpa").eval().to(DEVICE)
    now = lap("load", now)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with open(options.text, encoding="utf-8") as file:
        windows = first_windows(tokenizer, file.read(), options.nsamples, options.seqlen)
    windows = windows.to(DEVICE)
    now = lap("tokenise", now)

    hidden = model.model.embed_tokens(windows)
    positions = torch.arange(options.seqlen, device=DEVICE)[None]
    context = dict(attention_mask=None, position_ids=positions,
                   position_embeddings=model.model.rotary_emb(hidden, positions))
    run = lambda block: (lambda out: out[0] if isinstance(out, tuple) else out)(block(hidden, **context))
    masks = {}
    last = len(model.model.layers) - 1
    for index, block in enumerate(model.model.layers):
        now = time.perf_counter()
        sums, handles = {}, []
        for tap in TAPS:
            def collect(_module, inputs, name=tap[0]):
                flat = inputs[0].reshape(-1, inputs[0].shape[-1])
                sums[name] = flat.double().square_().sum(0)
            handles.append(block.get_submodule(tap[0]).register_forward_pre_hook(collect))
        run(block)
        for handle in handles:
            handle.remove()
        now = lap("measure", now)
        for tap in TAPS:
            norm = (sums[tap[0]] / options.nsamples).sqrt().float().bfloat16().float()
            for name in tap:
                weight = block.get_submodule(name).weight
                pruned = smallest(weight.float().abs() * norm, options.group, options.sparsity)
                weight[pruned] = 0
                if options.out:
                    masks[f"model.layers.{index}.{name}.weight"] = np.packbits(pruned.cpu().numpy(), bitorder="little")
        now = lap("select", now)
        if index < last:
            hidden = run(block)
            now = lap("propagate", now)
    if options.out:
        np.savez(options.out, **masks)
        now = lap("write", now)
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    whole = BEFORE + now - CLOCK
    print(json.dumps(dict(
        seconds=whole,
        seconds_without_import_and_load=whole - sum(SECONDS[phase] for phase in ("interpreter", "import", "load")),
        seconds_without_import=whole - sum(SECONDS[phase] for phase in ("interpreter", "import")),
        seconds_by_phase=SECONDS, peak_memory_bytes=peak,
        peak_device_memory_bytes=torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None,
        device=torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else "cpu", dtype=str(DTYPE), threads=torch.get_num_threads(), torch=torch.__version__,
        samples=options.nsamples, sequence_tokens=options.seqlen, group=options.group, sparsity=str(options.sparsity))))


main()
