// Shows the prompt exactly as the chat template wrote it, token by token with ids.

import { post } from "./api.js";
import { button, copy, dialog, el, whole } from "./dom.js";

const SPECIAL = /(<bos>|<eos>|<pad>|<unk>|<start_of_turn>|<end_of_turn>)/;

// `computedFrom`: the ids that the server reported for an answer, to compare with.
export async function showPrompt(model, messages, computedFrom) {
  const body = el("div", { class: "promptview" }, el("p", { class: "ending" }, "Asking the server\u2026"));
  dialog("The prompt", { class: "wide" }, body);
  try {
    const last = messages.at(-1)?.role === "assistant";
    const ask = { model, messages, add_generation_prompt: !last, continue_final_message: last };
    const { prompt } = await post("apply-template", ask);
    const { tokens, count, max_model_len, token_strs } = await post("tokenize", { ...ask, return_token_strs: true, add_special_tokens: false });
    const known = computedFrom && computedFrom.length === tokens.length && computedFrom.every((id, i) => id === tokens[i]);
    body.replaceChildren(
      el("p", { class: "ending" }, `${whole(count ?? tokens.length)} tokens${max_model_len ? ` of ${whole(max_model_len)}` : ""}. `,
        computedFrom && (known ? "The answer was computed from exactly these ids." : "The answer was computed from other ids: a message before it has other words now, or the server another template.")),
      el("section", {}, heading("As the template wrote it", "Copy the text", () => copy(prompt, "Prompt")),
        el("pre", { tabindex: "0", "aria-label": "Text of the prompt" }, prompt.split(SPECIAL).map((part) => (SPECIAL.test(part) ? el("mark", {}, part) : part)))),
      el("section", {}, heading("Tokens and their ids", "Copy the ids", () => copy(JSON.stringify(tokens), "Ids")),
        el("ol", { class: "ids", tabindex: "0", "aria-label": "Tokens of the prompt" }, tokens.map((id, i) => el("li", {},
          el("code", { class: SPECIAL.test(token_strs?.[i]) && "special" }, visible(token_strs?.[i] ?? "")), el("span", {}, String(id)))))));
  } catch (error) {
    body.replaceChildren(el("p", { class: "error", role: "alert" }, error.message));
  }
}

const visible = (text) => text.replaceAll("\n", "\u21b5").replaceAll(" ", "\u00b7").replaceAll("\u2581", "\u00b7");

function heading(text, label, run) {
  return el("div", { class: "heading" }, el("h3", {}, text), button("copy", label, run));
}
