// OpenAI's package for Node with gemma-pjrt.
//
//     OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=secret node openai_sdk.mjs
import assert from "node:assert/strict";
import OpenAI from "openai";

// The address and the key come from the environment. Without retries an error is seen at once.
const client = new OpenAI({ maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const question = { model, messages: [{ role: "user", content: "What is the capital of France?" }], temperature: 0 };
const ok = (what) => console.log("ok:", what);

assert.equal((await client.models.retrieve(model)).id, model);
ok("models");

const answer = await client.chat.completions.create(question);
assert.match(answer.choices[0].message.content, /Paris/);
assert.equal(answer.choices[0].finish_reason, "stop");
assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
ok("an answer");

let text = "";
let usage;
for await (const chunk of await client.chat.completions.create({ ...question, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, answer.choices[0].message.content);
assert.deepEqual(usage.completion_tokens, answer.usage.completion_tokens);
ok("an answer as it is written");

// The package's own helper puts a stream together.
const final = await client.chat.completions.stream(question).finalChatCompletion();
assert.equal(final.choices[0].message.content, text);
ok("the package's stream helper");

const story = [{ role: "user", content: "Tell me a story." }];
const drawn = { model, messages: story, temperature: 2, n: 3, seed: 7, max_tokens: 20 };
const texts = async (body) => (await client.chat.completions.create(body)).choices.map((choice) => choice.message.content);
assert.deepEqual(await texts(drawn), await texts(drawn));
assert.notDeepEqual(await texts(drawn), await texts({ ...drawn, seed: 8 }));
ok("several answers and a seed");

const cut = await client.chat.completions.create({ ...question, stop: [" Paris"] });
assert.equal(cut.choices[0].message.content, text.slice(0, text.indexOf(" Paris")));
ok("where an answer ends");

const scored = await client.chat.completions.create({ ...question, logprobs: true, top_logprobs: 2 });
const tokens = scored.choices[0].logprobs.content;
assert.equal(Buffer.from(tokens.flatMap((token) => token.bytes)).toString(), text);
assert.ok(tokens.every((token) => token.top_logprobs.length === 2 && token.logprob <= 0));
ok("log-probabilities");

const echoed = await client.completions.create({ model, prompt: "The capital of France", echo: true, max_tokens: 0, logprobs: 1 });
assert.equal(echoed.choices[0].text, "The capital of France");
assert.equal(echoed.choices[0].logprobs.token_logprobs[0], null);
ok("the likelihood of a text");

await assert.rejects(client.chat.completions.create({ ...question, temperature: 9 }), { status: 400, param: "temperature" });
await assert.rejects(client.chat.completions.create({ ...question, model: "no-such-model" }), { status: 404, code: "model_not_found" });
if (client.apiKey !== "none") {
  await assert.rejects(client.withOptions({ apiKey: "wrong" }).models.list(), { status: 401 });
}
ok("errors");

// Fields that OpenAI does not have are written beside the others.
const stream = await client.chat.completions.create({ ...question, stream: true, max_tokens: 400, ignore_eos: true });
for await (const _ of stream) {
  break; // ends the request, and with it the answer
}
assert.ok(stream.controller.signal.aborted);
ok("cancelling");
