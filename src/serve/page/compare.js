// Two sets of parameters on one prompt, side by side.

import { $, announce, el, toast, whole } from "./dom.js";
import { AnswerView } from "./answer.js";
import { compareTokens, generate } from "./generate.js";
import { ParamsForm, randomSeed, summary } from "./params.js";
import { loadModels, startShell } from "./shell.js";
import { waitUntilReady } from "./status.js";
import { settings } from "./store.js";

let model = null;
let controller = null;
let asTokens = settings.get("tokens", false);
const stored = settings.get("compare", {});

class Side {
  constructor(name, params) {
    this.name = name;
    this.params = params;
    this.answer = null;
    this.summary = el("summary", {});
    const form = el("form", { onsubmit: (event) => event.preventDefault() });
    this.form = new ParamsForm(form, name.toLowerCase(), () => this.changed());
    this.out = el("div", { class: "out" });
    this.node = el("section", { class: "side", "aria-label": `Parameters ${name}` },
      el("header", {}, el("span", { class: "badge", "aria-hidden": "true" }, name), el("h2", {}, `Parameters ${name}`)),
      el("details", {}, this.summary, form), this.out);
  }

  show(params) {
    this.params = params;
    this.form.show(params, model);
    this.changed();
  }

  changed() {
    this.summary.textContent = summary(this.params);
    keep();
  }

  async run(question, system, seed, signal) {
    this.answer = { content: "", tokens: [], request: { model: model.id, params: structuredClone(this.params), seed: this.params.seed ?? seed } };
    this.view = new AnswerView(this.answer);
    this.out.replaceChildren(this.view.node);
    const history = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: question }];
    this.running = true;
    this.draw();
    const { request } = this.answer;
    await generate([this.answer], { model: model.id, history, params: request.params, seed: request.seed, context: model.max_model_len }, signal, () => {
      this.frame ??= requestAnimationFrame(() => {
        this.frame = null;
        this.draw();
      });
    });
    this.running = false;
    this.draw();
  }

  draw() {
    this.view?.update(this.running, asTokens);
  }
}

const sides = [new Side("A", stored.a ?? { temperature: 0 }), new Side("B", stored.b ?? { temperature: 1 })];

function keep() {
  settings.set("compare", { a: sides[0].params, b: sides[1].params, question: $("question").value, system: $("system").value });
}

async function run() {
  const question = $("question").value.trim();
  if (!question) return toast("Write a prompt first");
  if (!model) return toast("The server is not ready yet");
  keep();
  controller = new AbortController();
  setBusy(true);
  announce("Both answers are being written.");
  const shared = randomSeed();
  await Promise.all(sides.map((side) => side.run(question, $("system").value, $("same-seed").checked ? shared : randomSeed(), controller.signal)));
  setBusy(false);
  $("verdict").textContent = verdict(sides[0].answer, sides[1].answer);
  mark();
}

function verdict(a, b) {
  if (a.error || b.error) return "";
  const { same, equal } = compareTokens(a, b);
  if (a.tokens.length === 0 || b.tokens.length === 0) return a.content === b.content ? "The answers are the same text." : "The answers differ.";
  if (equal) return `The answers are the same: all ${whole(same)} tokens.`;
  return same === 0 ? "The answers differ from their first token on." : `The answers share their first ${whole(same)} tokens, then part.`;
}

// Marks, in the token view, where the answers part.
function mark() {
  if (!sides.every(({ answer }) => answer)) return;
  const { same } = compareTokens(sides[0].answer, sides[1].answer);
  for (const { out } of sides) {
    for (const token of out.querySelectorAll(".token")) token.classList.toggle("parts", Number(token.dataset.index) === same);
  }
}

function setBusy(busy) {
  $("stop").hidden = !busy;
  $("go").hidden = busy;
  for (const id of ["swap", "level"]) $(id).disabled = busy;
  if (busy) $("verdict").textContent = "";
}

async function start() {
  startShell();
  $("sides").append(...sides.map(({ node }) => node));
  $("question").value = stored.question ?? "";
  $("system").value = stored.system ?? "";
  $("tokens").setAttribute("aria-pressed", String(asTokens));
  $("ask").addEventListener("submit", (event) => (event.preventDefault(), run()));
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  });
  $("stop").addEventListener("click", () => controller.abort());
  addEventListener("keydown", (event) => event.key === "Escape" && controller?.abort());
  $("swap").addEventListener("click", () => {
    const [a, b] = sides.map(({ params }) => params);
    sides[0].show(b);
    sides[1].show(a);
  });
  $("level").addEventListener("click", () => sides[1].show(structuredClone(sides[0].params)));
  $("tokens").addEventListener("click", () => {
    asTokens = !asTokens;
    settings.set("tokens", asTokens);
    $("tokens").setAttribute("aria-pressed", String(asTokens));
    for (const side of sides) side.draw();
    mark();
  });
  for (const side of sides) side.show(side.params);
  for (;;) {
    await waitUntilReady($("banner"));
    try {
      model = await loadModels($("model"), (chosen) => (model = chosen));
      break;
    } catch (error) {
      toast(error.message);
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
  for (const side of sides) side.show(side.params);
}

start();
