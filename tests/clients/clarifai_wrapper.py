"""The Clarifai SDK's wrapper for OpenAI-compatible servers with gemma-pjrt: the model as Clarifai's platform runs it, without the platform.

    OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=secret python clarifai_wrapper.py

The prompt and the parameters are those of Clarifai's page of Gemma 1.1 7B.
"""
import json
import logging

from clarifai.runners.models.openai_class import OpenAIModelClass
from openai import OpenAI

PROMPT = """<bos><start_of_turn>user
Write a hello world program<end_of_turn>
<start_of_turn>model
"""
PARAMETERS = dict(temperature=0.7, max_tokens=200, top_k=50, top_p=0.95)


class Gemma(OpenAIModelClass):
    """All that a model folder for Clarifai needs. The model's name and length are asked of the server."""

    client = OpenAI()


logging.getLogger("clarifai").setLevel(logging.CRITICAL)  # no traceback where an error is expected
gemma = Gemma()
assert gemma.model == Gemma.client.models.list().data[0].id
assert gemma.max_seq_len == Gemma.client.models.list().data[0].max_model_len  # to which the wrapper limits max_tokens
assert gemma.handle_liveness_probe() and gemma.handle_readiness_probe()
print("ok: found the model")

# The page writes the template itself, so that the text is a prompt. `<bos>` in it is a token, and comes once.
answer = Gemma.client.completions.create(
    model=gemma.model, prompt=PROMPT, temperature=0.7, max_tokens=200, top_p=0.95, seed=1, extra_body={"top_k": 50})
assert answer.choices[0].text and answer.usage.completion_tokens <= 200
once = Gemma.client.completions.create(model=gemma.model, prompt=PROMPT.removeprefix("<bos>"), max_tokens=1)
assert answer.usage.prompt_tokens == once.usage.prompt_tokens
print("ok: the page's prompt")

# As messages, it is the same prompt: the server writes the template.
messages = [{"role": "user", "content": "Write a hello world program"}]
request = json.dumps({"messages": messages, "seed": 1, **PARAMETERS})
reply = json.loads(gemma.openai_transport(request))
assert reply["choices"][0]["message"]["content"] == answer.choices[0].text, reply
assert reply["usage"]["prompt_tokens"] == answer.usage.prompt_tokens
print("ok: the page's parameters through the wrapper")

request = json.dumps({"messages": messages, "seed": 1, "stream": True, **PARAMETERS})
chunks = [json.loads(chunk) for chunk in gemma.openai_stream_transport(request)]
text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
assert text == reply["choices"][0]["message"]["content"]
assert chunks[-1]["usage"]["completion_tokens"] == reply["usage"]["completion_tokens"]
print("ok: the wrapper's stream")

# More tokens than the model has are cut to what it has, by the wrapper and by the server.
reply = json.loads(gemma.openai_transport(json.dumps({"messages": messages, "max_tokens": 10**6})))
assert reply["usage"]["total_tokens"] <= gemma.max_seq_len, reply
print("ok: max_tokens beyond the context")

reply = json.loads(gemma.openai_transport(json.dumps({"messages": messages, "temperature": 9})))
assert "temperature" in str(reply), reply
print("ok: an error")
