"""Perplexity of a checkpoint folder by Hugging Face transformers: the second opinion of `fedprune eval perplexity`.

usage: perplexity_hf.py MODEL TEXT SEQLEN MAX_WINDOWS      needs: torch transformers
Prints one JSON line. Windows do not overlap; the mean over windows of the mean token loss, exponentiated.
"""
import json
import math
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, text, seqlen, most = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
with open(text, encoding="utf-8", newline="") as file:
    tokens = torch.tensor(tokenizer(file.read())["input_ids"])
windows = tokens[: len(tokens) // seqlen * seqlen].reshape(-1, seqlen)[:most]
losses = []
with torch.no_grad():
    for window in windows:
        logits = model(window[None]).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
zeros = sum((p == 0).sum().item() for n, p in model.named_parameters() if "_proj.weight" in n)
print(json.dumps({"perplexity": math.exp(sum(losses) / len(losses)), "windows": len(windows), "zero_weights": zeros}))
