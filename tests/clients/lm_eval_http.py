"""lm-evaluation-harness over HTTP: the likelihood of every item is that of `gemma-pjrt eval`.

    gemma-pjrt serve --model DIR --dtype f32 --port 8080 &
    gemma-pjrt eval --model DIR --dtype f32 --tasks piqa,hellaswag,winogrande,boolq,arc_easy --data DATASETS --num-fewshot 1 --context 256 --output native.json
    OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=none python lm_eval_http.py DATASETS DIR native.json

DIR has the tokenizer's files: the harness tokenizes itself, so that prompts are ids. The server must not ask for a key, which the harness's
`gguf` client cannot give.
"""
import json
import os
import sys
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import openai
import transformers
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

data, tokenizer_dir, native = Path(sys.argv[1]).resolve(), sys.argv[2], Path(sys.argv[3])
url = os.environ["OPENAI_BASE_URL"]
# The context that native.json was made with. The harness sends all tokens of an item, one less than this client's `max_length`; with
# transformers it leaves out the last one, which nothing follows.
CONTEXT = 256

# Where the tasks' datasets are, as on the hub: {split: file}.
TASKS = {
    "piqa": ("baber/piqa/data", "{}-00000-of-00001.parquet", ("train", "validation")),
    "hellaswag": ("Rowan/hellaswag/data", "{}-00000-of-00001.parquet", ("train", "validation")),
    "winogrande": ("allenai/winogrande/winogrande_xl", "{}/0000.parquet", ("train", "validation")),
    "boolq": ("aps/super_glue/boolq", "{}.jsonl", ("train", "validation")),
    "arc_easy": ("allenai/ai2_arc/ARC-Easy", "{}-00000-of-00001.parquet", ("train", "test")),
}
manager = TaskManager()


def task(name):
    """The harness's task, with the files of its dataset."""
    folder, file, splits = TASKS[name]
    config = load_yaml(manager._index[name].yaml_path, resolve_func=True)
    files = {split: str(data / folder / file.format(split)) for split in splits}
    config.update(dataset_path="json" if file.endswith("jsonl") else "parquet", dataset_name=None, dataset_kwargs={"data_files": files})
    if config.get("validation_split") not in files:
        config["validation_split"] = None
    return config


def likelihoods(samples):
    """{(document, choice): (log-likelihood, whether it is what the model would write)}"""
    return {
        (sample["doc_id"], i): (float(likelihood), greedy in (True, "True"))
        for sample in samples
        for i, (likelihood, greedy) in enumerate(sample["filtered_resps"])
    }


def over_http(name, **arguments):
    found = simple_evaluate("local-completions", model_args=arguments, tasks=[task(name)], task_manager=manager, num_fewshot=1, log_samples=True,
                            bootstrap_iters=0)
    return likelihoods(found["samples"][name])


def compare(kind, name, found, expected):
    assert found.keys() == expected.keys(), f"{kind}, {name}: other items"
    for item, (likelihood, greedy) in expected.items():
        assert abs(found[item][0] - likelihood) <= 1e-4 and found[item][1] == greedy, (
            f"{kind}, {name}, document {item[0]}, choice {item[1]}: {found[item]} instead of {(likelihood, greedy)}")
    largest = max(abs(found[item][0] - expected[item][0]) for item in expected)
    print(f"ok: {kind}, {name}: {len(found)} items, the largest difference is {largest:.1e}", flush=True)


samples = [json.loads(line) for line in Path(f"{native}.samples.jsonl").read_text().splitlines()]
by_task = {name: [sample for sample in samples if sample["task"] == name] for name in TASKS}
model = openai.OpenAI().models.list().data[0].id

# Gemma needs its <bos>. Without a tokenizer's directory the client would ask the server for tokens, and leave it out.
completions = dict(model=model, base_url=f"{url}/completions", tokenizer=tokenizer_dir, tokenizer_backend="huggingface", tokenized_requests=True,
                   add_bos_token=True, max_length=CONTEXT + 2, batch_size=8, num_concurrent=4)
started = time.monotonic()
for name in TASKS:
    compare("local-completions", name, over_http(name, **completions), likelihoods(by_task[name]))
print(f"{time.monotonic() - started:.1f} s, the harness's own time included")

# The `gguf` client sends texts, and finds the choice in the answer by the characters' offsets. It cuts nothing, and takes a context as it
# ends, where the harness counts a space at the end for the choice.
tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
gguf = get_model("gguf")(base_url=url.removesuffix("/v1"))
for name in TASKS:
    items = {}
    for sample in by_task[name]:
        for i, pair in enumerate(sample["arguments"].values()):
            context, choice = pair["arg_0"], pair["arg_1"]
            if context == context.rstrip() and len(tokenizer(context + choice).input_ids) <= CONTEXT:
                items[sample["doc_id"], i] = (context, choice)
    assert len(items) >= 30, f"{name}: only {len(items)} items can be asked"
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(items.values())]
    found = dict(zip(items, gguf.loglikelihood(requests, disable_tqdm=True), strict=True))
    expected = likelihoods(by_task[name])
    compare("gguf", name, found, {item: expected[item] for item in items})
