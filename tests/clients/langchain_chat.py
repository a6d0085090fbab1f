"""LangChain with gemma-pjrt.

    OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=secret python langchain_chat.py
"""
import asyncio
import os

import openai
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

model = openai.OpenAI().models.list().data[0].id
options = dict(model=model, base_url=os.environ["OPENAI_BASE_URL"], temperature=0, max_retries=0)
chat = ChatOpenAI(**options, stream_usage=True)

# A chain: a template, the model, the text of its answer.
prompt = ChatPromptTemplate.from_messages([("system", "Answer in one sentence."), ("human", "What is the capital of {country}?")])
chain = prompt | chat | StrOutputParser()
answer = chain.invoke({"country": "France"})
assert answer
print("ok: a chain")

assert "".join(chain.stream({"country": "France"})) == answer
print("ok: a chain's stream")

countries = ["France", "Italy", "Egypt", "Kenya"]
answers = chain.batch([{"country": country} for country in countries])
assert answers[0] == answer and len(answers) == 4
assert asyncio.run(chain.ainvoke({"country": "France"})) == answer
print("ok: many at once")

message = chat.invoke("What is the capital of France?")
assert "Paris" in message.content and message.response_metadata["finish_reason"] == "stop"
usage = message.usage_metadata
assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
streamed = None
for chunk in chat.stream("What is the capital of France?"):
    streamed = chunk if streamed is None else streamed + chunk
assert streamed.content == message.content and streamed.usage_metadata["output_tokens"] == usage["output_tokens"]
print("ok: usage")

scored = chat.bind(logprobs=True, top_logprobs=2).invoke("What is the capital of France?")
assert len(scored.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
print("ok: log-probabilities")

drawn = ChatOpenAI(**{**options, "temperature": 1.5}, seed=3, max_tokens=20, extra_body={"top_k": 40})
assert drawn.invoke("Hello!").content == drawn.invoke("Hello!").content
print("ok: a seed")

assert OpenAI(**options, max_tokens=8).invoke("The capital of France is")
print("ok: completions")

# LangChain knows an answer that a prompt is too long by its words.
try:
    chat.invoke("the " * 100_000)
    raise AssertionError("the prompt is too long")
except openai.BadRequestError as error:
    assert error.code == "context_length_exceeded" and type(error).__name__ == "OpenAIContextOverflowError"
print("ok: a prompt that is too long")
