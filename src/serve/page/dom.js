// Builds the page's nodes. Text only ever enters as text: no innerHTML anywhere.

const SVG = "http://www.w3.org/2000/svg";

// Strokes on a grid of 24 by 24.
const ICONS = {
  auto: "M12 3a9 9 0 1 0 0 18ZM12 3a9 9 0 0 1 0 18",
  back: "M15 5l-7 7 7 7",
  branch: "M7 4v16M7 14c0-4 10-2 10-7M17 4.5a2 2 0 1 1 0 .01M7 18.5a1.5 1.5 0 1 1 0 .01",
  check: "M5 12.5l4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6L6 18",
  columns: "M4 5h16v14H4ZM12 5v14",
  copy: "M9 9h11v11H9ZM15 9V4H4v11h5",
  download: "M12 4v11M7.5 11l4.5 4.5 4.5-4.5M5 20h14",
  edit: "M4 20h4L19 9l-4-4L4 16ZM13 7l4 4",
  forward: "M9 5l7 7-7 7",
  help: "M9 9a3 3 0 1 1 4.5 2.6c-1 .6-1.5 1.2-1.5 2.4M12 17.5v.1M12 3a9 9 0 1 0 .01 0",
  key: "M8 8.5a4 4 0 1 0 .01 0M11 10.5 20 4M16.5 6.5l2.5 3M13.5 8.7l1.8 2.2",
  menu: "M4 7h16M4 12h16M4 17h10",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5Z",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  pin: "M9 4h6l-1 6 3 3v1.5H7V13l3-3ZM12 14.5V21",
  play: "M5 6v12M9 7l9 5-9 5Z",
  plus: "M12 5v14M5 12h14",
  prompt: "M6 3h9l4 4v14H6ZM9.5 11h6M9.5 15h6M14 3v5h5",
  redo: "M19.5 12a7.5 7.5 0 1 1-2.2-5.3L20 9M20 4v5h-5",
  repeat: "M5 11V9.5A2.5 2.5 0 0 1 7.5 7H19M16 4l3 3-3 3M19 13v1.5a2.5 2.5 0 0 1-2.5 2.5H5M8 20l-3-3 3-3",
  search: "M10.5 4.5a6 6 0 1 0 .01 0M15 15l5 5",
  send: "M12 19V5M6 11l6-6 6 6",
  sliders: "M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4M4 12h3M7 12h13",
  stop: "M8 8h8v8H8Z",
  sun: "M12 8a4 4 0 1 0 .01 0M12 3v1.5M12 19.5V21M3 12h1.5M19.5 12H21M5.6 5.6l1 1M17.4 17.4l1 1M18.4 5.6l-1 1M6.6 17.4l-1 1",
  tokens: "M4 6h6v5H4ZM13 6h7v5h-7ZM4 14h9v5H4ZM16 14h4v5h-4Z",
  trash: "M5 7h14M9.5 7V4h5v3M7 7l1 13h8l1-13",
  upload: "M12 16V5M7.5 9L12 4.5 16.5 9M5 20h14",
};

export const $ = (id) => document.getElementById(id);

// Returns an element. Properties that begin with "on" are listeners; false, null and undefined are
// left out, of properties as of children.
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

// Returns a button with an icon. Without visible words, the label is its name and its tooltip.
export function button(name, label, onclick, { words = false, ...rest } = {}) {
  const naming = words ? {} : { "aria-label": label, title: label };
  return el("button", { type: "button", ...naming, ...rest, onclick }, icon(name), words && el("span", {}, label));
}

// Draws the icons of buttons that stand in the HTML.
export function drawIcons() {
  for (const node of document.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
}

// Tells a screen reader what happened, once the current sentence is over.
export function announce(text) {
  $("announcer").textContent = text;
}

// Shows a message at the lower edge, with at most one action, and reads it out.
export function toast(text, action) {
  const node = el("div", { class: "toast" }, el("span", {}, text));
  if (action) {
    node.append(el("button", { type: "button", onclick: () => (node.remove(), action.run()) }, action.label));
  }
  $("toasts").replaceChildren(node);
  setTimeout(() => node.remove(), action ? 8000 : 4000);
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    toast(`${what} copied`);
  } catch {
    // Browsers refuse the clipboard on plain HTTP from other machines: the old way still works.
    const area = el("textarea", { class: "sr" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    toast(done ? `${what} copied` : "This browser does not let the page copy; select the text instead");
  }
}

// Places a floating node below an anchor, or above it where there is no room, inside the window.
export function place(node, anchor) {
  const gap = 6;
  const box = anchor.getClientRects()[0] ?? anchor.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = node;
  const below = box.bottom + gap + height <= innerHeight - gap;
  const top = below ? box.bottom + gap : Math.max(gap, box.top - gap - height);
  const left = Math.min(Math.max(gap, box.left), innerWidth - width - gap);
  node.style.top = `${top}px`;
  node.style.left = `${left}px`;
}

// Opens a menu at a button. Each item: { icon, label, run }, or null for a line between groups.
export function menu(anchor, items) {
  document.querySelector(".menu")?.remove();
  const close = (refocus) => {
    node.remove();
    anchor.setAttribute("aria-expanded", "false");
    removeEventListener("pointerdown", outside, true);
    if (refocus) anchor.focus();
  };
  const outside = (event) => node.contains(event.target) || close(false);
  const entries = items.map((item) =>
    item
      ? el("button", { type: "button", role: "menuitem", tabindex: "-1", onclick: () => (close(true), item.run()) },
          icon(item.icon), el("span", {}, item.label))
      : el("hr", {}));
  const node = el("div", { class: "menu floating", role: "menu", "aria-label": anchor.getAttribute("aria-label") ?? "Menu" }, entries);
  node.addEventListener("keydown", (event) => {
    const buttons = [...node.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) buttons[(at + step + buttons.length) % buttons.length].focus();
    else if (event.key === "Home") buttons[0].focus();
    else if (event.key === "End") buttons.at(-1).focus();
    else if (event.key === "Escape" || event.key === "Tab") close(true);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  // Within the anchor's landmark, where a screen reader looks for it.
  anchor.closest("nav, main, aside").append(node);
  place(node, anchor);
  anchor.setAttribute("aria-expanded", "true");
  addEventListener("pointerdown", outside, true);
  node.querySelector("button").focus();
}

// Opens a modal dialog and returns it; it is removed when it closes.
export function dialog(title, properties, ...children) {
  const node = el("dialog", { "aria-label": title, ...properties },
    el("header", {}, el("h2", {}, title), button("close", "Close", () => node.close())),
    ...children);
  node.addEventListener("close", () => node.remove());
  // A click on the backdrop reaches the dialog itself.
  node.addEventListener("click", (event) => event.target === node && node.close());
  document.body.append(node);
  node.showModal();
  return node;
}

export const percent = (share) =>
  share === 0 ? "0 %" : share < 1e-5 ? "< 0.001 %" : share >= 0.9995 ? "100 %" : share >= 0.1 ? `${(share * 100).toFixed(1)} %` : `${(share * 100).toPrecision(2)} %`;

export const whole = (number) => Math.round(number).toLocaleString("en");

export function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : ms < 60000 ? `${(ms / 1000).toFixed(1)} s` : `${(ms / 60000).toFixed(1)} min`;
}
