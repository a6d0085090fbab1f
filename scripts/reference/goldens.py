#!/usr/bin/env python3
"""Makes the small checkpoints and goldens of tests/golden with Hugging Face transformers, on CPU.

    pip install -r scripts/reference/requirements.txt
    python scripts/reference/goldens.py tests/golden

Each model is a random GemmaForCausalLM. Beside its checkpoint, `golden.safetensors` holds, computed in f32:

    prompt         i32 [n]           random token ids that start with <bos>
    logits         f32 [n, vocab]    after each token
    greedy         i32 [64]          greedy continuation of the prompt
    embedded       f32 [n, hidden]   input of the first layer                 (mqa only, first 32 tokens)
    layer.<i>      f32 [n, hidden]   output of layer i, before the final norm (mqa only, first 32 tokens)
    bf16_error     f32 [4]           |logits in bf16 - logits in f32| / max |logits in f32|: 50th, 90th, 99th, 100th
                                     percentile, of transformers' own bf16
    bf16_top1      f32 [1]           share of positions where its bf16 and f32 agree on the largest logit
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GemmaConfig, GemmaForCausalLM

MODELS = {
    # The 7B's shape in small: heads * head_dim != hidden, as many key/value heads as query heads.
    "mha": dict(hidden_size=48, intermediate_size=128, num_hidden_layers=2, num_attention_heads=8,
                num_key_value_heads=8, head_dim=8, stored=torch.float32, prompt=300),
    # The 2B's: one key/value head. 500 tokens, because RoPE errors do not show in short prompts.
    "mqa": dict(hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=8,
                num_key_value_heads=1, head_dim=16, stored=torch.bfloat16, prompt=500),
    "gqa": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=8,
                num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, stored=torch.float16, prompt=300),
}
VOCAB, GREEDY = 256, 64


def randomize(model):
    """Weights that make a model whose logits and attention are not flat, as a trained one's are not."""
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data.normal_(0.0, 0.2)
        elif "embed_tokens" in name or "lm_head" in name:
            p.data.normal_(0.0, 0.05)  # small: else each token predicts itself
        else:
            p.data.normal_(0.0, 2.0 / p.shape[1] ** 0.5)


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids[None], use_cache=False).logits[0].float()


def make(out: Path, name: str, seed: int):
    spec = dict(MODELS[name])
    stored, length = spec.pop("stored"), spec.pop("prompt")
    torch.manual_seed(seed)
    config = GemmaConfig(vocab_size=VOCAB, max_position_embeddings=1024, pad_token_id=0, bos_token_id=2,
                         eos_token_id=1, attn_implementation="eager", **spec)
    model = GemmaForCausalLM(config).eval()
    randomize(model)
    for p in model.parameters():  # f32 with the values that are stored; model.to() would round RoPE's frequencies too
        p.data = p.data.to(stored).float()
    prompt = torch.cat([torch.tensor([2]), torch.randint(4, VOCAB, (length - 1,))])

    weights = {n: p.detach().to(stored).contiguous() for n, p in model.named_parameters()}
    golden = {"prompt": prompt.int()}
    trace = {}
    if name == "mqa":
        def hook(i):
            def record(_module, args, output):
                trace.setdefault("embedded", args[0][0, :32].clone() if i == 0 else None)
                trace[f"layer.{i}"] = (output[0] if isinstance(output, tuple) else output)[0, :32].clone()
            return record
        handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(model.model.layers)]
        logits_of(model, prompt)
        for handle in handles:
            handle.remove()
        golden |= trace
    logits = logits_of(model, prompt)
    golden["logits"] = logits

    ids, margin = prompt, float("inf")
    for _ in range(GREEDY):  # without a cache: independent of any cache's correctness
        last = logits_of(model, ids)[-1]
        top = last.topk(2).values
        margin = min(margin, float(top[0] - top[1]))
        ids = torch.cat([ids, last.argmax()[None]])
    golden["greedy"] = ids[length:].int()

    # As from_pretrained(dtype=bfloat16) does it: parameters in bf16, RoPE's frequencies in f32.
    for p in model.parameters():
        p.data = p.data.bfloat16()
    low = logits_of(model, prompt)
    error = ((low - logits).abs() / logits.abs().max()).flatten()
    golden["bf16_error"] = torch.quantile(error, torch.tensor([0.5, 0.9, 0.99, 1.0]))
    golden["bf16_top1"] = (low.argmax(-1) == logits.argmax(-1)).float().mean()[None]

    dir = out / name
    dir.mkdir(parents=True, exist_ok=True)
    save_file(weights, dir / "model.safetensors", metadata={"format": "pt"})
    save_file({n: t.detach().contiguous() for n, t in golden.items()}, dir / "golden.safetensors")
    text = json.loads(config.to_json_string(use_diff=False))
    keep = ["model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "hidden_act",
            "hidden_activation", "rope_theta", "rope_parameters", "tie_word_embeddings"]
    (dir / "config.json").write_text(json.dumps({k: text[k] for k in keep if k in text}, indent=2) + "\n")
    print(name, "parameters", sum(p.numel() for p in model.parameters()), "smallest greedy margin", margin,
          "distinct", len(set(golden["greedy"].tolist())), "bf16", golden["bf16_error"].tolist(), golden["bf16_top1"].item())


if __name__ == "__main__":
    for seed, name in enumerate(MODELS):
        make(Path(sys.argv[1]), name, seed)
