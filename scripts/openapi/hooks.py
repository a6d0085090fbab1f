"""What src/serve/openapi.json cannot say for ci/openapi: which fields must fit each other, and what the built-in model
can take. Valid requests are made to fit, so that each refusal of one is a fault. Answers are kept short."""

import copy

import schemathesis

GENERATES = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
FORMS = {
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}},
    "structured_outputs": {"choice": ["yes", "no"]},
    "regex": "[a-z]{2}",
    "choices": ["yes", "no"],
    "grammar": 'start: "a" | "b"',
    "guided_json": {"type": "object", "properties": {"a": {"type": "boolean"}}},
    "guided_regex": "[0-9]+",
    "guided_choice": ["1", "2"],
    "guided_grammar": "start: /[a-z]+/",
}
MOST_TOKENS = 8
CONTEXT, VOCABULARY = 512, 1024


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """A key is optional in the schema; the server that is tested asks for one."""
    raw_schema["security"] = [needed for needed in raw_schema["security"] if needed]


@schemathesis.hook
def before_call(context, case, kwargs):
    if not isinstance(case.body, dict):
        return
    body = copy.deepcopy(case.body)
    make_cheap(body)
    if case.meta is not None and case.meta.generation.mode.is_positive:
        fit_model(body)
        if case.operation.path in GENERATES:
            fit_each_other(body, case.operation.path)
    case.body = body


def make_cheap(body):
    """Replaces values that are valid by others that are valid; a request that is wrong stays wrong."""
    if isinstance(body.get("model"), str):
        body["model"] = "demo"
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n"):
        value = body.get(name)
        if type(value) in (int, float) and MOST_TOKENS < value <= (128 if name == "n" else 2**64 - 1):
            body[name] = MOST_TOKENS


def fit_model(body):
    for name in ("prompt", "tokens", "choices"):
        if name in body:
            body[name] = shortened(body[name])
    for name in ("messages", "input"):
        if isinstance(body.get(name), list):
            body[name] = body[name][:4]
            for place, message in enumerate(body[name]):
                message["role"] = ("user", "assistant")[place % 2]
                content = message["content"]
                if isinstance(content, list):
                    message["content"] = [{**part, "text": part["text"][:8]} for part in content[:4]]
                else:
                    message["content"] = content[:32]
            if body.get("continue_final_message") and len(body[name]) % 2:
                body[name].append({"role": "assistant", "content": "I"})


def shortened(value):
    if isinstance(value, list):
        return [shortened(item) for item in value[:8]]
    return value[: CONTEXT // 32] if isinstance(value, str) else value % VOCABULARY if type(value) in (int, float) else value


def fit_each_other(body, path):
    for name in NUMBERS:
        if isinstance(body.get(name), str):
            body[name] = "0.5"
    if isinstance(body.get("top_p"), float):
        body["top_p"] = max(body["top_p"], 1e-6)  # above 0 in 32 bits, too
    # One form of the answer, that has a meaning.
    if (body.get("text") or {}).get("format") is not None:
        body["text"] = {"format": {"type": "json_schema", "schema": {"type": "integer"}}}
        body.update({name: None for name in FORMS if name in body})
    asked = [name for name in FORMS if body.get(name) is not None]
    for place, name in enumerate(asked):
        body[name] = FORMS[name] if place == 0 else None
    if body.get("logit_bias"):
        body["logit_bias"] = {str(int(id) % VOCABULARY): bias for id, bias in body["logit_bias"].items()}
    most = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    if body.get(most) is None:
        body[most] = MOST_TOKENS
    if path != "/v1/responses" and "max_completion_tokens" in body:
        body["max_completion_tokens"] = body[most]
    if body.get("min_tokens"):
        body["min_tokens"] = min(body["min_tokens"], body[most])
    if body.get("best_of") is not None:
        body["best_of"] = body.get("n") or 1
    if body.get("top_logprobs") is not None:
        body["logprobs"] = True
    if path == "/v1/completions" and body[most] == 0:
        body.update(echo=True, logprobs=1, top_logprobs=None)
    if not body.get("stream"):
        body.pop("stream_options", None)
    if path == "/v1/chat/completions" and "add_generation_prompt" in body:
        body["add_generation_prompt"] = not body.get("continue_final_message")
