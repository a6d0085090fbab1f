#!/usr/bin/env python3
"""Makes tests/golden/compat/lm_eval.json: what lm-evaluation-harness with transformers does with some of the variations of
variations.py.

    pip install -r scripts/reference/requirements.txt
    python scripts/reference/lm_eval_variations.py tests/golden

The tasks' data are those of tests/golden/eval. For each variation and task it is recorded, in the order of the documents,

    scored     [context's token ids, continuation's, log-likelihood, whether it is greedy] for each choice
    written    [context's token ids, answer]
    stop       ids and texts that end an answer
    as         instead of all these: the variation that has the same
"""
import json
import shutil
import sys
import tempfile
from pathlib import Path

from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from variations import DEMO, VARIATIONS, write

MAX_LENGTH, WORDS_MAX, DOCS = 256, 8, 3
NAMES = [
    "as it is", "generation_config eos [1, 107]", "generation_config eos [1, 106, 107, 5]", "config eos [107]", "generation_config with sampling",
    "control tokens renamed", "bos renamed", "eos is <end_of_turn>", "add_bos_token false", "add_eos_token true", "no post-processor",
    "truncation to 8, Right", "padding to 64, Left", "chat_template.jinja", "template: zephyr",
]
# Task, dataset, split, in chats.
TASKS = [("piqa", "baber/piqa/data", "validation", False), ("nq_open", "google-research-datasets/nq_open/data", "validation", False),
         ("nq_open", "google-research-datasets/nq_open/data", "validation", True)]


class Recorded(HFLM):
    """Keeps what it is asked."""

    def _loglikelihood_tokens(self, requests, **more):
        found = super()._loglikelihood_tokens(requests, **more)
        self.found["scored"] = [[context, continuation, round(ll, 4), greedy]
                                for (_, context, continuation), (ll, greedy) in zip(requests, found)]
        return found

    def _model_generate(self, context, max_length, stop=None, **more):
        ids = self.model.generation_config.eos_token_id
        self.found["stop"] = [ids, stop]
        self.contexts.append(context[0].tolist())
        return super()._model_generate(context, max_length, stop, **more)

    def generate_until(self, requests, **more):
        self.contexts = []
        answers = super().generate_until(requests, **more)
        # It begins with the longest.
        lengths = [-len(self.tok_encode(request.args[0])) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: (lengths[i], requests[i].args[0]))
        contexts = {i: context for i, context in zip(order, self.contexts)}
        self.found["written"] = [[contexts[i], answer] for i, answer in enumerate(answers)]
        return answers


def record(golden, manager, changes):
    with tempfile.TemporaryDirectory() as temp:
        dir = Path(temp)
        write(dir, changes)
        shutil.copy(DEMO / "model.safetensors", dir)
        model = Recorded(pretrained=temp, dtype="float32", device="cpu", batch_size=1, max_length=MAX_LENGTH)
        found = []
        for task, data, split, in_chats in TASKS:
            files = {s: str(golden / "eval/data" / data / f"{s}-00000-of-00001.parquet") for s in (split, "train")}
            config = load_yaml(manager._index[task].yaml_path, resolve_func=True)
            config.update(dataset_path="parquet", dataset_name=None, dataset_kwargs={"data_files": files})
            if "generation_kwargs" in config:
                config["generation_kwargs"] = {**config["generation_kwargs"], "max_gen_toks": WORDS_MAX}
            model.found = {}
            try:
                evaluator.simple_evaluate(model, tasks=[config], num_fewshot=1, limit=DOCS, apply_chat_template=in_chats,
                                          fewshot_as_multiturn=in_chats, bootstrap_iters=0, task_manager=manager)
                found.append(model.found)
            except Exception as e:
                found.append({"error": f"{type(e).__name__}: {e}".replace(temp, "DIR")[:160]})
        return found


def main(golden):
    evaluator.add_env_info = lambda *_: None  # it asks pip, which takes longer than all else
    manager, seen, lines = TaskManager(), [{} for _ in TASKS], []
    for name in NAMES:
        expected = record(golden, manager, VARIATIONS[name])
        for i, of_task in enumerate(expected):
            first = seen[i].setdefault(json.dumps(of_task), name)
            expected[i] = of_task if first == name else {"as": first}
        print(name, [json.dumps(of_task)[-90:] for of_task in expected], flush=True)
        lines.append(json.dumps({"name": name, "changes": VARIATIONS[name], "expected": expected}, ensure_ascii=False))
    head = json.dumps({"tasks": [[task, in_chats] for task, _, _, in_chats in TASKS], "docs": DOCS, "max_length": MAX_LENGTH,
                       "max_tokens": WORDS_MAX})[:-1]
    text = ",\n".join(lines)
    (golden / "compat/lm_eval.json").write_text(f'{head}, "variations": [\n{text}\n]}}\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
