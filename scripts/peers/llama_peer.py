"""llama.cpp on the measurements of measure.py: `llama_peer.py GGUF PROMPTS DECODE DEPTH THREADS`, one JSON object on stdout."""

import json
import sys
import time

import llama_cpp

path, prompts, decode, depth, threads = sys.argv[1:]
decode, depth, threads = int(decode), int(depth), int(threads)
prompts = [int(n) for n in prompts.split(",")]

llama_cpp.llama_backend_init()
model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
params = llama_cpp.llama_context_default_params()
params.n_ctx = max(prompts + [depth + decode]) + 64
params.n_batch = params.n_ubatch = 512
params.n_threads = params.n_threads_batch = threads
context = llama_cpp.llama_init_from_model(model, params)
vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))


def forward(tokens):
    """The most likely next token, and the seconds that it took."""
    started = time.perf_counter()
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) == 0
    logits = llama_cpp.llama_get_logits_ith(context, -1)
    logits[0]  # computed by now
    return 100, time.perf_counter() - started


def prompt(length):
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    return forward([100 + i * 7919 % 200_000 for i in range(length)])


assert vocabulary > 200_100, vocabulary
prompt(16)  # the first one maps the weights
prefill = {str(n): n / prompt(n)[1] for n in prompts}
token, _ = prompt(depth)
seconds = 0
for _ in range(decode):
    token, took = forward([token])
    seconds += took
print(json.dumps({"prefill": prefill, "decode": decode / seconds}))
