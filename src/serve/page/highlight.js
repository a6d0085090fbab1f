// Colours code well enough for reading: comments, strings, numbers, and the words that most
// languages share.

const WORDS = new Set(("abstract and as assert async await bool break case catch class const continue def default del do elif else enum except export " +
  "extends extern false finally fn for from func function global if impl import in include int interface is lambda let loop match mod module move mut " +
  "namespace new nil None not null nonlocal or package pass private protected pub public raise ref return select self Self static string struct super " +
  "switch then this throw trait True False true try type typedef typeof undefined union unsafe use using var void where while with yield").split(" "));

const HASH = /^(py|python|sh|bash|zsh|shell|console|yaml|yml|toml|ruby|rb|r|perl|make|makefile|dockerfile|ini|conf)$/i;
const NONE = /^(|text|txt|plain|markdown|md|output)$/i;

const STRING = `"(?:[^"\\\\\\n]|\\\\.)*"?|'(?:[^'\\\\\\n]|\\\\.)*'|\`[^\`]*\``;
const REST = "\\b\\d[\\w.]*\\b|[A-Za-z_]\\w*";
const SLASHES = new RegExp(`(\\/\\/[^\\n]*|\\/\\*[^]*?(?:\\*\\/|$)|--[^\\n]*(?=\\n|$)(?<=^-- .*))|(${STRING})|(${REST})`, "gm");
const HASHES = new RegExp(`((?<=^|\\s)#[^\\n]*)|(${STRING})|(${REST})`, "gm");

export function highlight(code, language) {
  if (NONE.test(language)) return [code];
  const nodes = [];
  let at = 0;
  for (const match of code.matchAll(HASH.test(language) ? HASHES : SLASHES)) {
    const [text, comment, string] = match;
    const kind = comment ? "comment" : string ? "string" : /^\d/.test(text) ? "number" : WORDS.has(text) ? "word" : null;
    if (!kind) continue;
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    nodes.push(code.slice(at, match.index), span);
    at = match.index + text.length;
  }
  nodes.push(code.slice(at));
  return nodes;
}
