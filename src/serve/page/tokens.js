// The token view: each token of an answer coloured by its probability, and the box of the
// alternatives that the model weighed. Choosing one of them branches the answer there.

import { $, el, percent, place } from "./dom.js";

// Tokens that end an answer: as an alternative they have no text to go on from.
const ENDS = new Set(["<eos>", "<end_of_turn>"]);

const encoder = new TextEncoder();

const bytesOf = (token) => token.bytes ?? [...encoder.encode(token.token)];

// Returns the text up to and with `alternative` in the place of token `index`, or null where a
// character would end in its middle.
export function textWith(tokens, index, alternative) {
  const bytes = tokens.slice(0, index).concat(alternative).flatMap(bytesOf);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(bytes));
  } catch {
    return null;
  }
}

export const endsAnswer = (token) => ENDS.has(token.token);

// Returns what stands for a token in the page: line breaks are shown, parts of characters in hex.
function display({ token, bytes }) {
  if (bytes?.length > 0 && (token === "" || token.includes("\ufffd") || /^<0x[0-9A-F]{2}>$/.test(token))) {
    return `\u2039${bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")}\u203a`;
  }
  return token.replaceAll("\n", "\u21b5\n");
}

// The same where it stands alone: spaces are visible too.
const quoted = (token) => display(token).trimEnd().replace(/^ +| +$/g, (spaces) => "\u00b7".repeat(spaces.length)) || "\u00b7".repeat(token.token.length);

function level(probability) {
  const limits = [0.9, 0.6, 0.3, 0.1];
  const at = limits.findIndex((limit) => probability >= limit);
  return at < 0 ? 4 : at;
}

export class TokenView {
  // `branch(index, alternative)` is called with the choice; without it none can be chosen.
  constructor(root, branch) {
    Object.assign(this, { root, branch, tokens: [], shown: 0, current: 0 });
    root.addEventListener("pointerover", (event) => this.open(event.target.closest(".token")));
    root.addEventListener("pointerout", closeSoon);
    root.addEventListener("focusin", (event) => this.open(event.target));
    root.addEventListener("focusout", closeSoon);
    root.addEventListener("keydown", (event) => this.key(event));
  }

  update(tokens) {
    this.tokens = tokens;
    for (; this.shown < tokens.length; this.shown += 1) this.root.append(this.node(tokens[this.shown], this.shown));
  }

  node(token, index) {
    const text = display(token);
    // Text without probabilities: written by hand, or before a branch.
    if (token.logprob === null) return el("span", { class: "given" }, text);
    const probability = Math.exp(token.logprob);
    const first = !this.root.querySelector(".token");
    return el("span", {
      class: `token level${level(probability)}${token.chosen ? " chosen" : ""}`, role: "button", tabindex: first ? "0" : "-1",
      "data-index": index, "aria-label": `${quoted(token)}, ${percent(probability)}`, "aria-haspopup": "dialog",
    }, text);
  }

  key(event) {
    const all = [...this.root.querySelectorAll(".token")];
    const at = all.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to !== undefined) this.focus(all[to]);
    else if (["Enter", " ", "ArrowDown"].includes(event.key)) floating()?.querySelector("button")?.focus();
    else if (event.key === "Escape" && floating()) floating().remove();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  focus(node) {
    if (!node) return;
    this.root.querySelector('.token[tabindex="0"]')?.setAttribute("tabindex", "-1");
    node.setAttribute("tabindex", "0");
    node.focus();
  }

  open(anchor) {
    if (anchor?.dataset.index) showAlternatives(this.tokens, Number(anchor.dataset.index), this.branch, anchor);
  }
}

// Opens the box of a token's alternatives at `anchor`: an element, or a range of text.
export function showAlternatives(tokens, index, branch, anchor) {
  clearTimeout(closing);
  if (floating()?.token === tokens[index]) return;
  floating()?.remove();
  const token = tokens[index];
  const others = token.top_logprobs ?? [];
  const rank = others.findIndex((other) => other.token === token.token && other.logprob === token.logprob);
  const rows = rank < 0 ? [...others, token] : others;
  const node = el("div", { id: "alternatives", class: "floating", role: "dialog", "aria-label": `Alternatives of ${quoted(token)}` },
    el("header", {}, el("code", {}, quoted(token)), el("strong", {}, percent(Math.exp(token.logprob)))),
    el("p", { class: "detail" }, [`token ${index + 1}`, token.id !== undefined && `id ${token.id}`, `logprob ${token.logprob.toFixed(3).replace(/^-0\.000$/, "0.000")}`].filter(Boolean).join(" \u00b7 ")),
    el("ul", {}, rows.map((other) => el("li", {}, alternative(tokens, index, other, branch)))),
    branch && rows.length > 1 && el("p", { class: "detail" }, "Choose one to branch the answer here."));
  node.token = token;
  node.addEventListener("pointerenter", () => clearTimeout(closing));
  node.addEventListener("pointerleave", closeSoon);
  node.addEventListener("focusin", () => clearTimeout(closing));
  node.addEventListener("focusout", closeSoon);
  node.addEventListener("keydown", (event) => {
    const buttons = [...node.querySelectorAll("button")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") {
      node.remove();
      anchor.focus?.();
    } else if (step) buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length]?.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  document.body.append(node);
  for (const bar of node.querySelectorAll(".fill")) bar.style.setProperty("--share", bar.dataset.share);
  place(node, anchor);
}

function alternative(tokens, index, other, branch) {
  const share = Math.exp(other.logprob);
  const row = [el("span", { class: "fill", "data-share": share.toFixed(4) }), el("code", {}, quoted(other)), " ", el("span", { class: "share" }, percent(share))];
  const own = other.token === tokens[index].token && other.logprob === tokens[index].logprob;
  if (own) return el("span", { class: "row own" }, row);
  const text = textWith(tokens, index, other);
  if (!branch || (text === null && !endsAnswer(other))) return el("span", { class: "row" }, row);
  return el("button", { type: "button", class: "row", onclick: () => {
    floating()?.remove();
    branch(index, other);
  } }, el("span", { class: "sr" }, "Branch with "), row);
}

export function closeSoon() {
  clearTimeout(closing);
  closing = setTimeout(() => floating()?.remove(), 180);
}

let closing = 0;
const floating = () => $("alternatives");
addEventListener("scroll", () => floating()?.remove(), true);
addEventListener("keydown", (event) => event.key === "Escape" && floating()?.remove());
