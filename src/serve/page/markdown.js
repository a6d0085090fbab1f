// Renders markdown as nodes, while it is still being written. What a model writes is not trusted:
// HTML stays text, images become links, and links lead only to http, https and mail addresses.

import { button, copy, el } from "./dom.js";
import { highlight } from "./highlight.js";

// Quotes, lists and emphasis nest no deeper than this; what is deeper stays text.
const DEEPEST = 12;

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( {1,4}|$)/;
const DELIMITERS = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.blocks = [];
  }

  // Shows `text`. Blocks that did not change keep their nodes: a stream changes the last one.
  update(text) {
    const blocks = parse(text.split("\n"));
    let same = 0;
    while (same < blocks.length && same < this.blocks.length && blocks[same].source === this.blocks[same].source) same += 1;
    while (this.root.childNodes.length > same) this.root.lastChild.remove();
    for (const block of blocks.slice(same)) this.root.append(render(block, 0));
    this.blocks = blocks;
  }
}

// Returns the blocks of lines: { kind, source, ... }, inline text not yet parsed.
function parse(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const start = at;
    const block = next();
    if (block) blocks.push({ ...block, source: block.kind + lines.slice(start, at).join("\n") });
  }
  return blocks;

  function next() {
    const line = lines[at];
    let match;
    if (line.trim() === "") {
      at += 1;
      return null;
    }
    if ((match = FENCE.exec(line))) {
      const [, indent, fence, language] = match;
      const closing = new RegExp(`^ {0,3}${fence[0]}{${fence.length},}\\s*$`);
      const code = [];
      for (at += 1; at < lines.length && !closing.test(lines[at]); at += 1) {
        code.push(lines[at].startsWith(indent) ? lines[at].slice(indent.length) : lines[at].trimStart());
      }
      at += 1;
      return { kind: "code", language, text: code.join("\n") };
    }
    if ((match = HEADING.exec(line))) {
      at += 1;
      return { kind: "heading", level: match[1].length, text: match[2] };
    }
    if (RULE.test(line)) {
      at += 1;
      return { kind: "rule" };
    }
    if (QUOTE.test(line)) {
      const inner = [];
      for (; at < lines.length && QUOTE.test(lines[at]); at += 1) inner.push(lines[at].replace(QUOTE, ""));
      return { kind: "quote", lines: inner };
    }
    if (ITEM.test(line)) return list();
    if (line.includes("|") && at + 1 < lines.length && DELIMITERS.test(lines[at + 1]) && cells(line).length === cells(lines[at + 1]).length) {
      const head = cells(line);
      const aligns = cells(lines[at + 1]).map((cell) => (/^:-+:$/.test(cell) ? "center" : /-:$/.test(cell) ? "right" : "left"));
      const rows = [];
      for (at += 2; at < lines.length && lines[at].includes("|") && lines[at].trim() !== ""; at += 1) rows.push(cells(lines[at]));
      return { kind: "table", head, aligns, rows };
    }
    if (/^ {4}/.test(line)) {
      const code = [];
      for (; at < lines.length && /^( {4}|\s*$)/.test(lines[at]); at += 1) code.push(lines[at].slice(4));
      return { kind: "code", language: "", text: code.join("\n").trimEnd() };
    }
    const text = [line.trimStart()];
    for (at += 1; at < lines.length && !interrupts(lines[at]); at += 1) text.push(lines[at].trimStart());
    return { kind: "paragraph", text: text.join("\n") };
  }

  function list() {
    const ordered = /\d/.test(ITEM.exec(lines[at])[2]);
    const first = ordered ? parseInt(lines[at].trimStart(), 10) : null;
    const items = [];
    for (;;) {
      const match = at < lines.length ? ITEM.exec(lines[at]) : null;
      if (!match || /\d/.test(match[2]) !== ordered || RULE.test(lines[at])) break;
      const width = match[0].length;
      const inner = [lines[at].slice(width)];
      for (at += 1; at < lines.length; at += 1) {
        const line = lines[at];
        if (line.trim() === "") {
          // A blank line belongs to the item if what follows it is indented.
          const after = lines[at + 1] ?? "";
          if (after.trim() !== "" && /^ */.exec(after)[0].length >= Math.min(width, 2)) inner.push("");
          else break;
        } else if (/^ */.exec(line)[0].length >= Math.min(width, 2) && line.startsWith(" ")) {
          inner.push(line.slice(Math.min(width, /^ */.exec(line)[0].length)));
        } else if (inner.at(-1) !== "" && !interrupts(line)) {
          inner.push(line);
        } else {
          break;
        }
      }
      items.push(inner);
      if (at < lines.length && lines[at].trim() === "" && ITEM.test(lines[at + 1] ?? "")) at += 1;
    }
    return { kind: "list", first, items };
  }
}

function interrupts(line) {
  return line.trim() === "" || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function render(block, depth) {
  switch (block.kind) {
    case "code":
      return codeBlock(block.language, block.text);
    case "heading":
      // The page has the first two levels for itself.
      return el(`h${Math.min(block.level + 2, 6)}`, {}, inline(block.text));
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", {}, nested(block.lines, depth));
    case "list":
      return el(block.first === null ? "ul" : "ol", { start: block.first > 1 && block.first }, block.items.map((lines) => item(lines, depth)));
    case "table":
      return el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, el("table", {},
        el("thead", {}, el("tr", {}, block.head.map((text, i) => el("th", { scope: "col", class: block.aligns[i] }, inline(text))))),
        el("tbody", {}, block.rows.map((row) => el("tr", {}, block.head.map((_, i) => el("td", { class: block.aligns[i] }, inline(row[i] ?? ""))))))));
    default:
      return el("p", {}, inline(block.text));
  }
}

function nested(lines, depth) {
  if (depth >= DEEPEST) return [el("p", {}, lines.join("\n"))];
  return parse(lines).map((block) => render(block, depth + 1));
}

function item(lines, depth) {
  const task = /^\[([ xX])\] /.exec(lines[0]);
  const rest = task ? [lines[0].slice(4), ...lines.slice(1)] : lines;
  const nodes = nested(rest, depth);
  // The paragraph of a tight item is its text.
  const tight = !lines.includes("") && nodes[0]?.nodeName === "P";
  const shown = tight ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes;
  if (!task) return el("li", {}, shown);
  const done = task[1] !== " ";
  return el("li", { class: "task" }, el("input", { type: "checkbox", disabled: true, checked: done, "aria-label": done ? "done" : "to do" }), shown);
}

function codeBlock(language, text) {
  return el("figure", { class: "code" },
    el("figcaption", {}, el("span", {}, language || "text"), button("copy", "Copy code", () => copy(text, "Code"))),
    el("pre", { tabindex: "0" }, el("code", {}, highlight(text, language))));
}

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const URL_START = /https?:\/\//y;

// Returns the nodes of inline text.
export function inline(text, depth = 0) {
  const nodes = [];
  let plain = "";
  let at = 0;
  // Delimiters of which no closing one follows: looked for once, not at each opening one.
  const unclosed = new Set();
  const flush = () => {
    if (plain) nodes.push(plain);
    plain = "";
  };
  const push = (node, length) => {
    flush();
    nodes.push(node);
    at += length;
  };
  while (at < text.length) {
    const char = text[at];
    const rest = () => text.slice(at);
    let match;
    if (char === "\\" && at + 1 < text.length) {
      if (text[at + 1] === "\n") push(el("br"), 2);
      else if (PUNCTUATION.test(text[at + 1])) {
        plain += text[at + 1];
        at += 2;
      } else {
        plain += char;
        at += 1;
      }
    } else if (char === "\n") {
      plain = plain.trimEnd();
      push(el("br"), 1);
    } else if (char === "`") {
      const ticks = /^`+/.exec(rest())[0];
      const end = unclosed.has(ticks) ? -1 : closingTicks(text, at + ticks.length, ticks.length);
      if (end < 0) {
        unclosed.add(ticks);
        plain += ticks;
        at += ticks.length;
      } else {
        const code = text.slice(at + ticks.length, end).replaceAll("\n", " ");
        push(el("code", {}, /^ .*[^ ].* $/.test(code) ? code.slice(1, -1) : code), end + ticks.length - at);
      }
    } else if ((char === "[" || (char === "!" && text[at + 1] === "[")) && (match = /^!?\[((?:[^[\]\\]|\\.){0,999})\]\(\s*<?([^\s<>()]*(?:\([^\s()]*\)[^\s<>()]*)*)>?(?:\s+["'(][^\n]*?["')])?\s*\)/.exec(rest()))) {
      push(link(match[2], depth < DEEPEST ? inline(match[1] || match[2], depth + 1) : [match[1]]), match[0].length);
    } else if (char === "<" && (match = /^<((?:https?:\/\/|mailto:)[^\s<>]+)>/.exec(rest()))) {
      push(link(match[1], [match[1]]), match[0].length);
    } else if (char === "h" && !/\w/.test(text[at - 1] ?? " ") && startsUrl(text, at)) {
      const address = /^https?:\/\/[^\s<>"'`]*[^\s<>"'`.,:;!?)*\]]/.exec(rest())?.[0] ?? "http";
      if (address === "http") {
        plain += address;
        at += address.length;
      } else {
        push(link(address, [address]), address.length);
      }
    } else if (char === "*" || char === "_" || char === "~") {
      const run = /^(\*+|_+|~+)/.exec(rest())[0];
      const size = char === "~" ? 2 : Math.min(run.length, 2);
      const end = depth < DEEPEST && run.length >= size && run.length <= 3 ? closing(text, at, char, size, unclosed) : -1;
      if (end < 0) {
        plain += run;
        at += run.length;
      } else {
        const tag = char === "~" ? "del" : size === 2 ? "strong" : "em";
        push(el(tag, {}, inline(text.slice(at + size, end), depth + 1)), end + size - at);
      }
    } else {
      plain += char;
      at += 1;
    }
  }
  flush();
  return nodes;
}

function startsUrl(text, at) {
  URL_START.lastIndex = at;
  return URL_START.test(text);
}

function closingTicks(text, from, length) {
  for (const run of text.slice(from).matchAll(/`+/g)) if (run[0].length === length) return from + run.index;
  return -1;
}

// Returns where the delimiter that opens at `at` closes, or -1. Underscores in words are none.
function closing(text, at, char, size, unclosed) {
  const delimiter = char.repeat(size);
  const inWord = (index) => char === "_" && /\w/.test(text[index] ?? " ");
  if (unclosed.has(delimiter) || /\s/.test(text[at + size] ?? " ") || inWord(at - 1)) return -1;
  for (let end = text.indexOf(delimiter, at + size); end >= 0; end = text.indexOf(delimiter, end)) {
    let run = size;
    while (text[end + run] === char) run += 1;
    const fits = size === 1 ? run !== 2 : true;
    if (fits && end > at + size && !/\s/.test(text[end - 1]) && text[end - 1] !== "\\" && !inWord(end + run)) {
      return end + run - size;
    }
    end += run;
  }
  unclosed.add(delimiter);
  return -1;
}

function link(address, children) {
  if (!/^(https?:\/\/|mailto:)/i.test(address)) return el("span", { title: address }, children);
  return el("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, children);
}
