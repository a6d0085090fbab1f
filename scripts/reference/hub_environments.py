#!/usr/bin/env python3
"""Makes tests/golden/compat/environments.json: environment variables as people set them, and what huggingface_hub makes of
them.

    pip install -r scripts/reference/requirements.txt
    python scripts/reference/hub_environments.py tests/golden/compat

Each environment is that of a process of its own, in a new directory that has FILES. `@` in values and results stands for
that directory, which is also HOME unless an environment says otherwise. It is recorded

    cache      directory of downloaded models
    endpoint   address of the hub
    offline    whether the hub may not be asked
    token      that is sent with each request, or null
"""
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FILES = {
    ".cache/huggingface/token": "hf_default\n", "hf/token": "hf_of_hf_home", "xdg/huggingface/token": " hf_of_xdg\r\n",
    "elsewhere/token": "\nhf_else\nwhere\n", "elsewhere/empty": "", "elsewhere/blank": " \n",
}
READ = """
import json
from huggingface_hub import constants
from huggingface_hub.utils._headers import get_token_to_send
print(json.dumps({"cache": constants.HF_HUB_CACHE, "endpoint": constants.ENDPOINT, "offline": constants.HF_HUB_OFFLINE,
                  "token": get_token_to_send(None)}))
"""

ENVIRONMENTS = [{}]
ENVIRONMENTS += [{"HF_HOME": value} for value in [
    "@/hf", "@/hf/", "~/hf", "~", "~/", "$HOME/hf", "${HOME}/hf", "$UNSET/hf", "${UNSET}/hf", "${HOME/hf", "@/a b", "@/$", "@/$$HOME", "@/a$HOME",
    "@/a~/b", "@/hf//x", "@/./hf/../hf", "relative", "./relative", "", " ", "@/ünïcode", "@/%HOME%", "@/`x`", "@/\\$HOME", "~root/hf",
    "~nobody-of-this-name/hf", "@/$1", "@/$HOME_", "@/$HOME-x", "@/${HOME}x", "@/$é"]]
ENVIRONMENTS += [{"XDG_CACHE_HOME": value} for value in ["@/xdg", "~/xdg", "$HOME/xdg", "", "@/xdg/"]]
ENVIRONMENTS += [{name: value} for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]
                 for value in ["@/cache", "~/cache", "$HOME/cache", "@/cache/", "", "~", "$UNSET"]]
ENVIRONMENTS += [
    {"HF_HOME": "@/hf", "XDG_CACHE_HOME": "@/xdg"}, {"HF_HOME": "@/hf", "HF_HUB_CACHE": "@/cache"},
    {"HUGGINGFACE_HUB_CACHE": "@/old", "HF_HUB_CACHE": "@/new"}, {"HUGGINGFACE_HUB_CACHE": "@/old", "HF_HUB_CACHE": ""},
    {"HF_HOME": "", "XDG_CACHE_HOME": "@/xdg"}, {"HF_HOME": "@/hf", "HUGGINGFACE_HUB_CACHE": ""},
    {"HF_HOME": "$A/hf", "A": "@/a"}, {"HF_HOME": "$A/hf", "A": "$B", "B": "@/b"}, {"HF_HOME": "$A/hf", "A": "~"},
    {"HF_HUB_CACHE": "$A", "A": "$B", "B": "@/b"}, {"HF_HUB_CACHE": "$A", "A": ""}, {"XDG_CACHE_HOME": "$A", "A": "~/xdg"},
    {"HF_HUB_CACHE": "$A/x", "A": "@/$A"}, {"HF_HOME": "$HF_HUB_CACHE", "HF_HUB_CACHE": "@/cache"},
    {"TRANSFORMERS_CACHE": "@/old"}, {"HF_CACHE": "@/x"}, {"HF_DATASETS_CACHE": "@/x"}, {"HOME": "@/elsewhere"}, {"HOME": "@/elsewhere/"},
    {"HOME": "/"}, {"HOME": "/", "HF_HOME": "~/hf"}, {"HF_HOME": "~/hf", "HOME": "@/elsewhere/"}, {"HOME": ""},
]
TRUTHS = ["1", "0", "true", "false", "True", "TRUE", "FALSE", "yes", "no", "Yes", "on", "off", "ON", "OFF", "", " ", "2", "y", "t", " 1", "1 ", "auto", "-1", "ı"]
ENVIRONMENTS += [{"HF_HUB_OFFLINE": value} for value in TRUTHS]
ENVIRONMENTS += [{"TRANSFORMERS_OFFLINE": value} for value in TRUTHS[:12] + [""]]
ENVIRONMENTS += [{"HF_HUB_OFFLINE": first, "TRANSFORMERS_OFFLINE": second} for first, second in [
    ("0", "1"), ("1", "0"), ("", "1"), ("no", "yes"), ("x", "1"), (" ", "1")]]
ENVIRONMENTS += [{"HF_DATASETS_OFFLINE": "1"}]
ENVIRONMENTS += [{"HF_ENDPOINT": value} for value in [
    "https://mirror.example", "https://mirror.example/", "https://mirror.example//", "https://mirror.example/hf/", "http://localhost:8080",
    "", "mirror.example", " https://mirror.example", "https://mirror.example/ "]]
ENVIRONMENTS += [{"HF_TOKEN": value} for value in ["hf_a", " hf_a ", "hf_a\n", "hf\n_a", "hf\r\n_a", "", " ", "\n", "hf a", "\thf_a\t"]]
ENVIRONMENTS += [{"HUGGING_FACE_HUB_TOKEN": "hf_b"}, {"HF_TOKEN": "hf_a", "HUGGING_FACE_HUB_TOKEN": "hf_b"},
                 {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "hf_b"}, {"HF_TOKEN": " ", "HUGGING_FACE_HUB_TOKEN": "hf_b"},
                 {"HUGGINGFACE_TOKEN": "hf_c"}, {"HUGGINGFACEHUB_API_TOKEN": "hf_c"}, {"HF_API_TOKEN": "hf_c"}]
ENVIRONMENTS += [{"HF_TOKEN_PATH": value} for value in [
    "@/elsewhere/token", "~/elsewhere/token", "$HOME/elsewhere/token", "@/elsewhere/empty", "@/elsewhere/blank", "@/nothing", ""]]
ENVIRONMENTS += [{"HF_TOKEN_PATH": "@/elsewhere/token", "HF_TOKEN": "hf_a"}, {"HF_TOKEN_PATH": "$A/token", "A": "~/elsewhere"},
                 {"HF_HOME": "@/hf", "HF_TOKEN_PATH": "@/elsewhere/token"}, {"HF_HOME": "@/nothing"}]
ENVIRONMENTS += [{"HF_HUB_DISABLE_IMPLICIT_TOKEN": value} for value in ["1", "0", "true", "yes", "no", ""]]
ENVIRONMENTS += [{"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_TOKEN": "hf_a"}]


def record(environment):
    with tempfile.TemporaryDirectory() as dir:
        for name, text in FILES.items():
            path = Path(dir) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        variables = {name: value.replace("@", dir) for name, value in ({"HOME": "@"} | environment).items()}
        found = subprocess.run([sys.executable, "-I", "-X", "utf8", "-c", READ], env=variables, cwd=dir, capture_output=True, text=True)
        expected = json.loads(found.stdout.replace(dir, "@")) if found.returncode == 0 else {"error": found.stderr.splitlines()[-1][:120].replace(dir, "@")}
        return {"environment": environment, "expected": expected}


if __name__ == "__main__":
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(record, ENVIRONMENTS))
    base = found[0]["expected"]
    for one in found[1:]:
        one["expected"] = {key: value for key, value in one["expected"].items() if base.get(key, ...) != value}
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in found)
    (Path(sys.argv[1]) / "environments.json").write_text(f'{{"files": {json.dumps(FILES)}, "environments": [\n{lines}\n]}}\n')
    print(len(found), "environments")
