"""Answers the held-out items with transformers in f32, greedily, and writes the tokens of every answer.

    python evaluate.py DIR HELD_OUT TOKENS   DIR: the checkpoint; TOKENS: one JSON line per item, a list of ids for each turn
"""

import json
import sys

import torch
from tokenizers import Tokenizer
from transformers import GemmaForCausalLM

END_OF_TURN, MAX_TOKENS = 107, 96


def answer(model, ids):
    """Greedy tokens after `ids`, without the one that ends them."""
    tokens, cache, new = [], None, ids
    while len(tokens) < MAX_TOKENS:
        with torch.no_grad():
            out = model(input_ids=torch.tensor([new]), past_key_values=cache, use_cache=True)
        token, cache = int(out.logits[0, -1].argmax()), out.past_key_values
        if token in (1, END_OF_TURN):
            break
        tokens.append(token)
        new = [token]
    return tokens


def main(directory, held_out, path):
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(f"{directory}/tokenizer.json")
    model = GemmaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    right, total = {}, {}
    with open(path, "w") as out:
        for line in open(held_out):
            item = json.loads(line)
            ids, answers = [2], []
            for turn in item["turns"]:
                question = f"<start_of_turn>user\n{turn['user']}<end_of_turn>\n<start_of_turn>model\n"
                if answers:
                    question = "<end_of_turn>\n" + question
                ids += tokenizer.encode(question, add_special_tokens=False).ids
                answers.append(answer(model, ids))
                ids += answers[-1]
            out.write(json.dumps(answers) + "\n")
            skill, expected = item["skill"], item["turns"][-1]["model"]
            total[skill] = total.get(skill, 0) + 1
            found = tokenizer.decode(answers[-1])
            right[skill] = right.get(skill, 0) + (found == expected)
            if found != expected:
                print(f"{skill}: {item['turns'][-1]['user']!r} -> {found!r}, not {expected!r}")
    for skill in total:
        print(f"{skill:16} {right[skill]}/{total[skill]}")
    print(f"{'all':16} {sum(right.values())}/{sum(total.values())} = {sum(right.values()) / sum(total.values()):.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
