// Runs one request and writes its answers into messages, as they come.

import { streamChat } from "./api.js";
import { requestFields } from "./params.js";

// Generates as many answers as there are messages in `answers`. Where the first has text already,
// it is continued. `changed` is called after each chunk. Errors end up in the messages.
export async function generate(answers, { model, history, params, seed, context }, signal, changed) {
  const prefix = answers[0].content;
  for (const answer of answers) {
    answer.tokens ??= prefix ? [{ token: prefix, logprob: null }] : [];
    Object.assign(answer, { finish: null, error: null, figures: null });
  }
  const started = performance.now();
  let first = null;
  try {
    const { n: _, ...fields } = requestFields(params, seed);
    const body = {
      model, ...fields, n: answers.length, stream: true, stream_options: { include_usage: true }, return_token_ids: true, timings: true,
      messages: prefix ? [...history, { role: "assistant", content: prefix }] : history,
    };
    if (prefix) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
    let usage = null;
    let timings = null;
    for await (const chunk of streamChat(body, signal)) {
      usage = chunk.usage ?? usage;
      timings = chunk.timings ?? timings;
      for (const choice of chunk.choices ?? []) {
        const answer = answers[choice.index];
        if (choice.delta?.content || choice.token_ids?.length > 0) first ??= performance.now() - started;
        take(answer, choice, chunk.prompt_token_ids);
      }
      changed();
    }
    const total = performance.now() - started;
    for (const answer of answers) answer.figures = figures(answer, { usage, timings, first, total, context, alone: answers.length === 1 });
  } catch (error) {
    const total = performance.now() - started;
    for (const answer of answers) {
      answer.figures = figures(answer, { usage: null, timings: null, first, total, context, alone: true });
      if (answer.finish) continue;
      answer.finish = error.name === "AbortError" ? "stopped" : "error";
      if (answer.finish === "error") {
        const lost = error instanceof TypeError ? "The server cannot be reached. Is it running?" : error.message;
        answer.error = { message: lost, status: error.status ?? null, retryAfter: error.retryAfter ?? null };
      }
    }
  }
  changed();
}

function take(answer, choice, promptIds) {
  answer.content += choice.delta?.content ?? "";
  const ids = choice.token_ids ?? [];
  const tokens = choice.logprobs?.content ?? [];
  tokens.forEach((token, i) => answer.tokens.push({ ...token, id: tokens.length === ids.length ? ids[i] : undefined }));
  answer.written = (answer.written ?? 0) + (ids.length || tokens.length);
  if (promptIds) answer.promptIds = promptIds;
  if (choice.finish_reason) answer.finish = choice.finish_reason;
}

function figures(answer, { usage, timings, first, total, context, alone }) {
  const written = (alone ? usage?.completion_tokens : null) ?? answer.written ?? 0;
  const after = total - (first ?? total);
  return {
    first, total, written, context,
    prompt: usage?.prompt_tokens ?? null,
    cached: usage?.prompt_tokens_details?.cached_tokens ?? timings?.cache_n ?? null,
    queue: timings?.queue_ms ?? null,
    prefill: timings?.prompt_ms ?? null,
    prefillRate: timings?.prompt_per_second ?? null,
    rate: timings?.predicted_per_second ?? (written > 1 && after > 0 ? ((written - 1) / after) * 1000 : null),
  };
}

// Returns the number of tokens with which two answers begin alike, and whether all are.
export function compareTokens(a, b) {
  const [left, right] = [a.tokens ?? [], b.tokens ?? []];
  let same = 0;
  while (same < left.length && same < right.length && left[same].token === right[same].token) same += 1;
  return { same, equal: a.content === b.content && same === left.length && same === right.length };
}
