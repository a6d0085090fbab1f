"""Draws the training conversations and the held-out items; both depend on the seed alone.

    python generate.py show                  a few conversations
    python generate.py held-out FILE         writes the held-out items as JSON lines
    python generate.py check FILE            fails if a prompt of FILE is in the training text
"""

import json
import random
import sys

from skills import HELD_OUT, SHARES, SINGLE_TURN, SKILLS, TRAIN

TRAINING_SEED, HELD_OUT_SEED = 1, 2
TRAINING_ITEMS = 600_000  # more than train.py reads
PER_SKILL = 40
UNSCORED = {"small-talk"}  # a handful of set phrases: nothing to hold out


def training_items(seed=TRAINING_SEED):
    """An endless stream of (skill, turns)."""
    rng = random.Random(seed)
    skills, shares = list(SHARES), list(SHARES.values())
    while True:
        skill = rng.choices(skills, shares)[0]
        yield skill, SKILLS[skill](rng, TRAIN)


def held_out_items():
    """`PER_SKILL` different items of every scored skill."""
    rng = random.Random(HELD_OUT_SEED)
    items = []
    for skill in SKILLS:
        seen = set()
        while skill not in UNSCORED and len(seen) < PER_SKILL:
            turns = SKILLS[skill](rng, HELD_OUT)
            prompt = tuple(user for user, _ in turns)
            if prompt not in seen:
                seen.add(prompt)
                items.append({"skill": skill, "turns": [{"user": user, "model": model} for user, model in turns]})
    return items


def check(path):
    # A prompt is a whole conversation up to its last question.
    prompts = {}
    for line in open(path):
        item = json.loads(line)
        prompts[tuple(turn["user"] for turn in item["turns"])] = item["skill"]
    items = training_items()
    for _ in range(TRAINING_ITEMS):
        skill, turns = next(items)
        prompt = tuple(user for user, _ in turns)
        if prompt in prompts:
            sys.exit(f"a held-out prompt of {prompts[prompt]} is in the training text ({skill}): {prompt}")
    print(f"none of {len(prompts)} held-out prompts is among {TRAINING_ITEMS} training items")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["show"]:
            for (skill, turns), _ in zip(training_items(), range(60)):
                print(f"{skill}: " + "\n    ".join(f"{user!r} -> {model!r}" for user, model in turns))
        case ["held-out", path]:
            with open(path, "w") as file:
                file.writelines(json.dumps(item) + "\n" for item in held_out_items())
        case ["check", path]:
            check(path)
        case _:
            sys.exit(__doc__)
