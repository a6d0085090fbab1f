// Finds the token under the pointer in rendered markdown, and shows its alternatives there too.

import { closeSoon, showAlternatives } from "./tokens.js";

// The pointer rests so long on a token before the box opens: reading opens none.
const REST = 350;

// Watches the rendered text of `answer` below `root`.
export function watchText(root, answer, branch) {
  let waiting = 0;
  root.addEventListener("pointermove", (event) => {
    clearTimeout(waiting);
    if (event.pointerType !== "mouse" || event.buttons !== 0) return;
    waiting = setTimeout(() => {
      const found = tokenAt(root, answer.tokens ?? [], event.clientX, event.clientY);
      CSS.highlights?.delete("token");
      if (!found) return closeSoon();
      CSS.highlights?.set("token", new Highlight(found.range));
      return showAlternatives(answer.tokens, found.index, branch, found.range);
    }, REST);
  });
  root.addEventListener("pointerleave", () => {
    clearTimeout(waiting);
    CSS.highlights?.delete("token");
    closeSoon();
  });
}

// Returns the token at a point of the window and the range of its text, or null.
function tokenAt(root, tokens, x, y) {
  const caret = document.caretPositionFromPoint?.(x, y) ?? document.caretRangeFromPoint?.(x, y);
  const node = caret?.offsetNode ?? caret?.startContainer;
  const at = caret?.offset ?? caret?.startOffset;
  if (!(node instanceof Text) || !root.contains(node)) return null;
  const source = tokens.map(({ token }) => token).join("");
  const start = offsetsIn(root, source).get(node);
  if (start === undefined) return null;
  // The caret is the nearest gap between characters: the pointer is on one side of it.
  for (const character of [at, at - 1]) {
    if (character < 0 || character >= node.length) continue;
    let end = 0;
    const index = tokens.findIndex(({ token }) => (end += token.length) > start + character);
    if (index < 0 || tokens[index].logprob === null) continue;
    const range = document.createRange();
    range.setStart(node, Math.max(0, end - tokens[index].token.length - start));
    range.setEnd(node, Math.min(node.length, end - start));
    const over = [...range.getClientRects()].some((box) => x >= box.left && x <= box.right && y >= box.top && y <= box.bottom);
    if (over) return { index, range };
  }
  return null;
}

// Returns where each text node begins in the source. Rendering takes markup away and moves nothing,
// so each node is found after the one before it.
function offsetsIn(root, source) {
  const offsets = new Map();
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  let from = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.parentElement.closest("figcaption")) continue;
    const at = source.indexOf(node.data, from);
    if (at < 0) continue;
    offsets.set(node, at);
    from = at + node.length;
  }
  return offsets;
}
