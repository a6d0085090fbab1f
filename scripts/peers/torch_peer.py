"""transformers on the measurements of measure.py: `torch_peer.py MODEL DTYPE PROMPTS DECODE DEPTH THREADS`, one JSON object on stdout."""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

model, dtype, prompts, decode, depth, threads = sys.argv[1:]
decode, depth = int(decode), int(depth)
torch.set_num_threads(int(threads))
model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))


@torch.inference_mode()
def forward(tokens, cache=None):
    """The most likely next token, the cache, and the seconds that it took."""
    started = time.perf_counter()
    out = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = int(out.logits[0, -1].argmax())
    return token, out.past_key_values, time.perf_counter() - started


def prompt(length):
    return forward([100 + i * 7919 % 200_000 for i in range(length)])


prompt(16)  # the first one maps the weights
prefill = {n: int(n) / prompt(int(n))[2] for n in prompts.split(",")}
token, cache, _ = prompt(depth)
seconds = 0
for _ in range(decode):
    token, cache, took = forward([token], cache)
    seconds += took
print(json.dumps({"prefill": prefill, "decode": decode / seconds}))
