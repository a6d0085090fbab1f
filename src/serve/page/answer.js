// Shows an answer: as markdown or as tokens, with its figures and what ended it.

import { button, duration, el, whole } from "./dom.js";
import { watchText } from "./hover.js";
import { MarkdownView } from "./markdown.js";
import { TokenView } from "./tokens.js";

const ENDINGS = {
  length: "Ended at the length limit.",
  stopped: "Stopped by you.",
};

export class AnswerView {
  // `actions`: { branch(index, alternative), retry(), pin(seed) }, each optional.
  constructor(answer, actions = {}) {
    this.answer = answer;
    this.actions = actions;
    this.body = el("div", { class: "body" });
    this.foot = el("div", { class: "foot" });
    this.node = el("div", { class: "answer" }, this.body, this.foot);
    this.mode = null;
  }

  // Shows the answer as it is now; `asTokens` picks the view, where there are tokens to show.
  update(running, asTokens) {
    const { answer } = this;
    const mode = asTokens && (answer.tokens ?? []).some((token) => token.logprob !== null) ? "tokens" : "text";
    if (mode !== this.mode) this.switchTo(mode);
    if (mode === "tokens") this.view.update(answer.tokens);
    else this.view.update(answer.content);
    this.body.setAttribute("aria-busy", String(running));
    this.node.classList.toggle("running", running);
    this.node.classList.toggle("waiting", running && answer.content === "");
    if (running) this.foot.replaceChildren();
    else if (this.foot.childNodes.length === 0 || this.shownFinish !== answer.finish) this.drawFoot();
  }

  switchTo(mode) {
    this.mode = mode;
    const root = mode === "tokens"
      ? el("div", { class: "tokens", role: "group", "aria-label": "Tokens of the answer; arrow keys move between them" })
      : el("div", { class: "markdown" });
    if (mode === "text") watchText(root, this.answer, this.actions.branch);
    this.view = mode === "tokens" ? new TokenView(root, this.actions.branch) : new MarkdownView(root);
    const legend = mode === "tokens" && el("p", { class: "legend", "aria-hidden": "true" }, "certain",
      [0, 1, 2, 3, 4].map((level) => el("span", { class: `level${level}` })), "surprising");
    this.body.replaceChildren(...[legend, root].filter(Boolean));
  }

  drawFoot() {
    const { answer } = this;
    const { finish, error } = answer;
    this.shownFinish = finish;
    const nodes = [];
    if (error) {
      const again = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
      nodes.push(el("div", { class: "error", role: "alert" }, el("p", {}, error.message + again), this.actions.retry && button("redo", "Try again", this.actions.retry, { words: true })));
    }
    const ending = finish ? ENDINGS[finish] : answer.edited ? null : "Interrupted before its end.";
    if (ending) nodes.push(el("p", { class: "ending" }, ending));
    if (answer.repeat) nodes.push(el("p", { class: answer.repeat.equal ? "ending same" : "ending differs" }, repeatText(answer.repeat)));
    if (answer.figures) nodes.push(figuresList(answer, this.actions.pin));
    // Something is there even if all is well, so that it is drawn once.
    this.foot.replaceChildren(...(nodes.length > 0 ? nodes : [""]));
  }
}

const repeatText = ({ equal, same }) => (equal ? `The same answer again: all ${whole(same)} tokens are equal.` : `Not the same answer: it differs from token ${whole(same + 1)} on.`);

function figuresList(answer, pin) {
  const { first, total, written, context, prompt, cached, queue, prefill, prefillRate, rate } = answer.figures;
  const entry = (name, value, title) => value !== null && el("div", { title }, el("dt", {}, name), el("dd", {}, value));
  const used = prompt === null ? null : prompt + written;
  const detail = [queue !== null && `${duration(queue)} in the queue`, prefill !== null && `${duration(prefill)} for the prompt`, prefillRate && `${whole(prefillRate)} prompt tokens a second`];
  const seed = answer.request?.seed;
  return el("dl", { class: "figures" },
    entry("TTFT", first === null ? null : duration(first), ["Time to the first token", ...detail.filter(Boolean)].join("; ")),
    entry("speed", rate === null ? null : `${rate >= 100 ? whole(rate) : rate.toFixed(1)} tok/s`, "Tokens a second, after the first"),
    entry("answer", `${whole(written)} tok`, `Written in ${duration(total)}`),
    entry("cached", cached === null ? null : `${whole(cached)} of ${whole(prompt ?? cached)}`, "Tokens of the prompt that were in the cache"),
    entry("context", used === null ? null : context ? `${((used / context) * 100).toFixed(used / context < 0.1 ? 1 : 0)} %` : `${whole(used)} tok`, used !== null ? `${whole(used)} of ${context ? whole(context) : "unknown"} tokens` : ""),
    seed !== undefined && el("div", {}, el("dt", {}, "seed"), el("dd", {}, pin ? el("button", { type: "button", class: "link", title: "Pin this seed for the answers to come", "aria-label": `Pin seed ${seed}`, onclick: () => pin(seed) }, String(seed)) : String(seed))));
}
