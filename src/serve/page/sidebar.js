// The list of conversations: groups by day, search, and a menu for each.

import { $, button, el, menu } from "./dom.js";
import { listConversations, searchMessages } from "./store.js";

const DAY = 86_400_000;

export class Sidebar {
  // `actions`: { rename, branch, exportJson, exportMarkdown, remove }, given the conversation.
  constructor(actions) {
    this.actions = actions;
    this.current = null;
    this.turn = 0;
    $("search").addEventListener("input", () => this.refresh());
    $("list").addEventListener("keydown", (event) => this.key(event));
  }

  // Draws the list anew from the store.
  async refresh() {
    const turn = (this.turn += 1);
    const words = $("search").value.trim();
    const all = await listConversations().catch(() => []);
    const found = words ? await searchMessages(words).catch(() => new Set()) : null;
    // A search that was overtaken by the next letter.
    if (turn !== this.turn) return;
    const shown = all.filter(({ id, title }) => !found || found.has(id) || title.toLowerCase().includes(words.toLowerCase()));
    const groups = new Map();
    for (const conversation of shown) {
      const day = dayOf(conversation.updated);
      groups.set(day, [...(groups.get(day) ?? []), conversation]);
    }
    $("list").replaceChildren(...[...groups].map(([day, conversations]) =>
      el("section", {}, el("h2", {}, day), el("ul", {}, conversations.map((conversation) => this.row(conversation))))));
    if (shown.length === 0) $("list").append(el("p", { class: "empty" }, words ? "Nothing found." : "Conversations appear here. They stay in this browser."));
  }

  row(conversation) {
    const more = button("more", `More about ${conversation.title}`, (event) => this.menu(event.currentTarget, conversation), { "aria-haspopup": "menu", "aria-expanded": "false" });
    return el("li", { class: conversation.id === this.current && "current" },
      el("a", { href: `#${conversation.id}`, "aria-current": conversation.id === this.current && "page", title: conversation.title, ondblclick: () => this.actions.rename(conversation) }, conversation.title),
      more);
  }

  menu(anchor, conversation) {
    menu(anchor, conversationMenu(this.actions, conversation));
  }

  key(event) {
    const links = [...$("list").querySelectorAll("a")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !links.includes(document.activeElement)) return;
    links[links.indexOf(document.activeElement) + step]?.focus();
    event.preventDefault();
  }
}

export function conversationMenu(actions, conversation) {
  return [
    { icon: "edit", label: "Rename", run: () => actions.rename(conversation) },
    { icon: "branch", label: "Branch into a new one", run: () => actions.branch(conversation) },
    null,
    { icon: "download", label: "Export as JSON", run: () => actions.exportJson(conversation) },
    { icon: "prompt", label: "Export as markdown", run: () => actions.exportMarkdown(conversation) },
    null,
    { icon: "trash", label: "Delete", run: () => actions.remove(conversation) },
  ];
}

function dayOf(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY) return "Yesterday";
  if (time >= today - 7 * DAY) return "Last seven days";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}
