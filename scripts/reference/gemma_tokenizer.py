#!/usr/bin/env python3
"""Makes tests/golden/compat/gemma_tokenizer.json: what Hugging Face transformers makes of texts with Gemma's own tokenizer.

    pip install -r scripts/reference/requirements.txt && scripts/fetch-test-data.sh
    python scripts/reference/gemma_tokenizer.py target/test-data/gemma-tokenizer tests/golden/compat

    texts      [text, ids, decoded]: ids without what a tokenizer adds by itself; where there are more than LONG, the FNV-1a
               hash of their little-endian u32 bytes, in hexadecimal; decoded without control tokens, null if it is the text
    chats      of variations.py's CHATS and MORE: the text by the tokenizer's template, and its ids; or the error, and the
               same of the conversation with instructions in the first turn and neighbours joined
"""
import json
import random
import sys
from pathlib import Path

from transformers import AutoTokenizer
from variations import CHATS, error_of, folded, model, user

LONG = 40
RANGES = [(0x20, 0x7e), (0, 0x1f), (0x7f, 0xa0), (0xa0, 0x24f), (0x300, 0x36f), (0x370, 0x5ff), (0x600, 0x8ff), (0x900, 0xe7f),
          (0x1100, 0x11ff), (0x1d00, 0x1fff), (0x2000, 0x20ff), (0x2100, 0x2bff), (0x3000, 0x30ff), (0x3400, 0xd7ff), (0xe000, 0xf8ff),
          (0xf900, 0xfdff), (0xfe00, 0xfe0f), (0xfe20, 0xffff), (0x10000, 0x107ff), (0x12000, 0x123ff), (0x1d400, 0x1d7ff),
          (0x1f1e6, 0x1f1ff), (0x1f300, 0x1faff), (0x20000, 0x3ffff), (0x40000, 0xdffff), (0xe0000, 0xe01ef), (0xf0000, 0x10ffff)]
TOKENS = ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<pad>", "<unk>", "<mask>", "<2mass>", "[@BOS@]", "<unused0>", "<unused98>",
          "<h1>", "</h1>", "<table>", "<code>", "</code>", "<b>", "\n\n", "\n\n\n", "\t\t", "▁▁"]
LIKE_TOKENS = ["<start_of_turn", "start_of_turn>", "< start_of_turn>", "<START_OF_TURN>", "<start_of_turn >", "<end_of_turn/>", "<<eos>>", "<bos",
               "<0x41>", "<0x0A>", "<unused99>", "<unused>", "[@BOS]", "<h7>", "<|im_start|>", "[INST]", "<bo\u200bs>", "＜bos＞", "\\n", "&lt;bos&gt;"]
WORDS = [" the ", "capital of", "Hello", " world", "naïve", "Straße", "don't", "1234567890", "3.14159", "  indented", "fn main() {", "https://a.b/c?d=e",
         "日本語", "한국어", "नमस्ते", "Привет", "مرحبا", "👩🏽‍🚀", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "e\u0301", "\u0301", "\u200d", "\u200f", "\ufeff", "\u00a0", "\u2028", "▁", " ▁ ", "ﬁ", "Å", "🇩🇪🇩"]
RUNS = "a \n\t0é🙂▁=-_<>\r.xA字\u0301\0"
MORE = [
    [user("Write a hello world program")], [user("")], [user("   \n ")], [user("\ttabs and trailing spaces  \n\n")], [user("日本語で答えて。👩🏽‍🚀 e\u0301")],
    [user("a"), model("  b\n"), user("c\r\nd"), model(""), user("1 < 2 && x > '0' {{ bos_token }} {% if %}")],
    [user("x" * 300), model("y" * 300), user(" " * 40 + "z")],
]


def texts(count):
    draw = random.Random(7)

    def piece():
        kind = draw.random()
        if kind < 0.2:
            return draw.choice(TOKENS)
        if kind < 0.35:
            return draw.choice(LIKE_TOKENS)
        if kind < 0.55:
            return draw.choice(WORDS)
        if kind < 0.65:
            return draw.choice(RUNS) * draw.choice([1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 64, 100])
        low, high = draw.choice(RANGES)
        return "".join(chr(draw.randint(low, high)) for _ in range(draw.randrange(1, 9)))

    found = [run * n for run in RUNS for n in (2, 31, 257)] + TOKENS + LIKE_TOKENS + WORDS + ["a" * 5000, " \n" * 500, "<bos>" * 50]
    while len(found) < count:
        found.append("".join(piece() for _ in range(draw.randrange(1, 10))))
    return found


def hashed(ids):
    state = 0xcbf29ce484222325
    for byte in b"".join(id.to_bytes(4, "little") for id in ids):
        state = (state ^ byte) * 0x100000001b3 % (1 << 64)
    return f"{state:016x}"


def main(source, out):
    tokenizer = AutoTokenizer.from_pretrained(source)

    def line(text):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        return [text, ids if len(ids) <= LONG else hashed(ids), None if decoded == text else decoded]

    def render(messages):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return {"text": text, "ids": tokenizer(text, add_special_tokens=False).input_ids}

    def chat(messages):
        try:
            return {"messages": messages} | render(messages)
        except Exception as e:
            found = {"messages": messages} | error_of(e)
            try:
                return found | {"folded": render(folded(messages))}
            except Exception:
                return found

    lines = [json.dumps(line(text), ensure_ascii=False) for text in texts(500)]
    chats = [json.dumps(chat(messages), ensure_ascii=False) for messages in CHATS + MORE]
    text = '{"texts": [\n' + ",\n".join(lines) + '\n], "chats": [\n' + ",\n".join(chats) + "\n]}\n"
    (out / "gemma_tokenizer.json").write_bytes(text.encode())
    print(len(lines), "texts,", len(chats), "chats")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
