#!/usr/bin/env python3
"""Makes tests/golden/eval: small datasets in the layouts of the Hugging Face hub, and what lm-evaluation-harness with transformers
makes of them on the demo model, in f32.

    pip install -r scripts/reference/requirements.txt
    python scripts/reference/lm_eval_goldens.py tests/golden/eval

The documents are nonsense of common words, with what is odd in real data: empty contexts, trailing spaces, choices of unequal length,
text beyond ASCII, documents that are cut because they are too long, documents that are there twice.
"""
import json
import random
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet

ROOT = Path(__file__).resolve().parents[2]
MAX_LENGTH = 256
DOCS = 50
WORDS = """the a of to and in is was on for with he she they it house river tree dog cat bird city king queen name first last red blue
green small large old new Paris France Rome Italy seven nine twelve plus minus answer question water stone paper light dark walked
said found because never always""".split()
r = random.Random(7)


def words(low, high):
    return " ".join(r.choice(WORDS) for _ in range(r.randint(low, high)))


def odd(i, text):
    """Some documents are unlike the others."""
    if i % 17 == 3:
        return text + " "
    if i % 17 == 5:
        return text + "\n "
    if i % 17 == 7:
        return text + " naïve café – “quoted” 日本"
    if i % 17 == 11:
        return words(250, 300)
    return text


def choice(i):
    return odd(i * 5 + 1, words(1, 9)) if i % 4 == 1 and i != 53 else words(1, 4)  # 53 would be too long for a context


def labelled(texts, labels="ABCD"):
    return {"text": texts, "label": list(labels[: len(texts)])}


def rows(make, n=DOCS):
    found = [make(i) for i in range(n)]
    found[9] = dict(found[4])  # a document that is there twice
    return found


def mmlu(i):
    return dict(question=odd(i, words(5, 30)), choices=[choice(i + j) for j in range(4)], answer=r.randrange(4))


def hellaswag(i):
    return dict(activity_label=words(1, 3), ctx_a=odd(i, words(5, 20)) + " [header] [title]", ctx_b=words(0, 5).upper(),
                endings=[words(1, 12) + (" [step] x  y" if j == 2 else "") for j in range(4)], label=str(r.randrange(4)))


def piqa(i):
    return dict(goal=odd(i, words(3, 20)), sol1=choice(i), sol2=choice(i + 1), label=r.randrange(2))


def siqa(i):
    return dict(context=odd(i, words(5, 20)), question=words(3, 8), answerA=choice(i), answerB=choice(i + 1), answerC=choice(i + 2),
                label=str(1 + r.randrange(3)))


def boolq(i):
    return dict(passage=odd(i, words(20, 60)), question=words(4, 9), idx=i, label=r.randrange(2))


def winogrande(i):
    return dict(sentence=f"{odd(i, words(3, 9))} _ {words(2, 9)}{' naïve' if i % 17 == 7 else ''}.", option1=words(1, 1), option2=words(1, 2),
                answer=str(1 + r.randrange(2)))


def commonsense(i):
    return dict(question=odd(i, words(4, 15)), choices=labelled([words(1, 2) for _ in range(5)], "ABCDE"), answerKey=r.choice("ABCDE"))


def openbook(i):
    return dict(question_stem=odd(i, words(4, 15)) if i != 20 else "", choices=labelled([choice(i + j) for j in range(4)]),
                answerKey=" " + r.choice("ABCD"))


def arc(i):
    n = 3 + i % 3
    labels = "12345" if i % 2 else "ABCDE"
    return dict(question=odd(i, words(4, 25)), choices=labelled([choice(i + j) for j in range(n)], labels), answerKey=labels[r.randrange(n)])


def truthful(i):
    targets = lambda n: dict(choices=[choice(i + j) for j in range(n)], labels=[1] + [r.randrange(2) for _ in range(n - 1)])
    return dict(question=odd(i, words(4, 12)) if i % 17 != 11 else words(4, 12), mc1_targets=targets(2 + i % 4), mc2_targets=targets(3 + i % 5))


def winogender(i):
    return dict(sentence=odd(i, words(6, 15)), pronoun=r.choice(["he", "she", "they"]), occupation=words(1, 1), participant=words(1, 2),
                gender="male", label=r.randrange(2))


def crows(i):
    return dict(sent_more=odd(i, words(3, 20)) if i % 17 != 11 else words(60, 70), sent_less=words(3, 20), bias_type="race-color")


def toxigen(i):
    return dict(text=odd(i, words(3, 20)), toxicity_ai=r.choice([1.0, 2.5, 3.0, 4.5]), toxicity_human=r.choice([1.0, 2.5, 3.0, 4.5]))


# task: dataset, configuration, evaluated split, split of examples, rows, numbers of examples
TASKS = {
    "mmlu_astronomy": ("cais/mmlu", "astronomy", "test", "dev", mmlu, [0, 5]),
    "mmlu_us_foreign_policy": ("cais/mmlu", "us_foreign_policy", "test", "dev", mmlu, [2]),
    "hellaswag": ("Rowan/hellaswag", None, "validation", "train", hellaswag, [0, 3]),
    "piqa": ("baber/piqa", None, "validation", "train", piqa, [0, 2]),
    "social_iqa": ("lighteval/siqa", None, "validation", "train", siqa, [0, 1]),
    "boolq": ("aps/super_glue", "boolq", "validation", "train", boolq, [0, 1]),
    "winogrande": ("allenai/winogrande", "winogrande_xl", "validation", "train", winogrande, [0, 5]),
    "commonsense_qa": ("tau/commonsense_qa", None, "validation", "train", commonsense, [0, 7]),
    "openbookqa": ("allenai/openbookqa", "main", "test", "train", openbook, [0, 4]),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test", "train", arc, [0, 2]),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test", "train", arc, [3]),
    "truthfulqa_mc1": ("truthfulqa/truthful_qa", "multiple_choice", "validation", None, truthful, [0]),
    "truthfulqa_mc2": ("truthfulqa/truthful_qa", "multiple_choice", "validation", None, truthful, [0]),
    "winogender_all": ("oskarvanderwal/winogender", "all", "test", None, winogender, [0, 3]),
    "crows_pairs_english": ("jannalu/crows_pairs_multilingual", "english", "test", None, crows, [0]),
    "toxigen": ("skg/toxigen-data", "annotated", "test", "train", toxigen, [0]),  # with examples the harness fails
}


def write(data, dataset, config, split, found):
    """In one of the hub's layouts."""
    folder = data / dataset / (config or "data")
    folder.mkdir(parents=True, exist_ok=True)
    if dataset == "aps/super_glue":
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    elif dataset == "allenai/winogrande":
        (folder / split).mkdir(exist_ok=True)
        path = folder / split / "0000.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), path, compression="zstd")
    else:
        path = folder / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), path, compression="snappy")
    return path


def main(out):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    files = {}
    for dataset, config, split, shots, make, _ in TASKS.values():
        if (dataset, config, split) not in files:
            files[dataset, config, split] = write(out / "data", dataset, config, split, rows(make))
            if shots:
                files[dataset, config, shots] = write(out / "data", dataset, config, shots, rows(make, 12))
    model = HFLM(pretrained=str(ROOT / "src/demo"), dtype="float32", device="cpu", batch_size=16, max_length=MAX_LENGTH)
    manager = TaskManager()
    expected = []
    for task, (dataset, config, split, shots, _, numbers) in TASKS.items():
        data_files = {s: str(files[dataset, config, s]) for s in (split, shots) if s}
        kind = "json" if str(files[dataset, config, split]).endswith("jsonl") else "parquet"
        config_of_task = load_yaml(manager._index[task].yaml_path, resolve_func=True)
        override = dict(dataset_path=kind, dataset_name=None, dataset_kwargs=dict(data_files=data_files))
        for num_fewshot in numbers:
            found = simple_evaluate(model, tasks=[{**config_of_task, **override}], num_fewshot=num_fewshot, log_samples=True)
            samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
            responses = [[[float(ll), bool(greedy)] for ll, greedy in sample["filtered_resps"]] for sample in samples]
            figures = {k: v for k, v in found["results"][task].items() if "," in k}
            contexts = [sample["arguments"][0][0] for sample in samples[:3]]
            expected.append(dict(task=task, num_fewshot=num_fewshot, results=figures, responses=responses, contexts=contexts))
            print(task, num_fewshot, figures, flush=True)
            (out / "expected.json").write_text("[\n" + ",\n".join(json.dumps(run) for run in expected) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
