#!/usr/bin/env python3
"""Makes tests/golden/compat/checkpoints.json: changes to a small checkpoint and its config.json, as people's checkpoints
have them, and the logits that Hugging Face transformers computes with each.

    pip install -r scripts/reference/requirements.txt
    python scripts/reference/checkpoint_variations.py tests/golden

No files of a variation are kept: the tests make them from tests/golden/mqa with the same few operations.

    config     a merge patch of config.json, in which null is a value; or the file's whole text
    without    fields taken from config.json
    tensors    operations on the tensors, in order; see OPERATIONS
    files      safetensors files: [name, what its tensors' names contain, operations on this file's tensors]
    index      model.safetensors.index.json: tensors whose names contain a text -> the file that it names; a list of such
               pairs, or the file's whole text
    texts      other files, by name
    prompt     another one than that of all

`expected` has, computed in f32,

    logits     after the prompt's last token
    greedy     GREEDY tokens that follow it, with a cache
    missing    tensors that transformers initialised at random: their logits are not recorded
    as         instead of logits and greedy: the variation that has the same
    error      transformers refuses to load it
"""
import json
import logging
import re
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

PROMPT, GREEDY = 16, 8
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64}
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
Q, K, V, O = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkvo")


def cast(tensors, part, dtype):
    return {name: t.to(DTYPES[dtype]) if part in name else t for name, t in tensors.items()}


def with_rows(tensors, part, rows):
    """The first rows, or all of them again and again, rotated by one column more in each round."""
    def made(t):
        return torch.stack([t[row % len(t)].roll(row // len(t)) for row in range(rows)])

    return {name: made(t) if part in name else t for name, t in tensors.items()}


def with_columns(tensors, part, columns):
    """The first columns."""
    return {name: t[:, :columns] if part in name else t for name, t in tensors.items()}


OPERATIONS = {
    "remove": lambda tensors, part: {name: t for name, t in tensors.items() if part not in name},
    "copy": lambda tensors, old, new: tensors | {new: tensors[old].clone()},
    "rename": lambda tensors, old, new: {name.replace(old, new): t for name, t in tensors.items()},
    "reverse": lambda tensors, name: tensors | {name: tensors[name].flip(0)},
    "zeros": lambda tensors, name, dtype, dims: tensors | {name: torch.zeros(dims, dtype=DTYPES[dtype])},
    "reshape": lambda tensors, name, dims: tensors | {name: tensors[name].reshape(dims)},
    "cast": cast,
    "rows": with_rows,
    "columns": with_columns,
}


def changed(tensors, operations):
    for name, *arguments in operations:
        tensors = OPERATIONS[name](tensors, *arguments)
    return tensors


VARIATIONS = {}


def variation(name, **changes):
    assert name not in VARIATIONS, name
    VARIATIONS[name] = changes


def field(name, *values, tensors=()):
    """A field of config.json with other values."""
    for value in values:
        more = {"tensors": list(tensors)} if tensors else {}
        variation(f"{name} {json.dumps(value)}", config={name: value}, **more)


variation("as it is")

# --- Fields absent, null, or with another value.
FIELDS = ["model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "hidden_act", "rope_parameters",
          "tie_word_embeddings"]
for name in FIELDS:
    variation(f"without {name}", without=[name])
    field(name, None)
for name in ["rope_theta", "rope_scaling", "attention_bias", "attention_dropout", "use_bidirectional_attention", "is_causal",
             "pad_token_id", "bos_token_id", "eos_token_id", "torch_dtype", "dtype", "architectures", "transformers_version",
             "hidden_activation", "initializer_range", "use_cache", "layer_types", "sliding_window", "text_config",
             "quantization_config", "auto_map", "per_layer_config", "_name_or_path"]:
    field(name, None)
field("model_type", "gemma2", "gemma3_text", "llama", "Gemma", "")
field("rms_norm_eps", 1e-5, 0.1, 0, 1, "1e-6", -1e-6)
field("max_position_embeddings", 8, 16, 8192, 0, -1, 1024.0)
field("vocab_size", 200, 300, 0, "256", 256.0)
field("hidden_size", 32, 128)
field("num_hidden_layers", 2, 4, 0)
field("intermediate_size", 96)
variation("an MLP of 96 columns", config={"intermediate_size": 96}, tensors=[
    ["rows", "gate_proj", 96], ["rows", "up_proj", 96], ["columns", "down_proj", 96]])
variation("an MLP of 97 columns", config={"intermediate_size": 97}, tensors=[
    ["rows", "gate_proj", 97], ["rows", "up_proj", 97], ["columns", "down_proj", 97]])
variation("two layers", config={"num_hidden_layers": 2}, tensors=[["remove", "layers.2."]])

# --- Attention.
field("head_dim", 8, 15, 32, "16")
field("num_key_value_heads", 2, 3, 8, 0, 16)
field("num_attention_heads", 4, 3, 16)
variation("16 heads of 8", config={"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 8})
variation("one key/value head for each head", config={"num_key_value_heads": 8}, tensors=[
    ["rows", "k_proj", 128], ["rows", "v_proj", 128]])
variation("two key/value heads", config={"num_key_value_heads": 2}, tensors=[["rows", "k_proj", 32], ["rows", "v_proj", 32]])
variation("seven heads", config={"num_attention_heads": 7}, tensors=[["rows", "q_proj", 112], ["columns", "o_proj", 112]])
variation("six heads on three", config={"num_attention_heads": 6, "num_key_value_heads": 3}, tensors=[
    ["rows", "q_proj", 96], ["columns", "o_proj", 96], ["rows", "k_proj", 48], ["rows", "v_proj", 48]])
variation("heads of 12", config={"head_dim": 12}, tensors=[
    ["rows", "q_proj", 96], ["columns", "o_proj", 96], ["rows", "k_proj", 12], ["rows", "v_proj", 12]])
variation("heads of 64", config={"head_dim": 64, "num_attention_heads": 2}, tensors=[["rows", "k_proj", 64], ["rows", "v_proj", 64]])
field("attention_bias", False, True, "yes")
variation("attention_bias with its tensors", config={"attention_bias": True}, tensors=[
    ["zeros", f"model.layers.{layer}.self_attn.{x}_proj.bias", "BF16", [rows]]
    for layer in range(3) for x, rows in [("q", 128), ("k", 16), ("v", 16), ("o", 64)]])
field("attention_dropout", 0.0, 0, 0.1, "none")
field("use_bidirectional_attention", False, True, "all")
field("is_causal", True, False)
field("sliding_window", 4, 4096)
field("layer_types", ["full_attention"] * 3, ["sliding_attention"] * 3, ["full_attention"], ["linear_attention"] * 3)
variation("layers that slide over 4 tokens", config={"sliding_window": 4, "layer_types": ["sliding_attention"] * 3})
variation("a sliding window that is not used", config={"sliding_window": 4, "layer_types": ["full_attention"] * 3})
variation("layers with their own sizes", config={"per_layer_config": {"1": {"intermediate_size": 96}}}, tensors=[
    ["rows", "layers.1.mlp.gate_proj", 96], ["rows", "layers.1.mlp.up_proj", 96], ["columns", "layers.1.mlp.down_proj", 96]])
variation("layers with their own epsilon", config={"per_layer_config": {"1": {"rms_norm_eps": 0.5}}})
field("per_layer_config", {})
for name in ["attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"]:
    field(name, 30.0)

# --- Activation.
for act in ["gelu", "gelu_new", "gelu_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate", "silu", "relu", "gelu_10",
            "nonsense", 3]:
    field("hidden_act", act)
for activation in ["gelu", "gelu_pytorch_tanh", "relu", "gelu_new", "nonsense"]:
    field("hidden_activation", activation)
    variation(f"hidden_activation {activation} alone", without=["hidden_act"], config={"hidden_activation": activation})
for act, activation in [("gelu", "gelu_pytorch_tanh"), ("gelu", None), ("gelu", "gelu"), ("relu", "gelu_pytorch_tanh"),
                        ("relu", "relu"), ("silu", "gelu")]:
    variation(f"hidden_act {act}, hidden_activation {activation}", config={"hidden_act": act, "hidden_activation": activation})

# --- Positions.
BARE = ["rope_parameters"]
for theta in [500.0, 500, 10000.0, "10000", 0, -1.0]:
    variation(f"rope_theta {theta!r} alone", without=BARE, config={"rope_theta": theta})
variation("rope_theta null alone", without=BARE, config={"rope_theta": None})
field("rope_theta", 500.0)
for name, parameters in {
    "theta": {"rope_theta": 500.0}, "theta and type": {"rope_theta": 500.0, "rope_type": "default"}, "nothing": {},
    "the type's old name": {"rope_theta": 500.0, "type": "default"}, "type": {"rope_type": "default"},
    "a theta of text": {"rope_theta": "500"}, "a null theta": {"rope_theta": None}, "a null type": {"rope_theta": 500.0, "rope_type": None},
    "linear": {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}, "an unknown type": {"rope_theta": 500.0, "rope_type": "odd"},
    "dynamic": {"rope_theta": 500.0, "rope_type": "dynamic", "factor": 2.0},
    "a factor": {"rope_theta": 500.0, "rope_type": "default", "factor": 2.0},
    "a partial rotation": {"rope_theta": 500.0, "rope_type": "default", "partial_rotary_factor": 0.5},
    "llama3": {"rope_theta": 500.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8},
}.items():
    variation(f"rope_parameters with {name}", without=BARE, config={"rope_parameters": parameters})
variation("rope_parameters and rope_theta", without=BARE, config={"rope_parameters": {"rope_theta": 500.0}, "rope_theta": 100.0})
variation("rope_parameters without theta and rope_theta", without=BARE, config={
    "rope_parameters": {"rope_type": "default"}, "rope_theta": 500.0})
variation("rope_parameters of layer types", without=BARE, config={
    "rope_parameters": {"full_attention": {"rope_theta": 500.0, "rope_type": "default"}}})
variation("rope_parameters of layer types that are named", without=BARE, config={
    "rope_parameters": {"full_attention": {"rope_theta": 500.0, "rope_type": "default"}}, "layer_types": ["full_attention"] * 3})
field("rope_parameters", 500.0, [], "default")
for name, scaling in {
    "type default": {"type": "default"}, "rope_type default": {"rope_type": "default"}, "nothing": {}, "linear": {"type": "linear", "factor": 2.0},
    "rope_type linear": {"rope_type": "linear", "factor": 2.0}, "dynamic": {"type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}, "a factor of 1": {"type": "linear", "factor": 1.0},
    "a factor alone": {"factor": 2.0}, "theta": {"rope_theta": 100.0},
}.items():
    variation(f"rope_scaling with {name}", without=BARE, config={"rope_scaling": scaling, "rope_theta": 500.0})
variation("rope_scaling beside rope_parameters", config={"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 500.0}})
variation("rope_scaling of theta beside rope_parameters", config={
    "rope_scaling": {"rope_theta": 100.0}, "rope_parameters": {"rope_theta": 500.0}})
field("rope_scaling", False, "linear")
field("partial_rotary_factor", 0.5)

# --- What the model does not depend on.
for dtype in ["bfloat16", "float16", "float32", "float64", "nonsense"]:
    for name in ["torch_dtype", "dtype"]:
        field(name, dtype)
variation("dtype and torch_dtype", config={"dtype": "float16", "torch_dtype": "bfloat16"})
field("architectures", [], ["LlamaForCausalLM"], ["GemmaForSequenceClassification"], ["Gemma2ForCausalLM"], "GemmaForCausalLM")
field("transformers_version", "4.38.0", "99.0.0", 5)
field("initializer_range", 0.5)
field("use_cache", False)
field("pad_token_id", 3, -1, 256, 1000)
field("eos_token_id", [1, 107], 100000)
field("bos_token_id", 100000)
field("auto_map", {"AutoModelForCausalLM": "modeling_gemma.GemmaForCausalLM"})
field("id2label", {"0": "LABEL_0"})
field("some_new_field", {"nested": [1, None]})
field("text_config", {}, {"model_type": "gemma", "rms_norm_eps": 0.1})
variation("all in text_config", config=json.dumps({"model_type": "gemma", "text_config": {"vocab_size": 256, "hidden_size": 64}}))
variation("a generation config", texts={"generation_config.json": json.dumps({
    "eos_token_id": [1, 107], "temperature": 0.0, "top_k": -1, "max_length": 5, "do_sample": True, "unknown": {}})})
for name, text in {"a list": "[]", "nothing": "", "a comment": '{"model_type": "gemma" /* Gemma */}', "a number": "3",
                   "not a number": '{"model_type": "gemma", "initializer_range": NaN}'}.items():
    variation(f"config.json holds {name}", config=text)

# --- The output layer.
for name, operations in {"absent": [], "equal": [["copy", EMBEDDING, HEAD]], "different": [["copy", EMBEDDING, HEAD], ["reverse", HEAD]],
                         "equal in another type": [["copy", EMBEDDING, HEAD], ["cast", HEAD, "F32"]],
                         "of more rows": [["copy", EMBEDDING, HEAD], ["rows", HEAD, 300]]}.items():
    for tie in [True, False, None, "absent"]:
        changes = {"without": ["tie_word_embeddings"]} if tie == "absent" else {"config": {"tie_word_embeddings": tie}}
        variation(f"lm_head {name}, tied {json.dumps(tie)}", tensors=operations, **changes)
for tie in [True, False]:
    variation(f"lm_head instead of the embedding, tied {json.dumps(tie)}", config={"tie_word_embeddings": tie},
              tensors=[["rename", EMBEDDING, HEAD]])
field("tie_word_embeddings", "yes", 0)
variation("an output bias", tensors=[["zeros", "lm_head.bias", "BF16", [256]]])

# --- Files.
HALVES = [["a.safetensors", ["layers.0.", "embed"], []], ["b.safetensors", ["layers.1.", "layers.2.", "model.norm"], []]]
MAP = [["layers.0.", "a.safetensors"], ["embed", "a.safetensors"], ["layers.1.", "b.safetensors"], ["layers.2.", "b.safetensors"],
       ["model.norm", "b.safetensors"]]
WHOLE = [[SINGLE, [""], []]]
REVERSED = [["reverse", EMBEDDING]]
STALE = [[file, parts, REVERSED if "embed" in parts else []] for file, parts, _ in HALVES]
variation("two shards", files=HALVES, index=MAP)
variation("one file and a stale index with its shards", files=WHOLE + STALE, index=MAP)
variation("a stale file and an index with its shards", files=[[SINGLE, [""], REVERSED]] + HALVES, index=MAP)
variation("one file and an index without its shards", files=WHOLE, index=MAP)
variation("one file and an index of it", files=WHOLE, index=[["", SINGLE]])
variation("one file and a damaged index", files=WHOLE, index="{")
variation("an index without shards", files=[], index=MAP)
variation("an index without one shard", files=HALVES[:1], index=MAP)
variation("no weights", files=[])
variation("a file of another name", files=[["weights.safetensors", [""], []]])
variation("an index of files of other names", files=[["weights.safetensors", [""], []]], index=[["", "weights.safetensors"]])
variation("an index that lacks a tensor of its shards", files=HALVES, index=MAP[:-1])
variation("an index that lacks the output layer", files=[HALVES[0], ["b.safetensors", HALVES[1][1] + ["lm_head"], []]], index=MAP,
          tensors=[["copy", EMBEDDING, HEAD], ["reverse", HEAD]])
variation("an index with tensors in the wrong shard", files=HALVES, index=[
    ["layers.0.", "b.safetensors"], ["embed", "a.safetensors"], ["layers.1.", "a.safetensors"], ["layers.2.", "b.safetensors"],
    ["model.norm", "a.safetensors"]])
variation("an index that names a tensor more", files=HALVES, index=MAP + [["+model.extra.weight", "b.safetensors"]])
variation("a tensor in both shards, equal", files=[HALVES[0], ["b.safetensors", HALVES[1][1] + ["embed"], []]], index=MAP)
variation("a tensor in both shards, the second stale", files=[HALVES[0], ["b.safetensors", HALVES[1][1] + ["embed"], REVERSED]], index=MAP)
variation("a tensor in both shards, the first stale", files=[STALE[0], ["b.safetensors", HALVES[1][1] + ["embed"], []]],
          index=[["layers.0.", "a.safetensors"]] + [["embed", "b.safetensors"]] + MAP[2:])
variation("shards in a directory", files=[["sub/" + file, parts, ops] for file, parts, ops in HALVES],
          index=[[part, "sub/" + file] for part, file in MAP])
for name, text in {"without a map": '{"metadata": {}}', "of nothing": '{"metadata": {}, "weight_map": {}}', "of a list": "[]"}.items():
    variation(f"an index {name}", files=HALVES, index=text)
variation("a shard that the index does not name", files=HALVES + [["c.safetensors", ["model.norm"], []]], index=MAP)

# --- Names.
PLAIN = [["rename", "model.", ""]]
variation("names without a prefix", tensors=PLAIN)
variation("names without a prefix, and an output layer", tensors=[["copy", EMBEDDING, HEAD], ["reverse", HEAD]] + PLAIN)
variation("shards, names without a prefix", tensors=PLAIN, files=[HALVES[0], ["b.safetensors", ["layers.1.", "layers.2.", "norm.weight"], []]],
          index=MAP[:4] + [["norm.weight", "b.safetensors"], ["layers.0.", "a.safetensors"]])
variation("the final norm without a prefix", tensors=[["rename", NORM, "norm.weight"]])
variation("one layer without a prefix", tensors=[["rename", "model.layers.1.", "layers.1."]])
variation("an embedding with and without a prefix", tensors=[["copy", EMBEDDING, "embed_tokens.weight"]])
for prefix in ["model.model.", "transformer.", "language_model.model.", "base_model.model.model.", "_orig_mod.model.", "module.model."]:
    variation(f"names with {prefix}", tensors=[["rename", "model.", prefix]])
variation("lm_head with the model's prefix", tensors=[["copy", EMBEDDING, "model.lm_head.weight"], ["reverse", "model.lm_head.weight"]])
variation("norms of old names", tensors=[["rename", "layernorm.weight", "layernorm.gamma"]])

# --- Types.
for dtype in ["F16", "F32", "F64"]:
    variation(f"all {dtype}", tensors=[["cast", "", dtype]])
    variation(f"norms {dtype}", tensors=[["cast", "norm", dtype]])
    variation(f"embedding {dtype}", tensors=[["cast", "embed", dtype]])
    variation(f"one matrix {dtype}", tensors=[["cast", "layers.1.mlp.up_proj", dtype]])
variation("matrices F16, norms F32", tensors=[["cast", "", "F16"], ["cast", "norm", "F32"]])
variation("F32 and F16 shards", files=[["a.safetensors", HALVES[0][1], [["cast", "", "F32"]]],
                                       ["b.safetensors", HALVES[1][1], [["cast", "", "F16"]]]], index=MAP)
variation("norms of whole numbers", tensors=[["cast", "norm", "I64"]])
variation("a matrix of whole numbers", tensors=[["cast", Q, "I64"]])

# --- Tensors too many, too few, of other shapes.
variation("frequencies of each layer", tensors=[
    ["zeros", f"model.layers.{layer}.self_attn.rotary_emb.inv_freq", "F32", [8]] for layer in range(3)])
variation("frequencies of the model", tensors=[["zeros", "model.rotary_emb.inv_freq", "F32", [8]]])
variation("frequencies in another type", tensors=[["zeros", "model.rotary_emb.inv_freq", "BF16", [8]]])
for name, dims in [("model.extra.weight", [4]), ("v_head.summary.weight", [1, 64]), ("score.weight", [2, 64]),
                   ("model.layers.3.input_layernorm.weight", [64]), ("model.layers.0.self_attn.q_norm.weight", [16]),
                   ("model.layers.0.mlp.up_proj.input_scale", []), ("model.layers.0.self_attn.q_proj.bias", [128]),
                   ("model.embed_tokens.embed_scale", []), ("model.layers.0.self_attn.masked_bias", []), ("position_ids", [1, 16])]:
    variation(f"one more: {name}", tensors=[["zeros", name, "F32", dims]])
variation("a masked bias of each layer", tensors=[["zeros", "model.layers.0.self_attn.bias", "F32", [1, 1, 8, 8]]])
for name in [EMBEDDING, NORM, Q, O, "model.layers.1.mlp.up_proj.weight", "model.layers.2.input_layernorm.weight", "layers.2."]:
    variation(f"missing: {name}", tensors=[["remove", name]])
variation("q_proj of more rows", tensors=[["rows", Q, 144]])
variation("q_proj transposed", tensors=[["reshape", Q, [64, 128]]])
variation("q_proj in three dimensions", tensors=[["reshape", Q, [8, 16, 64]]])
variation("a norm of one row", tensors=[["reshape", NORM, [1, 64]]])
variation("a norm of more numbers", tensors=[["rows", NORM, 65]])
variation("an embedding of more rows", tensors=[["rows", EMBEDDING, 300]])

# --- Vocabularies.
for size in [19, 128, 255, 257, 258, 260, 300, 511, 777]:
    small = {"prompt": [2, *range(3, 18)]} if size < 255 else {}
    variation(f"a vocabulary of {size}", config={"vocab_size": size}, tensors=[["rows", EMBEDDING, size]], **small)
    variation(f"a vocabulary of {size}, an output layer", config={"vocab_size": size, "tie_word_embeddings": False},
              tensors=[["rows", EMBEDDING, size], ["copy", EMBEDDING, HEAD], ["reverse", HEAD]], **small)
variation("a vocabulary of 257 in F32", config={"vocab_size": 257}, tensors=[["rows", EMBEDDING, 257], ["cast", "", "F32"]])
variation("a vocabulary of 257 without prefix, padding at its end", config={"vocab_size": 257, "pad_token_id": 256},
          tensors=[["rows", EMBEDDING, 257]] + PLAIN)


def patched(target, patch):
    """A merge patch in which null is a value."""
    if not isinstance(patch, dict) or not isinstance(target, dict):
        return patch
    return target | {key: patched(target.get(key), value) for key, value in patch.items()}


def write(dir, base, config, changes):
    """Makes a variation's files."""
    tensors = changed(base, changes.get("tensors", []))
    for file, parts, operations in changes.get("files", WHOLE):
        of_file = {name: t for name, t in tensors.items() if any(part in name for part in parts)}
        (dir / file).parent.mkdir(exist_ok=True)
        of_file = {name: t.clone().contiguous() for name, t in changed(of_file, operations).items()}
        save_file(of_file, dir / file, metadata={"format": "pt"})
    index = changes.get("index")
    if isinstance(index, list):
        index = {name: file for part, file in index for name in [*tensors, "+model.extra.weight"] if part in name}
        index = json.dumps({"metadata": {"total_size": 1}, "weight_map": {name.lstrip("+"): file for name, file in index.items()}})
    patch = changes.get("config", {})
    if isinstance(patch, dict):
        kept = {key: value for key, value in config.items() if key not in changes.get("without", [])}
        patch = json.dumps(patched(kept, patch))
    texts = {"config.json": patch} | ({INDEX: index} if index is not None else {}) | changes.get("texts", {})
    for file, text in texts.items():
        (dir / file).write_text(text)


def run(model, prompt):
    found, cache, greedy, ids = None, None, [], prompt[None]
    for _ in range(GREEDY):
        with torch.no_grad():
            out = model(ids, past_key_values=cache, use_cache=True)
        last, cache = out.logits[0, -1].float(), out.past_key_values
        found = last if found is None else found
        top = last.topk(2).values
        assert not top[0] - top[1] < 2e-4, "too close to tell"
        greedy.append(int(last.argmax()))
        ids = last.argmax()[None, None]
    if not found.isfinite().all():
        return {"error": "the logits are not numbers"}
    return {"logits": [round(x, 5) for x in found.tolist()], "greedy": greedy}


def record(base, config, prompt, changes):
    with tempfile.TemporaryDirectory(prefix="model-") as temp:
        dir = Path(temp)
        write(dir, base, config, changes)
        try:
            torch.manual_seed(0)
            model, info = AutoModelForCausalLM.from_pretrained(
                dir, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
            if info["missing_keys"]:
                return {"missing": sorted(info["missing_keys"])}
            return run(model.eval(), prompt)
        except Exception as e:
            if isinstance(e, AssertionError) and "too close" in str(e):
                raise
            text = re.sub(r"\S*/model-\w+", "DIR", f"{type(e).__name__}: {e}")
            return {"error": re.sub(r"\s+", " ", text)[:120]}


def main(golden):
    logging.disable(logging.WARNING)
    base = load_file(golden / "mqa" / SINGLE)
    config = json.loads((golden / "mqa/config.json").read_text())
    prompt = load_file(golden / "mqa/golden.safetensors")["prompt"][:PROMPT].long()
    seen, lines = {}, []
    for name, changes in VARIATIONS.items():
        try:
            expected = record(base, config, torch.tensor(changes.get("prompt", prompt)), changes)
        except Exception as e:
            raise SystemExit(f"{name}: {e}")
        if "logits" in expected:
            first = seen.setdefault(json.dumps(expected), name)
            expected = expected if first == name else {"as": first}
        print(f"{name}: {json.dumps(expected)[:150]}")
        lines.append(json.dumps({"name": name, "changes": changes, "expected": expected}, ensure_ascii=False))
    head = json.dumps({"prompt": prompt.tolist()})[:-1]
    text = ",\n".join(lines)
    (golden / "compat/checkpoints.json").write_text(f'{head}, "variations": [\n{text}\n]}}\n')
    print(len(lines), "variations,", len(seen), "with logits of their own")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
