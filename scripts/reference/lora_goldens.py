#!/usr/bin/env python3
"""Makes tests/golden/lora: LoRA adapters of the golden models, and what PEFT's `merge_and_unload` makes of them.

    pip install -r scripts/reference/requirements.txt
    python scripts/reference/lora_goldens.py tests/golden

Each adapter has a directory as `save_pretrained` writes it, and `golden.safetensors` beside it with

    logits         f32 [32, vocab]   of the merged model in f32, after each of the prompt's first 32 tokens
    merged.<name>  f32               the matrices that it changes, merged in f32
"""
import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GemmaForCausalLM

ADAPTERS = {
    "attention": ("mha", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])),
    "rslora": ("mqa", dict(r=6, lora_alpha=3, use_rslora=True, target_modules="all-linear",
                           rank_pattern={"layers.1.mlp.down_proj": 2})),
    "embedding": ("gqa", dict(r=3, lora_alpha=5, target_modules=["embed_tokens", "lm_head", "o_proj"])),
}


def make(golden: Path, name: str, seed: int):
    base, options = ADAPTERS[name]
    torch.manual_seed(seed)
    model = GemmaForCausalLM.from_pretrained(golden / base, dtype=torch.float32, attn_implementation="eager")
    peft = get_peft_model(model, LoraConfig(**options, task_type="CAUSAL_LM"))
    for parameter_name, parameter in peft.named_parameters():
        if "lora_" in parameter_name:
            parameter.data.normal_(0.0, 0.1)
    out = golden / "lora" / name
    peft.save_pretrained(out)
    config = json.loads((out / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"../../{base}"
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "README.md").unlink(missing_ok=True)

    changed = {m.removesuffix(".lora_A.default").removesuffix(".lora_embedding_A").removeprefix("base_model.model.")
               for m, _ in peft.named_modules() if m.endswith((".lora_A.default", ".lora_embedding_A"))}
    merged = peft.merge_and_unload()
    prompt = load_file(golden / base / "golden.safetensors")["prompt"][:32].long()
    with torch.no_grad():
        logits = merged(prompt[None], use_cache=False).logits[0].float()
    tensors = {"logits": logits.contiguous()}
    parameters = dict(merged.named_parameters())
    for module in sorted(changed):
        tensors[f"merged.{module}.weight"] = parameters[f"{module}.weight"].detach().contiguous().clone()
    save_file(tensors, out / "golden.safetensors")
    print(name, "of", base, "changes", len(changed), "matrices")


if __name__ == "__main__":
    for seed, name in enumerate(ADAPTERS):
        make(Path(sys.argv[1]), name, seed)
