"""Writes a Gemma checkpoint as GGUF for llama.cpp, in BF16, Q8_0 or Q4_0.

    python to_gguf.py MODEL OUT [BF16|Q8_0|Q4_0 ...]         makes OUT/BF16.gguf and so on

The vocabulary is left out: what is measured takes token ids.
"""

import argparse
import json
import pathlib

import gguf
import llama_cpp
import numpy
import torch
from safetensors import safe_open

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{NAMES[parts[2]]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm"}[parts[0]] + ".weight"


def write_bf16(model, path):
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "gemma")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                tensor = tensors.get_tensor(name)
                if tensor.dim() == 1:  # llama.cpp multiplies norms by the weight itself
                    writer.add_tensor(gguf_name(name), tensor.float().numpy() + numpy.float32(1))
                else:
                    bits = tensor.to(torch.bfloat16).view(torch.int16).numpy().view(numpy.uint8)
                    writer.add_tensor(gguf_name(name), bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("types", nargs="*", default=["BF16", "Q8_0", "Q4_0"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    bf16 = args.out / "BF16.gguf"
    if not bf16.exists():
        write_bf16(args.model, bf16)
    for kind in args.types:
        path = args.out / f"{kind}.gguf"
        if not path.exists():
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
            if llama_cpp.llama_model_quantize(str(bf16).encode(), str(path).encode(), params) != 0:
                raise SystemExit(f"llama.cpp could not make {path}")


main()
