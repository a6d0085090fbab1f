// What the server is doing now: slots, queue, cache, speed, and its share of the machine's limit.

import { ApiError, parseMetrics, request } from "./api.js";
import { $, el, percent, whole } from "./dom.js";

const POLL = 2000;
// More slots than these are a bar.
const MOST_DOTS = 32;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Resolves when the server is ready; shows its progress until then.
export async function waitUntilReady(banner) {
  for (;;) {
    const shown = await progress().catch(() => [el("span", {}, "The server cannot be reached. Trying again\u2026")]);
    banner.hidden = shown === null;
    if (shown === null) return;
    banner.replaceChildren(...shown);
    await sleep(1000);
  }
}

// Returns how far the server is, or null if it is ready. The status says whether, the body how far.
async function progress() {
  const response = await fetch(new URL("readyz", new URL(".", document.baseURI)), { cache: "no-store" });
  if (response.status !== 503) return null;
  const { status, reason, programs } = await response.json();
  if (status !== "loading") return [el("span", {}, reason ? `The server has failed: ${reason}` : `The server takes no requests: ${status}.`)];
  const { done, total } = programs ?? {};
  const words = total ? `${done} of ${total} programs are compiled` : "weights are loading";
  return [el("span", {}, `The server is getting ready: ${words}.`), total > 0 && el("progress", { max: total, value: done, "aria-label": "Programs compiled" })].filter(Boolean);
}

export class LiveStatus {
  constructor(root) {
    this.root = root;
    this.last = null;
    this.poll();
    setInterval(() => document.visibilityState === "visible" && this.poll(), POLL);
  }

  async poll() {
    try {
      const samples = parseMetrics(await (await request("metrics", { quiet: true })).text());
      this.draw(samples);
      $("offline").hidden = true;
    } catch (error) {
      // Without a key there is nothing to show; without a server there is that to say.
      if (!(error instanceof ApiError)) $("offline").hidden = false;
      this.root.replaceChildren();
    }
  }

  draw(samples) {
    const now = performance.now();
    const tokens = samples.gemma_generation_tokens_total;
    const rate = this.last && tokens !== undefined ? Math.max(0, ((tokens - this.last.tokens) / (now - this.last.now)) * 1000) : null;
    this.last = { tokens, now };
    const { gemma_slots: slots, gemma_requests_running: running = 0, gemma_requests_waiting: waiting = 0, gemma_kv_cache_usage_ratio: cache, gemma_memory_limit_share: share } = samples;
    this.root.replaceChildren(...[
      slots !== undefined && el("div", { class: "slots" }, el("span", {}, "Slots"), slotsNode(running, slots), el("b", {}, `${running}/${slots}`)),
      el("div", {}, el("span", {}, "Queue"), el("b", {}, whole(waiting))),
      rate !== null && el("div", {}, el("span", {}, "Speed"), el("b", {}, `${whole(rate)} tok/s`)),
      cache !== undefined && meterRow("KV cache", cache),
      share !== undefined && meterRow("Machine's limit", share),
    ].filter(Boolean));
  }
}

function slotsNode(running, slots) {
  const label = `${running} of ${slots} slots are busy`;
  if (slots > MOST_DOTS) return meter(label, running, slots);
  return el("span", { class: "dots", role: "img", "aria-label": label }, Array.from({ length: slots }, (_, i) => el("i", { class: i < running && "busy" })));
}

function meter(label, value, max) {
  const node = el("span", { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": max, "aria-valuenow": value });
  node.style.setProperty("--share", Math.min(value / max, 1));
  return node;
}

function meterRow(name, share) {
  return el("div", {}, el("span", {}, name), meter(name, share, 1), el("b", {}, percent(share)));
}
