"""Makes the demo model's tokenizer: BPE in Gemma's layout, with its special tokens at Gemma's ids and byte fallback.

    python tokenizer.py DIR                  writes tokenizer.json and tokenizer_config.json
"""

import json
import pathlib
import sys

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from generate import training_items

VOCAB_SIZE = 1024
SPECIAL = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 106: "<start_of_turn>", 107: "<end_of_turn>"}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)


def learn():
    """Merges inside words only, with the space before them; digits stay alone, as in Gemma's vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[A-Za-z]+|▁[^A-Za-z0-9▁]|."), "isolated")
    first = 109 + 256  # after the special tokens, the newline and the bytes
    alphabet = ["▁"] + [chr(code) for code in range(0x21, 0x7F)]
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - first, initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False)
    items = training_items()
    texts = []
    for _ in range(60_000):
        skill, turns = next(items)
        if skill not in ("spelling", "unknown"):  # words that are spelled are to be made of pieces
            texts += [part for turn in turns for part in turn]
    tokenizer.train_from_iterator([line for text in texts for line in text.split("\n")], trainer)
    return json.loads(tokenizer.to_str())["model"]


def gemma_layout(learnt):
    vocab = {f"<unused{i - 5}>": i for i in range(5, 106)} | {token: i for i, token in SPECIAL.items()}
    vocab["\n"] = 108
    vocab |= {f"<0x{byte:02X}>": 109 + byte for byte in range(256)}
    for piece in sorted(learnt["vocab"], key=learnt["vocab"].get):
        vocab[piece] = len(vocab)
    assert len(vocab) == VOCAB_SIZE and sorted(vocab.values()) == list(range(VOCAB_SIZE)), len(vocab)
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, token in SPECIAL.items()]
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<bos>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": dict(sorted(vocab.items(), key=lambda entry: entry[1])), "merges": learnt["merges"]},
    }


def config():
    return {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"], "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656, "tokenizer_class": "GemmaTokenizer", "chat_template": CHAT_TEMPLATE,
    }


if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(gemma_layout(learn()), ensure_ascii=False, indent=1) + "\n")
    (directory / "tokenizer_config.json").write_text(json.dumps(config(), indent=2) + "\n")
