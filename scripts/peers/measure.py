"""Measures gemma-pjrt beside transformers, llama.cpp and candle: one checkpoint, the same prompts and threads, in turns.

    python measure.py MODEL --work DIR [--rounds 3] [--prompts 128,512] [--decode 16] [--depth 128] [--only NAME,...]

DIR keeps what is made of MODEL: GGUF files (to_gguf.py) and quantised checkpoints. Each round runs every peer once, in a process
of its own, so that a noisy machine treats all alike; medians are shown, with ratios to the first of each kind of weights.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def run(command, **extra):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **extra)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def ours(model, args):
    command = [ROOT / "target/release/gemma-pjrt", "bench", "--json", "--model", model, "-p", args.prompts, "-n", args.decode,
               "-d", args.depth, "-b", 1, "--reps", 1, "--threads", args.threads, "--offline"]
    figures = {f["test"]: f["tokens_per_second"] for f in json.loads(run(command))["tests"]}
    decode = next(rate for name, rate in figures.items() if name.startswith("tg"))
    return {"prefill": {n: figures[f"pp{n}"] for n in args.prompts.split(",")}, "decode": decode}


def peer(*command):
    return lambda args: json.loads(run([*command]).splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", default="128,512")
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--depth", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    sizes = [args.prompts, args.decode, args.depth]

    run(["cargo", "build", "--release"], cwd=ROOT)
    run(["cargo", "build", "--release"], cwd=HERE / "candle")
    run([sys.executable, HERE / "to_gguf.py", args.model, args.work / "gguf"])
    for bits in ["int8", "int4"]:
        if not (args.work / bits).exists():
            run([ROOT / "target/release/gemma-pjrt", "quantize", args.model, "--weights", bits, "--out", args.work / bits])

    def llama(kind):
        return peer(sys.executable, HERE / "llama_peer.py", args.work / f"gguf/{kind}.gguf", *sizes, args.threads)

    def torch(dtype):
        return peer(sys.executable, HERE / "torch_peer.py", args.model, dtype, *sizes, args.threads)

    candle = [HERE / "candle/target/release/candle-peer", args.model, *sizes]
    groups = {
        "bf16": {
            "gemma-pjrt bf16": lambda args: ours(args.model, args),
            "llama.cpp BF16": llama("BF16"),
            "transformers bf16": torch("bfloat16"),
            "transformers f32": torch("float32"),
            "candle f32": lambda args: json.loads(run(candle, env={**os.environ, "RAYON_NUM_THREADS": str(args.threads)})),
        },
        "eight bits": {
            "gemma-pjrt int8": lambda args: ours(args.work / "int8", args),
            "llama.cpp Q8_0": llama("Q8_0"),
        },
        "four bits": {
            "gemma-pjrt int4": lambda args: ours(args.work / "int4", args),
            "llama.cpp Q4_0": llama("Q4_0"),
        },
    }
    wanted = [name for name in args.only.split(",") if name]
    results = {}
    for number in range(args.rounds):
        for group in groups.values():
            for name, measure in group.items():
                if not wanted or name in wanted:
                    results.setdefault(name, []).append(measure(args))
                    print(f"round {number + 1}, {name}: {results[name][-1]}", file=sys.stderr, flush=True)

    prompts = args.prompts.split(",")
    columns = [*(f"prefill {n}" for n in prompts), f"decode after {args.depth}"]
    print("| tok/s | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for group in groups.values():
        first = None
        for name in filter(results.__contains__, group):
            rates = [[result["prefill"][n] for result in results[name]] for n in prompts]
            rates.append([result["decode"] for result in results[name]])
            medians = [statistics.median(rate) for rate in rates]
            first = first or medians
            cells = [f"{rate:.3g}" + ("" if first is medians else f" ({own / rate:.2g}×)") for rate, own in zip(medians, first)]
            print(f"| {name} | " + " | ".join(cells) + " |")


main()
