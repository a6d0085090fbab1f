// What both pages have: theme, key, and the model that is talked to.

import { get, hasKey, onKeyNeeded, setKey } from "./api.js";
import { $, dialog, drawIcons, el, icon, toast } from "./dom.js";
import { settings } from "./store.js";

const THEMES = { system: ["auto", "Theme: the system's"], light: ["sun", "Theme: light"], dark: ["moon", "Theme: dark"] };

export function startShell() {
  drawIcons();
  showTheme();
  $("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
    settings.set("theme", next);
    document.documentElement.dataset.theme = next;
    showTheme();
  });
  $("key").addEventListener("click", () => askForKey(null));
  onKeyNeeded(() => askForKey("The server wants an API key."));
}

function showTheme() {
  const [drawing, label] = THEMES[document.documentElement.dataset.theme] ?? THEMES.system;
  $("theme").replaceChildren(icon(drawing));
  $("theme").setAttribute("aria-label", label);
  $("theme").title = label;
}

// Resolves to true if the user gave a key.
function askForKey(reason) {
  return new Promise((resolve) => {
    let given = false;
    const input = el("input", { id: "key-field", type: "password", autocomplete: "off", spellcheck: "false", placeholder: hasKey() ? "A key is set" : "" });
    const remember = el("input", { id: "key-remember", type: "checkbox" });
    const form = el("form", { class: "keyform", onsubmit: (event) => {
      event.preventDefault();
      given = input.value !== "";
      setKey(input.value.trim(), remember.checked);
      node.close();
      if (!given) toast("The key is forgotten");
    } },
      el("p", { class: "ending" }, reason ?? "Sent with each request as a bearer token. An empty field forgets the key."),
      el("label", { for: "key-field" }, "Key"), input,
      el("label", { class: "check", for: "key-remember" }, remember, "Remember on this device"),
      el("button", { type: "submit", class: "primary" }, "Use this key"));
    const node = dialog("API key", {}, form);
    node.addEventListener("close", () => resolve(given));
    input.focus();
  });
}

// Fills the list of models and returns the one that is chosen.
export async function loadModels(select, changed) {
  const { data } = await get("v1/models");
  select.replaceChildren(...data.map(({ id }) => el("option", { value: id }, id)));
  const wanted = settings.get("model", null);
  if (data.some(({ id }) => id === wanted)) select.value = wanted;
  const chosen = () => data.find(({ id }) => id === select.value);
  select.onchange = () => {
    settings.set("model", select.value);
    changed(chosen());
  };
  return chosen();
}
