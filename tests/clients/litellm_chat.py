"""LiteLLM with gemma-pjrt.

    OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=secret python litellm_chat.py
"""
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no list of prices is fetched

import litellm
import openai

litellm.suppress_debug_info = True  # no advice on standard error where an error is expected
server = dict(api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"], num_retries=0)
name = openai.OpenAI().models.list().data[0].id
# The prefix says whose interface it is: OpenAI's, or vLLM's with its further fields.
for model in (f"openai/{name}", f"hosted_vllm/{name}"):
    def chat(**more):
        question = [{"role": "user", "content": "What is the capital of France?"}]
        return litellm.completion(**{"model": model, "messages": question, "temperature": 0, **server, **more})

    answer = chat()
    assert "Paris" in answer.choices[0].message.content and answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer.choices[0].message.content
    assert next(chunk.usage for chunk in reversed(chunks) if getattr(chunk, "usage", None)).completion_tokens == answer.usage.completion_tokens

    drawn = dict(temperature=1.5, seed=5, n=2, max_tokens=20, extra_body={"top_k": 40})
    texts = [[choice.message.content for choice in chat(**drawn).choices] for _ in range(2)]
    assert texts[0] == texts[1] and len(texts[0]) == 2

    assert chat(stop=[" Paris"]).choices[0].message.content.endswith(" is")
    assert chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content[0].top_logprobs

    # Errors are LiteLLM's own kinds.
    for kind, change in (
        (litellm.ContextWindowExceededError, {"messages": [{"role": "user", "content": "the " * 100_000}]}),
        (litellm.BadRequestError, {"temperature": 9}),
        (litellm.NotFoundError, {"model": model + "-unknown"}),
        (litellm.AuthenticationError, {"api_key": "wrong"}),
    ):
        if kind is litellm.AuthenticationError and server["api_key"] == "none":
            continue
        try:
            chat(**change)
            raise AssertionError(f"{kind.__name__} was expected")
        except kind:
            pass
    print("ok:", model)

text = litellm.text_completion(model=f"text-completion-openai/{name}", prompt="The capital of France is", max_tokens=8, temperature=0, **server)
assert text.choices[0].text
print("ok: completions")
