#!/usr/bin/env bash
# The requests as they are on the wire, by curl.
#
#     OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=secret tests/clients/curl.sh
set -euo pipefail

# The server's address is without /v1 for paths that OpenAI does not have.
root=${OPENAI_BASE_URL%/v1}
ask() { curl --silent --show-error --header "Authorization: Bearer $OPENAI_API_KEY" --header "Content-Type: application/json" "$@"; }
# Prints a field of the JSON on standard input, by a Python expression.
field() { python3 -c "import json, sys; x = json.load(sys.stdin); print($1)"; }
expect() {
    [[ $2 == "$3" ]] || { printf '%s: %q instead of %q\n' "$1" "$2" "$3" >&2; exit 1; }
    echo "ok: $1"
}
# Prints the status of a reply.
status() { curl --silent --output /dev/null --write-out '%{http_code}' "$@"; }

expect "alive, without a key" "$(status "$root/healthz")" 200
expect "ready, without a key" "$(status "$root/readyz")" 200
model=$(ask "$root/v1/models" | field 'x["data"][0]["id"]')
expect "the model" "$(ask "$root/v1/models/$model" | field 'x["id"]')" "$model"
expect "metrics" "$(ask "$root/metrics" | grep -c '^vllm:num_requests_waiting')" 1

question='{"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0'
answer=$(ask "$root/v1/chat/completions" --data "$question}" | field 'x["choices"][0]["message"]["content"]')
expect "an answer" "$([[ $answer == *Paris* ]] && echo Paris)" Paris

# A stream has lines of data. The last one says that it is done.
stream=$(ask --no-buffer "$root/v1/chat/completions" --data "$question, \"stream\": true, \"stream_options\": {\"include_usage\": true}}")
expect "the end of a stream" "$(grep '^data: ' <<<"$stream" | tail -n 1)" "data: [DONE]"
expect "a stream's usage" "$(grep '^data: {' <<<"$stream" | tail -n 1 | cut -c7- | field 'x["choices"], x["usage"]["prompt_tokens"] > 0')" "[] True"
text=$(grep '^data: {' <<<"$stream" | cut -c7- | python3 -c '
import json, sys
chunks = [json.loads(line) for line in sys.stdin]
print("".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]))')
expect "a stream's text" "$text" "$answer"

ids=$(ask "$root/tokenize" --data '{"prompt": "The capital of France is"}' | field 'x["tokens"]')
expect "the way back" "$(ask "$root/detokenize" --data "{\"tokens\": $ids}" | field '"The capital of France is" in x["prompt"]')" True
expect "a prompt of ids" "$(ask "$root/v1/completions" --data "{\"prompt\": $ids, \"max_tokens\": 3, \"temperature\": 0}" | field 'x["usage"]["prompt_tokens"]')" \
    "$(field 'len(x)' <<<"$ids")"
expect "a score" "$(ask "$root/v1/completions" --data "{\"prompt\": $ids, \"max_tokens\": 0, \"echo\": true, \"logprobs\": 1}" |
    field 'len(x["choices"][0]["logprobs"]["token_logprobs"])')" "$(field 'len(x)' <<<"$ids")"
expect "the prompt that a template makes" "$(ask "$root/apply-template" --data "$question}" | field '"<start_of_turn>user" in x["prompt"]')" True

expect "a wrong field" "$(ask "$root/v1/chat/completions" --data "$question, \"top_p\": 3}" | field 'x["error"]["param"]')" top_p
expect "not JSON" "$(status --header "Authorization: Bearer $OPENAI_API_KEY" --header "Content-Type: application/json" --data '{"a' "$root/v1/completions")" 400
expect "no such path" "$(status --header "Authorization: Bearer $OPENAI_API_KEY" "$root/v1/no-such-path")" 404
if [[ $OPENAI_API_KEY != none ]]; then
    expect "without the key" "$(status "$root/v1/models")" 401
    expect "with another key" "$(status --header "Authorization: Bearer wrong" "$root/v1/models")" 401
fi
