// The conversation page.

import { $, announce, button, copy, dialog, el, menu, toast } from "./dom.js";
import { AnswerView } from "./answer.js";
import { exportJson, exportMarkdown, parseExport } from "./files.js";
import { compareTokens, generate } from "./generate.js";
import { ParamsForm, randomSeed } from "./params.js";
import { showPrompt } from "./prompt.js";
import { loadModels, startShell } from "./shell.js";
import { conversationMenu, Sidebar } from "./sidebar.js";
import { LiveStatus, waitUntilReady } from "./status.js";
import { messagesOf, listConversations, remove, save, settings } from "./store.js";
import { endsAnswer, textWith } from "./tokens.js";
import { copyMessages, newConversation, newestLeaf, newId, newMessage, path, siblings } from "./tree.js";

const SUGGESTIONS = ["What is the capital of France?", "Spell the word apple.", "What is 12 plus 30?", "Sort these numbers: 7, 2, 9, 4."];
const SAVE_EVERY = 2000;

const narrow = matchMedia("(max-width: 900px)");
const touch = matchMedia("(pointer: coarse)");

let model = null;
let conversation = null;
let messages = new Map();
// Answers that are being written, by id: in whichever conversation.
const running = new Map();
const views = new Map();
let editing = null;
let asTokens = settings.get("tokens", false);

const actions = { rename, branch: (which) => branchOff(which, which.leaf), exportJson: exportOne, exportMarkdown: exportAsMarkdown, remove: removeConversation };
const sidebar = new Sidebar(actions);
const form = new ParamsForm($("params"), "p", paramsChanged);

// Conversations

async function startNew() {
  conversation = newConversation(settings.get("system", ""), settings.get("params", {}));
  messages = new Map();
  if (location.hash) history.pushState(null, "", location.pathname);
  shown();
  if (!touch.matches) $("draft").focus();
}

async function open(id) {
  const found = (await listConversations().catch(() => [])).find((other) => other.id === id);
  if (!found) return startNew();
  const all = await messagesOf(id);
  conversation = [...running.values()].find((run) => run.conversation.id === id)?.conversation ?? found;
  messages = new Map(all.map((message) => [message.id, running.get(message.id)?.answer ?? message]));
  for (const { answer } of running.values()) if (answer.conversation === id) messages.set(answer.id, answer);
  shown();
}

// Draws the conversation that has just been opened.
function shown() {
  editing = null;
  views.clear();
  $("system").value = conversation.system;
  form.show(conversation.params, model);
  if (narrow.matches) setSidebar(false);
  sidebar.current = conversation.id;
  sidebar.refresh();
  draw();
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

function stored(...changed) {
  conversation.updated = Date.now();
  return keep(conversation, ...changed);
}

// What is deleted stays so, even if an answer in it is only ending now.
const removed = new Set();

async function keep(which, ...changed) {
  if (removed.has(which.id)) return;
  try {
    await save(which, ...changed);
  } catch (error) {
    toast(`This browser does not store the conversation: ${error?.message ?? "no room"}`);
  }
}

function rename(which) {
  const input = el("input", { id: "rename-field", value: which.title, maxlength: "200" });
  const node = dialog("Rename", {}, el("form", { class: "keyform", onsubmit: async (event) => {
    event.preventDefault();
    const target = which.id === conversation.id ? conversation : which;
    target.title = input.value.trim() || target.title;
    target.named = true;
    node.close();
    if (messages.size > 0 || target !== conversation) await keep(target);
    sidebar.refresh();
    drawTitle();
  } }, el("label", { for: "rename-field" }, "Title"), input, el("button", { type: "submit", class: "primary" }, "Rename")));
  input.select();
}

async function removeConversation(which) {
  const old = await messagesOf(which.id);
  for (const run of running.values()) if (run.conversation.id === which.id) run.controller.abort();
  removed.add(which.id);
  await remove(which.id);
  if (which.id === conversation.id) startNew();
  sidebar.refresh();
  toast(`\u201c${which.title}\u201d is deleted`, { label: "Undo", run: async () => {
    removed.delete(which.id);
    await keep(which, ...old);
    location.hash = which.id;
    sidebar.refresh();
  } });
}

// Copies the path to a leaf into a conversation of its own.
async function branchOff(which, leaf) {
  const all = new Map((which.id === conversation.id ? [...messages.values()] : await messagesOf(which.id)).map((message) => [message.id, message]));
  const branch = { ...newConversation(which.system, { ...which.params }), title: `${which.title} (branch)`, named: true };
  const copies = copyMessages(path(all, leaf), branch.id);
  branch.leaf = copies.at(-1)?.id ?? null;
  await keep(branch, ...copies);
  location.hash = branch.id;
  toast("Branched into a new conversation");
}

async function exportOne(which) {
  exportJson([{ ...which, messages: await messagesOf(which.id) }]);
}

async function exportAsMarkdown(which) {
  exportMarkdown(which, new Map((await messagesOf(which.id)).map((message) => [message.id, message])));
}

async function exportAll() {
  const all = await listConversations();
  if (all.length === 0) return toast("There is no conversation yet");
  exportJson(await Promise.all(all.map(async (each) => ({ ...each, messages: await messagesOf(each.id) }))));
}

function importFile() {
  const input = el("input", { id: "import-file", type: "file", accept: "application/json,.json", hidden: true });
  input.addEventListener("change", async () => {
    try {
      const entries = parseExport(await input.files[0].text());
      for (const { messages: list, ...each } of entries) {
        // Under new ids, so that nothing that is here is overwritten.
        const copies = copyMessages(list, newId());
        const leaf = copies[list.findIndex((message) => message.id === each.leaf)]?.id ?? null;
        const target = copies[0]?.conversation ?? newId();
        await save({ named: true, system: "", params: {}, created: Date.now(), updated: Date.now(), ...each, id: target, leaf }, ...copies);
      }
      sidebar.refresh();
      toast(entries.length === 1 ? "One conversation is imported" : `${entries.length} conversations are imported`);
    } catch (error) {
      toast(error.message);
    }
    input.remove();
  });
  document.body.append(input);
  input.click();
}

// Answers

const historyTo = (parent, system) => [
  ...(system ? [{ role: "system", content: system }] : []),
  ...path(messages, parent).map(({ role, content }) => ({ role, content })),
];

// Appends a message of the user's to `parent` and has it answered.
function ask(parent, text) {
  const message = newMessage(conversation, parent, "user", text);
  messages.set(message.id, message);
  if (!conversation.named && parent === null) conversation.title = text.trim().split("\n")[0].slice(0, 60);
  conversation.leaf = message.id;
  if (location.hash !== `#${conversation.id}`) history.pushState(null, "", `#${conversation.id}`);
  stored(message);
  answer(message.id);
}

// Returns what an answer is asked with now, but for its messages.
function request(prefix = "") {
  return { model: model.id, system: conversation.system, params: structuredClone(conversation.params), seed: conversation.params.seed ?? randomSeed(), prefix };
}

// Writes new answers to a message of the user's.
function answer(parent, { asked = request(), prefix = "", tokens, repeatOf } = {}) {
  const count = prefix || repeatOf ? 1 : asked.params.n ?? 1;
  const answers = Array.from({ length: count }, (_, i) => ({ ...newMessage(conversation, parent, "assistant", prefix, i), request: { ...asked, prefix }, tokens, finish: null }));
  for (const each of answers) messages.set(each.id, each);
  conversation.leaf = answers[0].id;
  return run(answers, repeatOf);
}

async function run(answers, repeatOf) {
  const mine = conversation;
  const [{ request, parent }] = answers;
  const controller = new AbortController();
  for (const each of answers) running.set(each.id, { answer: each, controller, conversation: mine });
  const history = historyTo(parent, request.system);
  let saved = Date.now();
  mine.updated = Date.now();
  keep(mine, ...answers);
  draw();
  follow(true);
  sidebar.refresh();
  announce("The answer is being written.");
  await generate(answers, { model: request.model, history, params: request.params, seed: request.seed, context: model.max_model_len }, controller.signal, () => {
    redraw(answers);
    if (Date.now() - saved > SAVE_EVERY) {
      saved = Date.now();
      keep(mine, ...answers);
    }
  });
  for (const each of answers) running.delete(each.id);
  if (repeatOf) answers[0].repeat = compareTokens(answers[0], repeatOf);
  await keep(mine, ...answers);
  redraw(answers);
  drawState();
  announce(answers[0].error ? `Error: ${answers[0].error.message}` : `The answer is complete: ${answers[0].content}`);
}

function stop() {
  for (const each of running.values()) if (each.conversation.id === conversation.id) each.controller.abort();
}

const isRunningHere = () => [...running.values()].some((each) => each.conversation.id === conversation.id);

// Writes on where an answer ended, in the same message.
function goOn(message) {
  message.request = request(message.content);
  message.repeat = null;
  message.written = 0;
  run([message]);
}

// Asks for the same answer again: the same messages, parameters and seed.
function again(message) {
  const { prefix, params, ...rest } = message.request;
  // Where it was continued or branched off, the first tokens are those before.
  let length = 0;
  const given = prefix ? (message.tokens ?? []).filter(({ token }) => (length += token.length) <= prefix.length) : undefined;
  answer(message.parent, { asked: { ...rest, params: { ...params, seed: rest.seed } }, prefix, tokens: given, repeatOf: message });
}

function branchAt(message, index, alternative) {
  if (isRunningHere()) return toast("Wait for the answer, or stop it, before branching");
  const before = message.tokens.slice(0, index);
  if (endsAnswer(alternative)) {
    const short = { ...newMessage(conversation, message.parent, "assistant", textWith(before, index, []) ?? ""), tokens: before, request: message.request, finish: "stop", figures: null };
    messages.set(short.id, short);
    conversation.leaf = short.id;
    stored(short);
    return draw();
  }
  const chosen = { ...alternative, top_logprobs: message.tokens[index].top_logprobs, chosen: true };
  return answer(message.parent, { prefix: textWith(message.tokens, index, alternative), tokens: [...before, chosen] });
}

// Drawing

const pending = new Set();
function redraw(answers) {
  if (pending.size === 0) {
    requestAnimationFrame(() => {
      const bottom = isAtBottom();
      for (const each of pending) updateView(each);
      pending.clear();
      if (bottom) follow(false);
    });
  }
  for (const each of answers) pending.add(each);
}

function updateView(message) {
  const view = views.get(message.id);
  if (view) view.answer.update(running.has(message.id), asTokens);
}

const isAtBottom = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 60;

function follow(smooth) {
  $("scroll").scrollTo({ top: $("scroll").scrollHeight, behavior: smooth && !matchMedia("(prefers-reduced-motion: reduce)").matches ? "smooth" : "instant" });
}

function draw() {
  const shownPath = path(messages, conversation.leaf);
  $("messages").replaceChildren(...(shownPath.length > 0 ? shownPath.map(messageNode) : [welcome()]));
  drawTitle();
  drawState();
}

function drawTitle() {
  $("title").textContent = conversation.title;
  document.title = messages.size > 0 ? `${conversation.title} \u00b7 Gemma` : "Gemma";
}

// Draws what depends on whether an answer is being written.
function drawState() {
  const busy = isRunningHere();
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  $("tokens").setAttribute("aria-pressed", String(asTokens));
  const last = path(messages, conversation.leaf).findLast((message) => message.figures?.prompt);
  const share = last ? (last.figures.prompt + last.figures.written) / (last.figures.context || Infinity) : 0;
  $("context").style.setProperty("--share", Math.min(share, 1));
  for (const message of path(messages, conversation.leaf)) drawActions(message);
}

function welcome() {
  return el("div", { class: "welcome" },
    el("img", { src: "page/icon.svg", alt: "", width: "56", height: "56" }),
    el("h2", {}, model ? `Ask ${model.id}` : "Ask"),
    el("p", {}, "Nothing leaves this server: conversations are kept by your browser, answers are computed on the machine that serves this page."),
    el("div", { class: "suggestions" }, SUGGESTIONS.map((text) => el("button", { type: "button", onclick: () => !isRunningHere() && ask(null, text) }, text))));
}

function messageNode(message) {
  if (editing === message.id) return editor(message);
  let view = views.get(message.id);
  if (!view) {
    view = message.role === "user" ? userView(message) : answerView(message);
    views.set(message.id, view);
  }
  view.answer?.update(running.has(message.id), asTokens);
  return view.node;
}

function userView(message) {
  const bar = el("div", { class: "actions" });
  return { bar, node: el("article", { class: "message user", "aria-label": "You" }, el("div", { class: "bubble" }, message.content), bar) };
}

function answerView(message) {
  const view = new AnswerView(message, {
    branch: (index, alternative) => branchAt(message, index, alternative),
    retry: () => (message.content ? goOn(message) : regenerateInPlace(message)),
    pin: (seed) => {
      conversation.params.seed = seed;
      form.show(conversation.params, model);
      paramsChanged();
      toast(`Seed ${seed} is pinned for the answers to come`);
    },
  });
  const bar = el("div", { class: "actions" });
  return { bar, answer: view, node: el("article", { class: "message assistant", "aria-label": message.request?.model ?? "Answer" }, view.node, bar) };
}

// An answer that failed before its first token has nothing worth keeping.
function regenerateInPlace(message) {
  if (isRunningHere()) return;
  Object.assign(message, { content: "", tokens: [], written: 0, request: request() });
  run([message]);
}

function drawActions(message) {
  const bar = views.get(message.id)?.bar;
  if (!bar) return;
  const busy = isRunningHere();
  const all = siblings(messages, message);
  const at = all.indexOf(message);
  const step = (to) => {
    conversation.leaf = newestLeaf(messages, all[to]);
    stored();
    draw();
    views.get(all[to].id)?.bar.querySelector(`[data-step="${to < at ? "back" : "forward"}"]`)?.focus();
  };
  const nodes = [];
  if (all.length > 1) {
    nodes.push(el("span", { class: "siblings", role: "group", "aria-label": "Branches" },
      button("back", "Previous branch", () => step(at - 1), { disabled: at === 0, "data-step": "back" }),
      el("span", {}, `${at + 1}/${all.length}`),
      button("forward", "Next branch", () => step(at + 1), { disabled: at === all.length - 1, "data-step": "forward" })));
  }
  const add = (name, label, run, disabled = false) => nodes.push(button(name, label, run, { disabled }));
  add("copy", "Copy the text", () => copy(message.content, "Text"));
  if (message.role === "user") {
    add("edit", "Edit and send again", () => edit(message), busy);
  } else if (!running.has(message.id)) {
    add("redo", "Another answer", () => answer(message.parent), busy);
    add("play", "Continue this answer", () => goOn(message), busy || message.content === "");
    if (message.request && !message.edited) add("repeat", "Same answer again: same seed, compared token by token", () => again(message), busy);
    add("edit", "Edit this answer", () => edit(message), busy);
    add("prompt", "The prompt of this answer, with token ids", () => showPromptOf(message));
  }
  add("branch", "Branch into a new conversation", () => branchOff(conversation, message.id), busy);
  bar.replaceChildren(...nodes);
}

function edit(message) {
  editing = message.id;
  draw();
}

function editor(message) {
  const area = el("textarea", { "aria-label": "Edited text", rows: "1" });
  area.value = message.content;
  const cancel = () => {
    editing = null;
    draw();
  };
  const done = () => {
    const text = area.value;
    editing = null;
    if (message.role === "user") return text.trim() ? ask(message.parent, text) : draw();
    const edited = { ...newMessage(conversation, message.parent, "assistant", text), request: message.request, edited: true, tokens: [{ token: text, logprob: null }] };
    messages.set(edited.id, edited);
    conversation.leaf = edited.id;
    stored(edited);
    return draw();
  };
  area.addEventListener("input", () => grow(area));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  requestAnimationFrame(() => {
    grow(area);
    area.focus();
  });
  return el("article", { class: `message ${message.role} editing`, "aria-label": "Edit" }, area,
    el("div", { class: "buttons" }, el("button", { type: "button", class: "primary", onclick: done }, message.role === "user" ? "Send" : "Save as a branch"), el("button", { type: "button", onclick: cancel }, "Cancel")));
}

// The sides, and the message field

function setSidebar(visible) {
  document.body.classList.toggle("no-sidebar", !visible);
  document.body.classList.toggle("sidebar", visible);
  if (!narrow.matches) settings.set("sidebar", visible);
  coverMain();
  $("show-sidebar").setAttribute("aria-expanded", String(visible));
  if (visible && narrow.matches) $("hide-sidebar").focus();
}

// What lies under an open side can be neither reached nor read.
function coverMain() {
  const { classList } = document.body;
  document.querySelector("main").inert = narrow.matches && (classList.contains("sidebar") || classList.contains("panel"));
}

function setPanel(visible) {
  document.body.classList.toggle("panel", visible);
  coverMain();
  $("show-panel").setAttribute("aria-expanded", String(visible));
  if (visible && narrow.matches) $("hide-panel").focus();
}

function paramsChanged() {
  settings.set("params", conversation.params);
  if (messages.size > 0) stored();
}

function setTokens(on) {
  asTokens = on;
  settings.set("tokens", on);
  draw();
  announce(on ? "Answers are shown as tokens." : "Answers are shown as text.");
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function send() {
  const text = $("draft").value;
  if (!text.trim() || isRunningHere()) return;
  if (!model) return toast("The server is not ready yet");
  $("draft").value = "";
  grow($("draft"));
  // A turn without an answer cannot be followed by another: the new text stands beside it.
  const last = messages.get(conversation.leaf);
  const unanswered = last?.role === "user" ? last : last?.content === "" ? messages.get(last.parent) : null;
  ask(unanswered ? unanswered.parent : conversation.leaf, text);
}

function editLast() {
  const last = path(messages, conversation.leaf).findLast((message) => message.role === "user");
  if (last && !isRunningHere()) edit(last);
}

function showNextPrompt() {
  const draft = $("draft").value.trim();
  const history = [...historyTo(conversation.leaf, conversation.system), ...(draft ? [{ role: "user", content: draft }] : [])];
  if (!history.some(({ role }) => role !== "system")) return toast("Write a message first: the prompt is made from it");
  return showPrompt(model?.id, history);
}

// Where an answer was continued or branched off, the prompt ends with its first part.
function showPromptOf(message) {
  const { system = conversation.system, prefix } = message.request ?? {};
  const history = historyTo(message.parent, system);
  return showPrompt(model?.id, prefix ? [...history, { role: "assistant", content: prefix }] : history, message.promptIds);
}

const SHORTCUTS = [
  ["Enter", "Send; Shift+Enter is a new line"], ["Esc", "Stop the answer"], ["\u2191", "In an empty field: edit the last message"], ["Ctrl+Enter", "Send an edited message"],
  ["Ctrl+K", "Search"], ["Ctrl+Shift+O", "New conversation"], ["Ctrl+B", "Show or hide the conversations"], ["Ctrl+,", "Show or hide the parameters"],
  ["Ctrl+.", "Show or hide token probabilities"], ["\u2190 \u2192", "In the token view: move between tokens"], ["Enter", "On a token: to its alternatives"], ["?", "This list"],
];

function showHelp() {
  dialog("Keyboard shortcuts", {}, el("dl", { class: "shortcuts" }, SHORTCUTS.map(([keys, text]) => el("div", {}, el("dt", {}, el("kbd", {}, keys)), el("dd", {}, text)))));
}

function shortcut(event) {
  const control = event.ctrlKey || event.metaKey;
  const typing = event.target.matches("input, textarea, select");
  const name = control ? `${event.shiftKey ? "shift " : ""}${event.key.toLowerCase()}` : event.key;
  const run = control
    ? { k: () => (setSidebar(true), $("search").focus()), "shift o": startNew, b: () => setSidebar(document.body.classList.contains("no-sidebar")), ",": () => setPanel(!document.body.classList.contains("panel")), ".": () => setTokens(!asTokens) }[name]
    : name === "Escape" && !document.querySelector("dialog[open]") ? escape : name === "?" && !typing ? showHelp : null;
  if (!run) return;
  event.preventDefault();
  run();
}

function escape() {
  if (isRunningHere()) stop();
  else if (narrow.matches) {
    setSidebar(false);
    setPanel(false);
  }
}

function listen() {
  narrow.addEventListener("change", () => {
    setSidebar(!narrow.matches && settings.get("sidebar", true));
    setPanel(false);
  });
  addEventListener("hashchange", () => (location.hash ? open(location.hash.slice(1)) : startNew()));
  addEventListener("keydown", shortcut);
  $("new").addEventListener("click", startNew);
  $("show-sidebar").addEventListener("click", () => setSidebar(true));
  $("hide-sidebar").addEventListener("click", () => setSidebar(false));
  $("show-panel").addEventListener("click", () => setPanel(!document.body.classList.contains("panel")));
  $("hide-panel").addEventListener("click", () => setPanel(false));
  $("shade").addEventListener("click", () => (setSidebar(false), setPanel(false)));
  $("tokens").addEventListener("click", () => setTokens(!asTokens));
  $("prompt").addEventListener("click", showNextPrompt);
  $("help").addEventListener("click", showHelp);
  $("more").addEventListener("click", () => menu($("more"), conversationMenu(actions, conversation)));
  $("files").addEventListener("click", () => menu($("files"), [{ icon: "download", label: "Export all conversations", run: exportAll }, { icon: "upload", label: "Import a file", run: importFile }]));
  $("reset").addEventListener("click", () => {
    conversation.params = {};
    form.show(conversation.params, model);
    paramsChanged();
  });
  $("params").addEventListener("submit", (event) => event.preventDefault());
  $("system").addEventListener("input", () => {
    conversation.system = $("system").value;
    settings.set("system", conversation.system);
    if (messages.size > 0) stored();
  });
  $("composer").addEventListener("submit", (event) => (event.preventDefault(), send()));
  $("stop").addEventListener("click", stop);
  $("draft").addEventListener("input", () => grow($("draft")));
  $("draft").addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    // On a phone's keyboard, Enter is the only way to a new line.
    if (event.key === "Enter" && !event.shiftKey && !touch.matches) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && $("draft").value === "") {
      event.preventDefault();
      editLast();
    }
  });
}

async function start() {
  startShell();
  setSidebar(narrow.matches ? false : settings.get("sidebar", true));
  listen();
  await (location.hash ? open(location.hash.slice(1)) : startNew());
  new LiveStatus($("live"));
  for (;;) {
    await waitUntilReady($("banner"));
    try {
      model = await loadModels($("model"), (chosen) => {
        model = chosen;
        form.show(conversation.params, model);
      });
      break;
    } catch (error) {
      toast(error.message);
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
  form.show(conversation.params, model);
  if (messages.size === 0) draw();
}

start();
