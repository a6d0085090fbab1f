#!/usr/bin/env python3
"""How long an item of MMLU takes with five examples, beside lm-evaluation-harness with transformers: one checkpoint, the same made-up
questions, the same tokens, after the weights are loaded.

    pip install -r scripts/reference/requirements.txt
    python scripts/peers/evaluate.py MODEL [--items 4] [--peer-dtype bfloat16]

MODEL needs a tokenizer that transformers reads (for random weights: Gemma's, which scripts/fetch-test-data.sh fetches).
"""
import argparse
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORDS = """the planet orbit star light water force energy number cell war king law market price river stone metal acid letter first
second which most likely because during after before between without never always a of in is was""".split()
r = random.Random(3)


def words(n):
    return " ".join(r.choice(WORDS) for _ in range(n))


def document():
    return dict(question=words(45) + "?", subject="astronomy", choices=[words(9) for _ in range(4)], answer=r.randrange(4))


def ours(model, data, limit):
    """Seconds of a whole run."""
    command = [ROOT / "target/release/gemma-pjrt", "eval", "--model", model, "--data", data, "--tasks", "mmlu_astronomy",
               "--num-fewshot", "5", "--limit", str(limit), "--context", "2048"]
    started = time.time()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.time() - started
    print(f"{limit} items: {seconds:.1f} s", flush=True)
    return seconds


def peer(model, data, items, dtype):
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    datasets.disable_progress_bars()
    loaded = HFLM(pretrained=str(model), dtype=dtype, device="cpu", batch_size=1, max_length=2048)
    task = load_yaml(TaskManager()._index["mmlu_astronomy"].yaml_path, resolve_func=True)
    files = {split: str(data / f"cais/mmlu/astronomy/{split}.jsonl") for split in ("test", "dev")}
    task.update(dataset_path="json", dataset_name=None, dataset_kwargs=dict(data_files=files))
    seconds = []
    for limit in (1, items + 1):
        started = time.time()
        simple_evaluate(loaded, tasks=[dict(task)], num_fewshot=5, limit=limit, bootstrap_iters=0)
        seconds.append(time.time() - started)
    return (seconds[1] - seconds[0]) / items


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--items", type=int, default=4)
    parser.add_argument("--peer-dtype", default="bfloat16")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        target = folder / "data/cais/mmlu/astronomy"
        target.mkdir(parents=True)
        for split, n in (("test", args.items + 1), ("dev", 5)):
            (target / f"{split}.jsonl").write_text("".join(json.dumps(document()) + "\n" for _ in range(n)))
        # The first item has the five examples to compute: it is not counted, on either side.
        ours(args.model, folder / "data", 1)  # programs are compiled, and the weights are in memory
        one, more = (ours(args.model, folder / "data", n) for n in (1, args.items + 1))
        own = (more - one) / args.items
        other = peer(args.model, folder / "data", args.items, args.peer_dtype)
    print(f"gemma-pjrt {own:.2f} s an item, lm-eval with transformers ({args.peer_dtype}) {other:.2f} s: {other / own:.1f}x")


if __name__ == "__main__":
    main()
