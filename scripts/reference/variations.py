#!/usr/bin/env python3
"""Makes tests/golden/compat/variations.json: small changes to the demo model's text files, as people's checkpoints have
them, and what Hugging Face transformers does with each.

    pip install -r scripts/reference/requirements.txt
    python scripts/reference/variations.py tests/golden/compat

A variation is a list of changes: a merge patch for a JSON file of src/demo, in which null is a value, `{"$replace": ...}`
for strings in it, or a file's whole text. For each one it is recorded

    ids            token ids of TEXTS, without what a tokenizer adds by itself, where they are not those of the first
                   variation; or the error
    stop           ids that end `generate`: of the generation config, as `from_pretrained` makes it
    chats          for each of CHATS its text by `apply_chat_template`, and its ids if `ids` are there; or the error, and the
                   text of the same conversation with instructions in the first turn and neighbours joined
"""
import json
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

DEMO = Path(__file__).resolve().parents[2] / "src/demo"
FILES = ["config.json", "tokenizer.json", "tokenizer_config.json"]

TEXTS = [
    "", " ", "hi", "Hi there, how are you?", " two  spaces   three", "tab\tnew\nline\n\n\n", "\r\n", "héllo wörld",
    "漢字かな🙂👩🏽‍🚀\u200d", "<eos> in the <bos>middle<eos>", "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "a" * 70, "\x00\x01\x7f", "<new>x <new> y<new>", "x  <new>  y", "un<new>known", "<|im_start|>user<|im_end|>", "\ufeffbom",
    "e\u0301 \ufb01 \uff1c", "1234567890 3.14 -5", "<unk><pad><mask>", "▁already▁there",
]


def user(text):
    return {"role": "user", "content": text}


def model(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


CHATS = [
    [user("hi")],
    [user(" What is 2+2?\n"), model(" 4 "), user("And 3+3?")],
    [system("Be brief."), user("hi")],
    [user("a"), user("b")],
    [system("s"), system("t"), user("a"), model("b"), user("c"), user("d")],
    [model("first")],
    [user("it's \"quoted\" \\ <b>&amp;</b> é🙂")],
]


def folded(messages):
    turns = []
    for message in messages:
        role = "user" if message["role"] == "system" else message["role"]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + message["content"]
        else:
            turns.append({"role": role, "content": message["content"]})
    return turns


VARIATIONS = {}


def variation(name, **changes):
    """Keyword arguments name a file without its ending: `tokenizer` is a patch of tokenizer.json."""
    assert name not in VARIATIONS, name
    VARIATIONS[name] = {FILE_OF[file]: change for file, change in changes.items()}


FILE_OF = {"config": "config.json", "tokenizer": "tokenizer.json", "tokenizer_config": "tokenizer_config.json",
           "generation_config": "generation_config.json", "chat_template": "chat_template.jinja"}
BASE = {name: (DEMO / name).read_text() for name in FILES}


def template(name, text):
    variation(f"template: {name}", tokenizer_config={"chat_template": text})


def added(id, content, special=True, **flags):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": special} | flags


def with_added(*tokens):
    return {"added_tokens": json.loads(BASE["tokenizer.json"])["added_tokens"] + list(tokens)}


def renamed(pairs):
    return {"$replace": {json.dumps(old): json.dumps(new) for old, new in pairs.items()}}


GEMMA = json.loads(BASE["tokenizer_config.json"])["chat_template"]
CHATML = ("{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
          "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
IM = {"<start_of_turn>": "<|im_start|>", "<end_of_turn>": "<|im_end|>"}

# --- Settings of the tokenizer.
variation("as it is")
for direction in ["Right", "Left"]:
    for length in [1, 8]:
        variation(f"truncation to {length}, {direction}", tokenizer={
            "truncation": {"direction": direction, "max_length": length, "strategy": "LongestFirst", "stride": 0}})
    variation(f"padding to 64, {direction}", tokenizer={
        "padding": {"strategy": {"Fixed": 64}, "direction": direction, "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<pad>"}})
variation("padding to the longest, multiples of 8", tokenizer={
    "padding": {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0,
                "pad_token": "<pad>"}})
variation("truncation and padding", tokenizer={
    "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                "pad_token": "<pad>"}})
variation("no post-processor", tokenizer={"post_processor": None})
variation("merges as strings", tokenizer={"model": {"merges": [
    m if isinstance(m, str) else " ".join(m) for m in json.loads(BASE["tokenizer.json"])["model"]["merges"]]}})
variation("CRLF in tokenizer_config.json", tokenizer_config=BASE["tokenizer_config.json"].replace("\n", "\r\n"))
for name in ["GemmaTokenizerFast", "PreTrainedTokenizerFast", None]:
    variation(f"tokenizer_class {name}", tokenizer_config={"tokenizer_class": name})
variation("model_max_length 16", tokenizer_config={"model_max_length": 16})
variation("padding_side left, truncation_side left", tokenizer_config={"padding_side": "left", "truncation_side": "left"})
variation("add_bos_token false", tokenizer_config={"add_bos_token": False})
variation("add_eos_token true", tokenizer_config={"add_eos_token": True})
variation("clean_up_tokenization_spaces true", tokenizer_config={"clean_up_tokenization_spaces": True})

# --- Added tokens.
variation("a new control token", tokenizer=with_added(added(1024, "<new>")))
variation("a new token that is text", tokenizer=with_added(added(1024, "<new>", special=False)))
variation("two new tokens", tokenizer=with_added(added(1024, "<new>"), added(1025, "<|im_start|>", special=False)))
for flag in ["lstrip", "rstrip", "single_word", "normalized"]:
    for special in [True, False]:
        variation(f"a new token, {flag}, special {special}", tokenizer=with_added(added(1024, "<new>", special, **{flag: True})))
variation("a new token with spaces on both sides", tokenizer=with_added(added(1024, "<new>", lstrip=True, rstrip=True)))
variation("a new token of one character", tokenizer=with_added(added(1024, "é", special=False)))
variation("a new token of a known beginning", tokenizer=with_added(added(1024, "hi there", special=False)))
variation("control tokens renamed", tokenizer=renamed(IM), tokenizer_config={"chat_template": CHATML, "eos_token": "<|im_end|>"})
variation("control tokens renamed, eos an object", tokenizer=renamed(IM), tokenizer_config={
    "chat_template": CHATML,
    "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}})
variation("control tokens renamed, eos as it was", tokenizer=renamed(IM), tokenizer_config={"chat_template": CHATML})
variation("control tokens renamed, eos in the template", tokenizer=renamed(IM), tokenizer_config={
    "chat_template": CHATML.replace("'<|im_end|>'", "eos_token"), "eos_token": "<|im_end|>"})
variation("control tokens renamed everywhere", tokenizer=renamed(IM), tokenizer_config={
    "chat_template": CHATML, "eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
variation("extra special tokens", tokenizer_config={"extra_special_tokens": ["<new>", "<|im_start|>"]})
variation("additional special tokens of text", tokenizer_config={"additional_special_tokens": ["<|im_end|>", {
    "__type": "AddedToken", "content": "<new>", "lstrip": True, "normalized": False, "rstrip": True, "single_word": False}]})
variation("bos renamed", tokenizer=renamed({"<bos>": "<s>"}), tokenizer_config={"bos_token": "<s>"})
variation("eos renamed", tokenizer=renamed({"<eos>": "</s>"}), tokenizer_config={"eos_token": "</s>"})
variation("eos is <end_of_turn>", tokenizer_config={"eos_token": "<end_of_turn>"})
variation("no pad_token", tokenizer_config={"pad_token": None})

# --- What ends a generation.
for eos in [1, 107, [1], [1, 107], [107], [1, 106, 107, 5], []]:
    variation(f"generation_config eos {eos}", generation_config=json.dumps({"eos_token_id": eos}))
    variation(f"config eos {eos}", config={"eos_token_id": eos})
variation("generation_config eos null", generation_config=json.dumps({"eos_token_id": None}))
variation("generation_config without eos", generation_config="{}")
variation("config without eos", config={"eos_token_id": None})
variation("generation_config against config", generation_config=json.dumps({"eos_token_id": [1, 107]}), config={"eos_token_id": 5})
variation("generation_config eos text", generation_config=json.dumps({"eos_token_id": "one"}))
for eos in [[1, 1, 107], [107, 1], [1.0, 107], 1.0, 1.5, "1", True, -1, [-1, 107], 1 << 33, [[1, 107]], {"a": 1}, [None], 1024, [1, 5000], ["<eos>"], 0]:
    variation(f"odd generation_config eos {json.dumps(eos)}", generation_config=json.dumps({"eos_token_id": eos}))
for name, text in {"damaged": "{", "an empty file": "", "a list": "[]", "null": "null", "with a comment": "{} // nothing",
                   "with NaN": '{"eos_token_id": [1, 107], "temperature": NaN}', "with a BOM": '\ufeff{"eos_token_id": [1, 107]}',
                   "with two fields of one name": '{"eos_token_id": 5, "eos_token_id": [1, 107]}'}.items():
    variation(f"generation_config: {name}", generation_config=text)
variation("generation_config null against config", generation_config=json.dumps({"eos_token_id": None}), config={"eos_token_id": [1, 107]})
variation("generation_config [] against config", generation_config=json.dumps({"eos_token_id": []}), config={"eos_token_id": [1, 107]})
variation("generation_config with odd values", generation_config=json.dumps({
    "eos_token_id": 107, "temperature": "hot", "top_p": 7, "max_length": -1, "unknown": {"a": []}, "transformers_version": None}))
for eos in [[1, 107, 107], "1", 1.0, -1, [None], True]:
    variation(f"odd config eos {json.dumps(eos)}", config={"eos_token_id": eos})
variation("generation_config with sampling", generation_config=json.dumps(
    {"eos_token_id": [1, 107], "do_sample": True, "temperature": 0.7, "top_k": 5, "max_new_tokens": 3}))

# --- Where the template is.
variation("chat_template.jinja", chat_template="{{ bos_token }}file:{{ messages[0].content }}")
variation("chat_template.jinja wins", chat_template="{{ bos_token }}file:{{ messages[0].content }}",
          tokenizer_config={"chat_template": "config:{{ messages[0].content }}"})
variation("chat_template.jinja with CRLF", chat_template="{{ bos_token }}a\r\n{% if true %}\r\nb\r\n{% endif %}\r\n")
variation("named templates", tokenizer_config={"chat_template": [
    {"name": "rag", "template": "rag"}, {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}]})
variation("named templates without default", tokenizer_config={"chat_template": [
    {"name": "rag", "template": "rag"}, {"name": "tool_use", "template": "tools"}]})
variation("two templates called default", tokenizer_config={"chat_template": [
    {"name": "default", "template": "first"}, {"name": "default", "template": "{{ bos_token }}last"}]})
variation("a mapping of named templates", tokenizer_config={"chat_template": {
    "rag": "rag", "default": "{{ bos_token }}{{ messages[0].content }}"}})
variation("a mapping of named templates without default", tokenizer_config={"chat_template": {
    "rag": "rag", "tool_use": "tools"}})

# --- Templates.
template("Gemma's with a refusal of system", "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
         "{{ raise_exception('System role not supported') }}{% endif %}" + GEMMA.removeprefix("{{ bos_token }}"))
template("ChatML", CHATML)
template("zephyr", "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] "
         "+ eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
         "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
         "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}")
template("llama 2", "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
         "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
         "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
         "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
         "{% if loop.index0 == 0 and system_message != false %}"
         "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
         "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
         "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
         "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
template("alpaca", "{% set ns = namespace(system='Below is an instruction.') %}{% for m in messages %}"
         "{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}\n\n"
         "{% for m in messages if m.role != 'system' %}### {{ 'Instruction' if m.role == 'user' else 'Response' }}:\n"
         "{{ m.content | trim }}\n\n{% endfor %}### Response:\n")
template("llama 3 with tools", "{{- bos_token }}\n{%- if custom_tools is defined %}\n    {%- set tools = custom_tools %}\n{%- endif %}\n"
         "{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n"
         "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n"
         "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = \"\" %}\n{%- endif %}\n"
         "{%- if tools is not none %}tools{%- endif %}\n{{- system_message }}\n{%- for message in messages %}\n"
         "    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\n"
         "        {{- '<|' + message['role'] + '|>' + message['content'] | trim + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n"
         "{%- if add_generation_prompt %}\n    {{- '<|assistant|>' }}\n{%- endif %}\n")
template("a macro", "{% macro turn(role, text) %}[{{ role }}: {{ text }}]{% endmacro %}{% for m in messages %}"
         "{{ turn(m.role, m.content) }}{% endfor %}")
template("generation tags", "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
         "{% else %}{{ m.content }}{% endif %}{% endfor %}")
template("generation tags that trim", "a {%- generation %} b {%- endgeneration -%} c")
for name, text in {
    "break": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "continue": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "tojson": "{{ messages | tojson }}",
    "tojson indent": "{{ messages | tojson(indent=4) }}",
    "tojson ascii": "{{ messages | tojson(ensure_ascii=true) }}",
    "tojson of constants": "{{ [1, 2.5, true, none, 'x', {'a': []}, {}] | tojson }}",
    "tools none": "{% if tools is not none and tools | length > 0 %}tools{% else %}none{% endif %}",
    "tools iterable": "{% if tools is iterable and tools | length > 0 %}tools{% else %}none{% endif %}",
    "tools in a condition": "{% if tools %}tools{% else %}none{% endif %}{% if not documents %}!{% endif %}",
    "tools defined": "{{ tools is defined }}{{ documents is defined }}{{ nothing is defined }}",
    "constants": "{{ true }} {{ false }} {{ none }} {{ 1 }} {{ 1.0 }} {{ 2.5 }} {{ 'x' }}",
    "lists": "{{ ['a', \"it's\", 1, true, none] }} {{ {'a': 1, 'b': ['c']} }}",
    "a message": "{{ messages[0] }}",
    "undefined": "[{{ nothing }}][{{ messages[0].nothing }}]",
    "attribute of undefined": "{{ nothing.at.all }}",
    "special tokens": "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}|{{ add_generation_prompt }}",
    "whitespace": "  {% if true %}\n  a\n  {% endif %}\n  {{ 'b' }}\n\n",
    "whitespace control": "a  {%- if true -%}  b  {%- endif -%}  c {{- ' d ' -}} e",
    "comments": "a{# no #}b\n{#- none -#}\nc",
    "trailing newline": "{{ messages[0].content }}\n",
    "raw": "{% raw %}{{ x }}{% endraw %}",
    "set block": "{% set x %}[{{ messages[0].content }}]{% endset %}{{ x }}{{ x }}",
    "filters of text": "{{ messages[-1].content | upper }}|{{ ' a ' | trim }}|{{ 'aXa' | replace('X', 'b') }}|{{ 'ab' | capitalize }}|"
                       "{{ 'a b' | title }}|{{ 'Ab' | lower }}|{{ 'abc' | length }}|{{ 'abc' | first }}{{ 'abc' | last }}",
    "filters of lists": "{{ [3, 1, 2] | sort | join(',') }}|{{ [1, 2] | reverse | list }}|{{ messages | map(attribute='role') | join(' ') }}|"
                        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|"
                        "{{ messages | rejectattr('role', 'equalto', 'user') | list | length }}|{{ [1, 2, 3] | sum }}|"
                        "{{ [1, 2] | first }}{{ [1, 2] | last }}|{{ [1, 1, 2] | unique | list }}",
    "default": "{{ nothing | default('d') }}|{{ '' | default('e', true) }}",
    "conversions": "{{ '12' | int + 1 }}|{{ 3 | string + 'x' }}|{{ '2.5' | float }}|{{ 7 // 2 }}|{{ 7 / 2 }}|{{ 7 % 4 }}|{{ 2 ** 3 }}",
    "dictionaries": "{% for k, v in {'b': 1, 'a': 2} | items %}{{ k }}{{ v }}{% endfor %}|{% for k in {'b': 1, 'a': 2} %}{{ k }}{% endfor %}|"
                    "{{ {'a': 1}.get('b', 'none') }}|{{ {'a': 1}.items() | list }}|{{ 'a' in {'a': 1} }}",
    "tests": "{{ 'x' is string }}{{ 1 is number }}{{ {} is mapping }}{{ [] is sequence }}{{ [] is iterable }}{{ none is none }}"
             "{{ true is boolean }}{{ 3 is odd }}{{ 4 is even }}{{ 1 is eq(1) }}{{ 'a' is in(['a']) }}",
    "methods of text": "{{ ' a '.strip() }}|{{ 'a,b'.split(',') }}|{{ 'abc'.startswith('a') }}|{{ 'abc'.endswith('b') }}|{{ 'a'.upper() }}|"
                       "{{ 'abab'.replace('a', 'c') }}|{{ 'xax'.strip('x') }}|{{ ' a'.lstrip() }}|{{ 'a '.rstrip() }}|{{ 'abc'.find('c') }}|"
                       "{{ 'a b'.title() }}|{{ ','.join(['a', 'b']) }}",
    "split and index": "{{ messages[0].content.split(' ')[0] }}|{{ 'a</think>b'.split('</think>')[-1] }}",
    "slices": "{{ messages[::-1][0].role }}|{{ 'hello'[1:3] }}|{{ 'hello'[-2:] }}|{{ [1, 2, 3][1:] }}|{{ messages[1:] | length }}",
    "operators": "{{ 'a' ~ 1 ~ true }}|{{ 'a' + 'b' }}|{{ 'a' * 3 }}|{{ 1 < 2 and not 2 < 1 }}|{{ 'a' if false else 'b' }}|{{ 'x' if false }}",
    "loops": "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% else %}none{% endfor %}",
    "neighbours in loops": "{% for m in messages %}{% if loop.previtem is defined and loop.previtem.role == m.role %}same{% endif %}"
                           "{% if loop.nextitem is defined %}>{% endif %}{% endfor %}",
    "range": "{% for i in range(3) %}{{ i }}{% endfor %}{% for i in range(messages | length - 1, -1, -1) %}{{ i }}{% endfor %}",
    "nested loops": "{% for a in [1, 2] %}{% for b in ['x', 'y'] %}{{ loop.index }}{{ b }}{{ a }}{% endfor %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }}",
    "scope of set": "{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% endfor %}{{ x }}",
    "content is string": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}"
                         "{% endif %}{% endfor %}",
    "raise always": "{{ raise_exception('no chats here') }}",
    "raise on length": "{% if messages | length > 2 %}{{ raise_exception('too many') }}{% endif %}{{ messages[0].content }}",
    "escapes": "{{ '\\n\\t\\'\\\\' }}|{{ \"a\\\"b\" }}|{{ '<b>&' }}",
    "html": "{{ '<b>' }}{{ messages[-1].content }}{{ '<b>' | e }}",
    "a broken tag": "{% for %}",
    "an unknown filter": "{{ messages | nothing }}",
    "an unknown function": "{{ nothing() }}",
    "strftime_now": "{{ strftime_now('%Y') | length }}",
    "no messages used": "constant",
    "empty": "",
    "cyrillic": "Привет, {{ messages[0].content }}",
    "sort by attribute": "{{ messages | sort(attribute='content') | map(attribute='content') | first }}",
    "groupby": "{% for role, group in messages | groupby('role') %}{{ role }}{{ group | length }}{% endfor %}",
    "dictsort": "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}",
    "indent filter": "{{ 'a\\nb' | indent(2) }}",
    "tuple and set": "{% set a, b = 1, 2 %}{{ a }}{{ b }}{{ (1, 2)[0] }}",
    "not in": "{{ 'z' not in 'abc' }}{{ 'tool' not in messages[0] }}",
    "chained comparison": "{{ 1 < 2 < 3 }}",
    "float formatting": "{{ 0.1 + 0.2 }}|{{ 1e20 }}|{{ 3 * 1.0 }}",
    "percent format": "{{ '%s-%d' | format('a', 3) }}",
    "inline if undefined": "{{ messages[0].name if messages[0].name else 'none' }}",
    "filter block": "{% filter upper %}abc{% endfilter %}",
    "call macro with defaults": "{% macro f(a, b='x') %}{{ a }}{{ b }}{% endmacro %}{{ f('1') }}{{ f('1', b='2') }}",
}.items():
    template(name, text)


def fuzzed(count):
    """Texts of all of Unicode but surrogates, with control characters, long runs and control tokens in the middle."""
    draw = random.Random(0)
    ranges = [(0x20, 0x7e), (0, 0x1f), (0x80, 0x24f), (0x370, 0x5ff), (0x900, 0xe7f), (0x2000, 0x2bff), (0x3000, 0xd7ff),
              (0xe000, 0xffff), (0x10000, 0x1ffff), (0x20000, 0x10ffff)]
    words = ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<pad>", "<unk>", " the ", "\n\n", "   ", "▁", "capital of"]

    def piece():
        kind = draw.random()
        if kind < 0.25:
            return draw.choice(words)
        if kind < 0.35:
            return draw.choice("a \n0é🙂") * draw.randrange(1, 60)
        low, high = draw.choice(ranges)
        return "".join(chr(draw.randint(low, high)) for _ in range(draw.randrange(1, 8)))

    return ["".join(piece() for _ in range(draw.randrange(1, 9))) for _ in range(count)]


def patched(target, patch):
    """A merge patch in which null is a value: these files have nulls."""
    if not isinstance(patch, dict) or not isinstance(target, dict):
        return patch
    return target | {key: patched(target.get(key), value) for key, value in patch.items()}


def write(dir, changes):
    for file in FILES:
        shutil.copy(DEMO / file, dir)
    for file, change in changes.items():
        if isinstance(change, str):
            text = change
        elif "$replace" in change:
            text = BASE[file]
            for old, new in change["$replace"].items():
                text = text.replace(old, new)
        else:
            text = json.dumps(patched(json.loads(BASE[file]), change))
        (dir / file).write_bytes(text.encode())


def error_of(e):
    text = re.sub(r"[^\s']*/tmp\w+", "DIR", f"{type(e).__name__}: {e}")
    return {"error": text[:200]}


def record(changes):
    with tempfile.TemporaryDirectory() as temp:
        dir = Path(temp)
        write(dir, changes)
        found = {}
        try:
            generation = GenerationConfig.from_pretrained(dir) if (dir / "generation_config.json").exists() else None
            ids = generation.eos_token_id if generation else None
            if ids is None:
                ids = AutoConfig.from_pretrained(dir).eos_token_id
            found["stop"] = ids if isinstance(ids, list) or ids is None else [ids]
        except Exception as e:
            found["stop"] = error_of(e)
        try:
            tokenizer = AutoTokenizer.from_pretrained(dir)
            found["ids"] = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
        except Exception as e:
            return found | {"ids": error_of(e)}

        def render(messages):
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return {"text": text, "ids": tokenizer(text, add_special_tokens=False).input_ids}

        found["chats"] = []
        for messages in CHATS:
            try:
                found["chats"].append(render(messages))
            except Exception as e:
                chat = error_of(e)
                try:
                    chat["folded"] = render(folded(messages))
                except Exception:
                    pass
                found["chats"].append(chat)
        return found


if __name__ == "__main__":
    variations = [{"name": name, "changes": changes, "expected": record(changes)} for name, changes in VARIATIONS.items()]
    base = variations[0]["expected"]["ids"]
    for expected in [v["expected"] for v in variations[1:]]:
        if expected["ids"] == base:
            del expected["ids"]
            for chat in expected["chats"]:
                for rendered in [chat, chat.get("folded", {})]:
                    rendered.pop("ids", None)
    lines = ",\n".join(json.dumps(v, ensure_ascii=False) for v in variations)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    fuzz = [[text, tokenizer(text, add_special_tokens=False).input_ids] for text in fuzzed(300)]
    head = json.dumps({"texts": TEXTS, "chats": CHATS, "fuzzed": fuzz}, ensure_ascii=True)[:-1]
    (Path(sys.argv[1]) / "variations.json").write_text(f'{head}, "variations": [\n{lines}\n]}}\n')
    print(len(variations), "variations")
