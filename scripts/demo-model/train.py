"""Trains the demo model with transformers' GemmaForCausalLM on the CPU and writes it in Hugging Face layout.

    python train.py DIR [--steps N]          DIR holds tokenizer.json; config.json and model.safetensors are added

Rows are chats of unrelated questions, so every answer is learnt at any place of a conversation. Only the model's turns
count in the loss. A run that was broken off goes on from DIR/state.pt.
"""

import argparse
import pathlib
import random
import time

import torch
from tokenizers import Tokenizer
from transformers import GemmaConfig, GemmaForCausalLM

from generate import TRAINING_ITEMS, held_out_items, training_items

TOKENS_PER_STEP = 4096
ROWS = [(160, 0.5), (320, 0.3), (512, 0.2)]  # row length, share of the steps
STEPS = 7400
FALL = 0.7  # the share of the steps in which the rate falls to nothing
CONTEXT = 512
SEED = 0

CONFIG = GemmaConfig(
    vocab_size=1024, hidden_size=192, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=4, head_dim=48,
    intermediate_size=512, hidden_activation="gelu_pytorch_tanh", max_position_embeddings=CONTEXT, rms_norm_eps=1e-6,
    rope_theta=10000.0, pad_token_id=0, eos_token_id=1, bos_token_id=2, tie_word_embeddings=True, initializer_range=0.04,
)


def encode(tokenizer, turns):
    """Ids of a chat without <bos>, and for each id whether the model is to predict it."""
    ids, predicted = [], []

    def add(text, learnt):
        new = tokenizer.encode(text, add_special_tokens=False).ids
        ids.extend(new)
        predicted.extend([learnt] * len(new))

    for user, model in turns:
        add(f"<start_of_turn>user\n{user}<end_of_turn>\n<start_of_turn>model\n", False)
        add(f"{model}<end_of_turn>", True)
        add("\n", False)
    return ids, predicted


def rows(tokenizer, count, length, items, waiting):
    """`count` rows of chats, (ids, predicted) of up to `length` ids, <bos> first. What finds no room waits for later rows."""
    filled = [([2], [False]) for _ in range(count)]
    taken, waiting[:], misses = list(waiting), [], 0
    while misses < count:
        ids, predicted = taken.pop() if taken else encode(tokenizer, next(items)[1])
        row = next((row for row in filled if len(row[0]) + len(ids) <= length), None)
        if row:
            row[0].extend(ids)
            row[1].extend(predicted)
        elif 1 + len(ids) <= CONTEXT:
            waiting.append((ids, predicted))
            misses += len(ids) < length
    waiting += taken
    return filled


def batch(drawn):
    width = max(len(ids) for ids, _ in drawn)
    ids = torch.zeros(len(drawn), width, dtype=torch.long)
    predicted = torch.zeros(len(drawn), width, dtype=torch.bool)
    for row, (tokens, learnt) in enumerate(drawn):
        ids[row, : len(tokens)], predicted[row, : len(learnt)] = torch.tensor(tokens), torch.tensor(learnt)
    return ids, predicted


def logits_and_targets(model, ids, predicted):
    """Logits only where a prediction counts. Rows are padded at the end, which a causal model does not see."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    return model.lm_head(hidden[predicted[:, 1:]]), ids[:, 1:][predicted[:, 1:]]


def held_out_scores(model, tokenizer, items):
    """Share of items per skill whose last answer is predicted without an error."""
    right, total = {}, {}
    for start in range(0, len(items), 64):
        part = items[start : start + 64]
        drawn = []
        for item in part:
            turns = [(turn["user"], turn["model"]) for turn in item["turns"]]
            ids, predicted = encode(tokenizer, turns)
            last = encode(tokenizer, turns[-1:])[1]
            drawn.append(([2] + ids, [False] * (1 + len(ids) - len(last)) + last))
        ids, predicted = batch(drawn)
        with torch.no_grad():
            logits, targets = logits_and_targets(model, ids, predicted)
        hits = iter((logits.argmax(-1) == targets).split([sum(learnt) for _, learnt in drawn]))
        for item in part:
            total[item["skill"]] = total.get(item["skill"], 0) + 1
            right[item["skill"]] = right.get(item["skill"], 0) + bool(next(hits).all())
    return {skill: right[skill] / total[skill] for skill in total}


def orthogonal(update):
    """The nearest matrix whose rows or columns are orthonormal: Newton-Schulz as in Muon (Jordan et al., 2024)."""
    x = update.T if update.size(0) > update.size(1) else update
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if update.size(0) > update.size(1) else x


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal updates, in f32: torch's own works in bfloat16, which this CPU only emulates."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                update = orthogonal(p.grad.lerp(momentum, 0.95))
                p.mul_(1 - group["lr"] * 0.05)
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def train(directory, steps):
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = GemmaForCausalLM(CONFIG)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    peaks = [3e-3, 3e-3]
    optimizers = [Muon(matrices, peaks[0]), torch.optim.AdamW(others, peaks[1], betas=(0.9, 0.98), weight_decay=0.0)]

    used = 0

    def items():
        nonlocal used
        for item in training_items():
            used += 1
            assert used <= TRAINING_ITEMS, "generate.py check would not see all training items"
            yield item

    shared = items()
    waiting = []
    rng = random.Random(SEED)
    held_out = held_out_items()
    started, running, done = time.time(), None, 0
    state = directory / "state.pt"
    if state.exists():
        saved = torch.load(state)
        done = saved["done"]
        model.load_state_dict(saved["model"])
        for optimizer, values in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(values)
        print(f"going on after step {done}", flush=True)
    for step in range(steps):
        length = rng.choices(*zip(*ROWS))[0]
        drawn = rows(tokenizer, TOKENS_PER_STEP // length, length, shared, waiting)
        if step < done:
            continue
        # Warm up, stay, and fall.
        rate = min(1, (step + 1) / 100, (steps - step) / (FALL * steps))
        for optimizer, peak in zip(optimizers, peaks):
            optimizer.param_groups[0]["lr"] = peak * rate
        ids, predicted = batch(drawn)
        logits, targets = logits_and_targets(model, ids, predicted)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 49:
            print(f"step {step + 1}/{steps} loss {running:.4f} {used} items {time.time() - started:.0f} s", flush=True)
        if step % 250 == 249 or step + 1 == steps:
            values = [optimizer.state_dict() for optimizer in optimizers]
            torch.save({"done": step + 1, "model": model.state_dict(), "optimizers": values}, state)
        if step % 500 == 499 or step + 1 == steps:
            scores = held_out_scores(model, tokenizer, held_out)
            print(f"held out: {sum(scores.values()) / len(scores):.3f} " + " ".join(f"{k} {v:.2f}" for k, v in scores.items()), flush=True)
            save(model, directory)


def save(model, directory):
    """bf16, as Gemma is published."""
    copy = GemmaForCausalLM(CONFIG)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(directory)
    align(directory / "model.safetensors")


def align(path):
    """Pads the header so that the tensors begin at a multiple of 64 bytes, where they can be used in place."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:end] + b" " * (-end % 64)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    train(arguments.directory, arguments.steps)
