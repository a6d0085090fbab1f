#!/usr/bin/env python3
"""Makes tests/golden/eval: small datasets in the layouts of the Hugging Face hub, and what lm-evaluation-harness with transformers
makes of them on the demo model, in f32.

    pip install -r scripts/reference/requirements.txt
    python scripts/reference/lm_eval_goldens.py tests/golden/eval [TASK ...]    # all, or only some anew; `chat` are those in chats

Answers in words are compared twice: those that the model writes, and made-up ones that meet every branch of how they are read. Programs
are run by the same rules as evaluate's code_eval, which cannot be had without the hub. Answers to problems of mathematics are
compared by sympy, as in the harness.

The documents are nonsense of common words, with what is odd in real data: empty contexts, trailing spaces, choices of unequal length,
text beyond ASCII, documents that are cut because they are too long, documents that are there twice.
"""
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy
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


def rows(name, make, n=DOCS):
    r.seed(name)  # the same whatever else is made
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


def agieval(i):
    n = 4 + i % 2
    return dict(query=odd(i, words(8, 30)) + "\nA:", choices=[f"({'ABCDE'[j]}) {words(1, 5)}" for j in range(n)],
                gold=[r.randrange(n)] if i % 10 != 4 else [0, 2])


def bbq(i):
    category, groups, stereotyped = [
        ("Age", ["old", "nonOld"], ["old"]), ("Nationality", ["Afghan", "British"], ["Afghan", "MiddleEast"]),
        ("Race_x_gender", ["M-Black", "F-White"], ["M", "Black"]), ("SES", ["lowSES", "highSES"], ["low SES"]),
        ("Gender_identity", ["woman", "man"], ["F"]), ("Disability_status", ["disabled", "nonDisabled"], ["disabled"]),
    ][i % 6]
    unknown = r.choice(["Unknown", "Not known", "Can't answer", "Cannot be determined"])
    answers = [("The " + words(1, 2), groups[0]), ("The " + words(2, 3), groups[1]), (unknown, "unknown")]
    r.shuffle(answers)
    doc = dict(context=odd(i, words(8, 30)), question=words(4, 8) + "?", category=category, label=r.randrange(3),
               question_polarity=r.choice(["neg", "nonneg"]), context_condition=r.choice(["ambig", "disambig"]), example_id=i)
    doc.update({f"ans{j}": answers[j][0] for j in range(3)})
    doc["answer_info"] = {f"ans{j}": [answers[j][0], answers[j][1]] for j in range(3)}
    doc["additional_metadata"] = dict(stereotyped_groups=stereotyped, version="a")
    return doc


def number():
    return f"{r.choice(['', '-'])}{r.choice(['7', '12', '1,234', '18.5', '40'])}"


def trivia(i):
    return dict(question=odd(i, words(4, 12)), answer=dict(value="x", aliases=[words(1, 3).title() for _ in range(1 + i % 3)]))


def nq(i):
    return dict(question=odd(i, words(4, 12)), answer=[r.choice(["The ", "a ", ""]) + words(1, 3) for _ in range(1 + i % 3)])


def gsm8k(i):
    return dict(question=odd(i, words(8, 20)), answer=f"{words(5, 12)} <<3*4=12>>\n#### {number()}")


FORMULAS = [  # a solution's answer, and others that are the same or not
    ("\\frac{1}{2}", "0.5", "\\frac12", "\\dfrac{1}{2}", "0.6", "x"), ("12", "12.0", "\\$12", "12\\text{ cm}", "12 dollars", "13"),
    ("x^2+2x+1", "(x+1)^2", "x=(x+1)^2", "1+2x+x^2", "x^2+1", ""), ("2\\sqrt{3}", "\\sqrt{12}", "2\\sqrt3", "\\sqrt12", "\\sqrt{13}", "?"),
    ("[2,5)", "[2,5)", "[2, 5)", "(2,5)", "2,5", "[2,5]"), ("1,234", "1234", "1,234 units", "1{,}234", "1,235", "234"),
    ("\\text{Monday}", "Monday", "\\text{Tuesday}", "Mondays", "\\mbox{Monday}", "monday"), ("5\\pi", "5 \\pi", "\\pi 5", "5\\pi \\text{ cm}", "15.7", "\\pi"),
    ("90^\\circ", "90", "90 degrees", "90^{\\circ}", "91", "90\\%"), ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}", "\\sqrt{\\frac12}", "\\sqrt{0.5}", "0.7", "\\frac"),
    ("0,1", "0,1", "0, 1", "0,2", "1,0", "0"), ("\\left(3,4\\right)", "(3,4)", "\\left(3, 4\\right)", "(3, 4)", "3,4", "(4,3)"),
    ("2^{10}", "1024", "2^10", "1,024", "20", "2^9"), ("-\\frac{2}{3}", "-2/3", "\\frac{-2}{3}", "-\\frac23", "2/3", "-0.667"),
    ("10\\%", "10\\%", "10", "10 \\%", "0.1", "11\\%"), ("\\log_2 8", "3", "\\log_{2} 8", "\\ln 8/\\ln 2", "2", "\\log 8"),
    ("3\\text{ km}", "3", "3 km", "3\\,\\text{km}", "4", "3 miles"), ("\\sqrt[3]{8}", "2", "\\sqrt[3]8", "8^{1/3}", "\\sqrt{8}", "3"),
]


def minerva(i):
    box = f"\\boxed{{{FORMULAS[i % len(FORMULAS)][0]}}}" if i % 9 != 5 else "\\fbox{9} and \\boxed 12$"
    return dict(problem=odd(i, words(6, 20)), level="1", type="x", solution=f"{words(4, 9)} ${box}$. {words(1, 4)}")


def agieval_math(i):
    return dict(query=odd(i, words(6, 20)) + " A:", answer=r.choice(["", "x = "]) + FORMULAS[i % len(FORMULAS)][0] if i % 3 else f"${number()}$")


def humaneval(i):
    return dict(task_id=f"HumanEval/{i}", prompt=f"def f{i}(x):\n    \"\"\"{words(3, 9)}\"\"\"\n", entry_point=f"f{i}",
                test=f"def check(candidate):\n    assert candidate(2) == {2 + i % 3}\n", canonical_solution="")


def mbpp(i):
    tests = [f"assert f(2) == {2 + i % 3}", "assert f(0) == f(0)", "assert f is not None"]
    return dict(task_id=i, text=odd(i, words(4, 12)), code="def f(x):\r\n    return x", test_list=tests, challenge_test_list=[])


def bbh(i):
    return dict(input=odd(i, words(4, 15)), target=r.choice(["True", "False", "(A)", "seven nine"]))


def bbh_choice(answers):
    """Some have a right answer that is no choice."""
    return lambda i: dict(input=odd(i, words(4, 15)), target=r.choice(answers) if i % 16 != 6 else "(Z)")


def change(text):
    return r.choice([text, text.upper(), f" {text} ", f"the {text}", text + "!", text[:-1], words(1, 2)])


def short_answer(doc):
    return change(r.choice(doc["answer"]["aliases"] if isinstance(doc["answer"], dict) else doc["answer"]))


def calculated(doc):
    right = doc["answer"].split("#### ")[1]
    said = r.choice([right, right.replace(",", ""), right + ".", f"${right}", number(), "none"])
    return r.choice([f"{words(2, 6)}\n#### {said}", f" so 3*4=12. The answer is {said}.", f"The answer is {said}", f" {said} of 7 and", words(2, 4)])


def formula(i, doc):
    of = FORMULAS[i % len(FORMULAS)]
    said = r.choice(of)
    return r.choice([f"{words(2, 4)}\nFinal Answer: The final answer is ${said}$. I hope it is correct.", f"Final Answer: The final answer is {said}.",
                     f"Final Answer: The final answer is x = ${said}$. I hope it is correct.", f"the answer is ${said}$"])


def last_formula(i, doc):
    said = r.choice(FORMULAS[i % len(FORMULAS)] + (doc["answer"],))
    return r.choice([f"so ${said}$", f"we get \\boxed{{{said}}}.", f"x = {said}.", f"{said}", f"1, 2, {said}", words(2, 3)])


def function(i, doc):
    return f"    return x + {r.randrange(3)}\n" + r.choice(["", "    # end", "\n\nx = 1"])


def program(i, doc):
    return f"def f(x):\r\n    return x + {r.randrange(3)}\r\n"


def reasoned(i, doc):
    return r.choice([f"{words(3, 8)}. So the answer is {doc['target']}.", f"the answer is {words(1, 1)}.", f"the answer is {doc['target']}", words(2, 5)])


# answered in words; as below, with made-up answers, and how many each document has. The model's own answers are of so many tokens.
WORDS_MAX = 32
IN_WORDS = {
    "triviaqa": ("mandarjoshi/trivia_qa", "rc.nocontext", "validation", "train", trivia, [0, 5], lambda i, doc: short_answer(doc), 1),
    "nq_open": ("google-research-datasets/nq_open", None, "validation", "train", nq, [0, 5], lambda i, doc: short_answer(doc), 1),
    "gsm8k": ("openai/gsm8k", "main", "test", "train", gsm8k, [2], lambda i, doc: calculated(doc), 1),
    "gsm8k_cot": ("openai/gsm8k", "main", "test", None, gsm8k, [1], lambda i, doc: calculated(doc), 1),
    "gsm8k_cot_self_consistency": ("openai/gsm8k", "main", "test", None, gsm8k, [1], lambda i, doc: calculated(doc), 64),
    "minerva_math_algebra": ("EleutherAI/hendrycks_math", "algebra", "test", None, minerva, [1], formula, 1),
    "agieval_math": ("hails/agieval-math", None, "test", None, agieval_math, [0, 2], last_formula, 1),
    "humaneval": ("openai/openai_humaneval", None, "test", None, humaneval, [0], function, 1),
    "mbpp": ("google-research-datasets/mbpp", "full", "test", None, mbpp, [0], program, 1),
    "bbh_cot_fewshot_word_sorting": ("SaylorTwift/bbh", "word_sorting", "test", None, bbh, [0], reasoned, 1),
}


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
    "agieval_aqua_rat": ("hails/agieval-aqua-rat", None, "test", None, agieval, [0]),  # with examples the harness fails
    "bbq": ("oskarvanderwal/bbq", "All", "test", None, bbq, [0, 2]),
    "leaderboard_bbh_date_understanding": ("SaylorTwift/bbh", "date_understanding", "test", None, bbh_choice(["(A)", "(B)", "(F)"]), [0, 1]),
    "leaderboard_bbh_object_counting": ("SaylorTwift/bbh", "object_counting", "test", None, bbh_choice(["0", "7", "12"]), [3]),
}


# in the chat format: task, number of examples, and whether these are turns of their own
IN_CHATS = [("mmlu_us_foreign_policy", 2, "multiturn"), ("mmlu_us_foreign_policy", 2, "single"), ("hellaswag", 0, "multiturn"),
            ("winogrande", 3, "multiturn"), ("winogrande", 3, "single"), ("triviaqa", 2, "multiturn"), ("triviaqa", 2, "single"),
            ("bbh_cot_fewshot_word_sorting", 0, "multiturn")]


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


class CodeEval:
    """evaluate's code_eval for one program a task: it passes if it comes to its end within three seconds."""

    def compute(self, references, predictions, k):
        def passes(program):
            runner = "import os,sys\ntry:\n exec(sys.stdin.read(), {})\nexcept BaseException:\n os._exit(1)\nos._exit(37)"
            try:
                return subprocess.run([sys.executable, "-c", runner], input=program.encode(), timeout=3).returncode == 37
            except subprocess.TimeoutExpired:
                return False

        passed = [passes(candidates[0] + "\n" + tests) for candidates, tests in zip(predictions, references)]
        return {"pass@1": sum(passed) / len(passed)}, {}


def plain(x):
    """For JSON."""
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    if isinstance(x, (float, numpy.floating)):
        return None if math.isnan(x) else float(x)
    return x


def random_model(folder):
    """A small checkpoint with random weights, whose likelihoods are far from flat."""
    import torch
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(5)
    config = GemmaConfig(vocab_size=1024, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
                         intermediate_size=64, max_position_embeddings=512, initializer_range=0.3)
    GemmaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def verdicts(out):
    """Of Math-Verify, on answers of many kinds."""
    from math_verify import parse, verify

    more = [  # as FORMULAS
        ("3\\frac{1}{2}", "3.5", "\\frac{7}{2}", "3 1/2", "7/2"), ("x \\in [2,5)", "[2,5)", "2 \\le x < 5", "x \\ge 2"),
        ("\\{1,2\\}", "1,2", "2, 1", "1 and 2", "(1,2)"), ("(-\\infty, 3) \\cup (5, \\infty)", "(5,\\infty)\\cup(-\\infty,3)", "(-\\infty, 3)"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}", "\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}", "(1,2)"),
        ("(1,2,3)", "1,2,3", "(3,2,1)", "(1, 2, 3)"), ("x<5", "(-\\infty,5)", "5>x", "x \\le 5", "2x<10"), ("1<x<5", "(1,5)", "1<x<6"),
        ("y = 2x + 3", "2x+3", "y=3+2x", "y-2x=3", "y=2x"), ("2x+3y=6", "4x+6y=12", "6=2x+3y", "2x+3y=7"), ("x=5", "5", "x = 5", "y=5", "5=x"),
        ("5", "x=5", "3+2=5", "x = 4", "\\boxed{5}"), ("1 \\pm \\sqrt{2}", "1+\\sqrt{2},1-\\sqrt{2}", "1+\\sqrt{2}"), ("e^2", "\\exp(2)", "7.389056", "e"),
        ("3+4i", "4i+3", "3-4i"), ("(A)", "A", "\\text{(A)}", "B"), ("\\text{even}", "even", "\\text{Even}", "odd"), ("\\pi r^2", "r^2\\pi", "3.14r^2"),
        ("0.333", "1/3", "\\frac{1}{3}", "0.333000"), ("\\frac13", "0.333333", "0.3333", "\\frac{2}{6}"), ("10^{-3}", "0.001", "\\frac{1}{1000}"),
        ("\\binom{5}{2}", "10", "\\dbinom{5}{2}"), ("5!", "120", "24"), ("\\log 100", "2", "\\log_{10} 100"), ("|x-1|", "|1-x|", "x-1"),
        ("x^2 + 3x", "x(x+3)", "3x+x^2", "x^2"), ("\\sin x", "\\sin(x)", "\\cos x"), ("3:4", "\\frac{3}{4}", "4:3", "3/4"), ("4\\times 10^5", "400000", "400,000"),
        ("(2,1)", "(2, 1)", "2,1", "1,2"), ("[-1,1)\\cup(2,3]", "(2,3]\\cup[-1,1)", "[-1,1)"), ("7\\text{ inches}", "7", "7\\text{ in}", "8"), ("p - q", "-q+p", "q-p"),
        ("\\frac{x+1}{x-1}", "1+\\frac{2}{x-1}", "\\frac{x+1}{1-x}"), ("\\$32,\\!348", "32348", "32,348", "\\$32348"), ("6 - 5i", "-5i+6", "6+5i"),
        ("2,3,5", "5,3,2", "2, 3 and 5", "2,3"), ("-4", "- 4", "4", "-4.0"), ("\\sqrt{x^2+1}", "(x^2+1)^{1/2}", "x+1"), ("50\\%", "50", "0.5", "50%"), ("a_1", "a_{1}", "a_2"),
        ("x=1,y=2", "y=2,x=1", "x=1"), ("1.5", "\\frac{3}{2}", "1.50", "1.4"), ("f(x)=x^2", "x^2", "x^3"), ("12:30", "12:30", "12.5"), ("\\infty", "infinity", "-\\infty"),
    ]
    frames = ["Final Answer: The final answer is ${}$. I hope it is correct.", "so the answer is ${}$.", "We get $$\\boxed{{{}}}$$", "\\[ {} \\]", "The answer: {}", "{}",
              "first $1+1=2$, then ${}$ follows", "\\boxed{{{}}}", "The final answer is {}. I hope it is correct.", "it is \\({}\\), so it is"]
    found = []
    for i, (gold, *others) in enumerate(FORMULAS + more):
        solution = f"{words(2, 5)} $\\boxed{{{gold}}}$. {words(1, 3)}"
        for j, said in enumerate([gold, *others]):
            for frame in (frames[0], frames[(i + j) % len(frames)]):
                answer = frame.format(said)
                found.append([solution, answer, bool(verify(parse(solution), parse(answer)))])
    (out / "math_verify.json").write_text("[\n" + ",\n".join(json.dumps(one) for one in found) + "\n]\n")


def main(out, only):
    import evaluate
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    evaluate.load = lambda *_: CodeEval()

    class MadeUp(LM):
        """Answers from a list."""

        def __init__(self, answers):
            super().__init__()
            self.answers = answers

        def generate_until(self, requests, **_):
            seen = {}
            answers = []
            for request in requests:
                nth = seen.get(request.doc_id, 0)
                seen[request.doc_id] = nth + 1
                answers.append(self.answers[request.doc_id][nth])
            return answers

        def loglikelihood(self, requests, **_):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    everything = {**{k: v + (None, 1) for k, v in TASKS.items()}, **IN_WORDS}
    files, rows_of = {}, {}
    for dataset, config, split, shots, make, *_ in everything.values():
        for key, n in (((dataset, config, split), DOCS), ((dataset, config, shots), 12)):
            if key[2] and key not in files:
                rows_of[key] = rows("/".join(map(str, key)), make, n)
                files[key] = write(out / "data", *key, rows_of[key])
    manager = TaskManager()
    known = json.loads((out / "expected.json").read_text()) if only else []
    expected = [run for run in known if (run["task"] not in only if "chat" not in run else "chat" not in only)]

    def harness_task(task):
        """Its configuration in the harness, with our data."""
        dataset, config, split, shots, *_ = everything[task]
        data_files = {s: str(files[dataset, config, s]) for s in (split, shots or "train") if (dataset, config, s) in files}
        kind = "json" if str(files[dataset, config, split]).endswith("jsonl") else "parquet"
        found = load_yaml(manager._index[task].yaml_path, resolve_func=True)
        found.update(dataset_path=kind, dataset_name=None, dataset_kwargs=dict(data_files=data_files))
        if not shots:
            found["training_split"] = None
        if found["output_type"] == "generate_until":
            found["generation_kwargs"] = {**found["generation_kwargs"], "max_gen_toks": WORDS_MAX}
        return found

    def run(task, model, num_fewshot, by, chat=None):
        found = simple_evaluate(model, tasks=[harness_task(task)], num_fewshot=num_fewshot, log_samples=True, confirm_run_unsafe_code=True,
                                apply_chat_template=chat is not None, fewshot_as_multiturn=chat == "multiturn")
        samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
        figures = {k: v for k, v in found["results"][task].items() if "," in k}
        result = dict(task=task, num_fewshot=num_fewshot, by=by, results=figures, **(dict(chat=chat) if chat else {}))
        first = samples
        if task in IN_WORDS:
            readings = list(dict.fromkeys(sample["filter"] for sample in samples))
            first = [sample for sample in samples if sample["filter"] == readings[0]]
            result["responses"] = [sample["resps"][0] for sample in first]
            metrics = list(samples[0]["metrics"])
            of = {f: [sample for sample in samples if sample["filter"] == f] for f in readings}
            result["read"] = {f: [sample["filtered_resps"][0] for sample in of[f]] for f in readings}
            result["values"] = {f: [[sample[m] for m in metrics] for sample in of[f]] for f in readings}
        else:
            result["responses"] = [[[float(ll), bool(greedy)] for ll, greedy in sample["filtered_resps"]] for sample in samples]
        result["contexts"] = [sample["arguments"][0][0] for sample in first[:3]]
        expected.append(plain(result))
        print(task, num_fewshot, by, figures, flush=True)
        (out / "expected.json").write_text("[\n" + ",\n".join(json.dumps(run) for run in expected) + "\n]\n")

    def load(pretrained, **more):
        return HFLM(pretrained=str(pretrained), dtype="float32", device="cpu", batch_size=16, max_length=MAX_LENGTH, **more)

    model = load(ROOT / "src/demo")
    for task, (dataset, config, split, _, _, numbers, answer, repeats) in everything.items():
        if only and task not in only:
            continue
        for num_fewshot in numbers if repeats == 1 else []:  # several answers are drawn at random
            run(task, model, num_fewshot, "demo")
        if answer:
            docs = rows_of[dataset, config, split]
            r.seed(task)
            made_up = MadeUp([[answer(i, doc) for _ in range(repeats)] for i, doc in enumerate(docs)])
            run(task, made_up, numbers[0], "made up")

    # In the chat format. Descriptions are the system's there, whom Gemma does not know. Gemma's own models end with their turn, too.
    model.model.generation_config.eos_token_id = [1, model.tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    for task, num_fewshot, chat in IN_CHATS if not only or "chat" in only else []:
        run(task, model, num_fewshot, "demo", chat)

    random_model(out / "random")
    model = load(out / "random", tokenizer=str(ROOT / "src/demo"))
    for task in ("mmlu_astronomy", "piqa", "winogrande", "crows_pairs_english"):  # what it writes is no text
        if not only or task in only:
            run(task, model, everything[task][5][-1], "random")


if __name__ == "__main__":
    verdicts(Path(sys.argv[1]))
    main(Path(sys.argv[1]), sys.argv[2:])
