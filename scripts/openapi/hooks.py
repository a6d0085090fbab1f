"""What src/serve/openapi.json cannot say: fields that must fit each other, and this server's model. Requests that should
succeed are made to fit, so that an answer of 400 is a fault; all that generate are kept short."""

import copy

import schemathesis

NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
MOST_TOKENS = 8


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """A key is optional in the schema; the server that is tested asks for one."""
    raw_schema["security"] = [needed for needed in raw_schema["security"] if needed]


@schemathesis.hook
def before_call(context, case, kwargs):
    if not isinstance(case.body, dict):
        return
    body = copy.deepcopy(case.body)
    shorten(body)
    if case.meta is not None and case.meta.generation.mode.is_positive:
        fit(body, case.operation.path)
    case.body = body


def shorten(body):
    """Replaces values that are valid by others that are valid and cheap."""
    if isinstance(body.get("model"), str):
        body["model"] = "demo"
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n"):
        value = body.get(name)
        if type(value) is int and MOST_TOKENS < value <= (128 if name == "n" else 2**64 - 1):
            body[name] = MOST_TOKENS


def fit(body, path):
    for name in NUMBERS:
        if isinstance(body.get(name), str):
            body[name] = "0.5"
    if isinstance(body.get("top_p"), float):
        body["top_p"] = max(body["top_p"], 1e-6)  # not 0 in 32 bits either
    # The built-in model has a context of 512 tokens, and a vocabulary of 1024.
    for name in ("prompt", "choices", "messages", "input"):
        if isinstance(body.get(name), list):
            body[name] = body[name][:8]
    for name in ("prompt", "tokens", "choices"):
        if name in body:
            body[name] = known_tokens(body[name])
    if body.get("logit_bias"):
        body["logit_bias"] = {str(int(id) % 1024): bias for id, bias in body["logit_bias"].items()}
    most = body.get("max_tokens")
    if path == "/v1/completions" and most == 0:
        body.update(echo=True, logprobs=1, top_logprobs=None)
    if "max_completion_tokens" in body:
        body["max_completion_tokens"] = most
    if path == "/v1/responses":
        body["max_output_tokens"] = body.get("max_output_tokens") or MOST_TOKENS
    elif path.startswith("/v1/c") and most is None:
        body["max_tokens"] = MOST_TOKENS
    if body.get("min_tokens"):
        body["min_tokens"] = min(body["min_tokens"], body.get("max_tokens") or body.get("max_output_tokens") or 0)
    if body.get("best_of") is not None:
        body["best_of"] = body.get("n") or 1
    if body.get("top_logprobs") is not None:
        body["logprobs"] = True
    if not body.get("stream"):
        body.pop("stream_options", None)
    # A conversation that alternates, and whose last message can be continued if it is to be.
    conversation = "input" if path == "/v1/responses" else "messages"
    if isinstance(body.get(conversation), list):
        for place, message in enumerate(body[conversation]):
            message["role"] = ("user", "assistant")[place % 2]
        continues = body.get("continue_final_message")
        if continues and len(body[conversation]) % 2:
            body[conversation].append({"role": "assistant", "content": "I"})
        if path == "/v1/chat/completions":
            body["add_generation_prompt"] = not continues


def known_tokens(value):
    if type(value) is int:
        return value % 1024
    return [known_tokens(item) for item in value] if isinstance(value, list) else value
