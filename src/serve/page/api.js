// Talks to the server. Addresses are relative to the page's, so that it also works below a prefix.

import { settings } from "./store.js";

const base = new URL(".", document.baseURI);

export class ApiError extends Error {
  constructor(status, error, retryAfter) {
    super(error.message);
    Object.assign(this, { status, type: error.type, param: error.param, code: error.code, retryAfter });
  }
}

// Asks the user for a key and resolves to true when there is one to try.
let askForKey = async () => false;
let asking = null;
export function onKeyNeeded(ask) {
  askForKey = ask;
}

function key() {
  return sessionStorage.getItem("gemma.key") ?? settings.get("key", null);
}

// Forgets the key where it is not remembered: at the end of the session, or at once if it is empty.
export function setKey(value, remember) {
  sessionStorage.removeItem("gemma.key");
  settings.set("key", null);
  if (value && remember) settings.set("key", value);
  else if (value) sessionStorage.setItem("gemma.key", value);
}

export const hasKey = () => key() !== null;

// Returns the response, or throws an ApiError. `quiet` requests never ask for a key.
export async function request(path, { body, signal, quiet = false } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key()) headers.Authorization = `Bearer ${key()}`;
  const response = await fetch(new URL(path, base), {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
    cache: "no-store",
  });
  if (response.ok) return response;
  if (response.status === 401 && !quiet) {
    asking ??= askForKey().finally(() => (asking = null));
    if (await asking) return request(path, { body, signal });
  }
  const text = await response.text();
  let error;
  try {
    error = JSON.parse(text).error;
  } catch {
    // Not the server's own words: a proxy's, perhaps.
  }
  if (!error?.message) error = { message: `${path}: the server answered ${response.status} ${response.statusText}` };
  throw new ApiError(response.status, error, Number(response.headers.get("Retry-After")) || null);
}

export const get = async (path, options) => (await request(path, options)).json();
export const post = async (path, body, options) => (await request(path, { body, ...options })).json();

// Yields the chunks of a streamed chat completion. An error in the stream is thrown.
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", { body, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.code ?? 500, chunk.error);
    yield chunk;
  }
  throw new Error("The connection ended before the answer did.");
}

// Yields the data of server-sent events. Comments, which keep the connection alive, are skipped.
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length > 0) yield data.join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Returns the samples of a Prometheus text by name; those with several labels are added.
export function parseMetrics(text) {
  const samples = {};
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{.*\})? (\S+)/.exec(line);
    if (match) samples[match[1]] = (samples[match[1]] ?? 0) + Number(match[2]);
  }
  return samples;
}
