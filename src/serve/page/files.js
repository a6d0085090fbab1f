// Conversations as files: JSON holds everything and can be read back, markdown is for people.

import { path } from "./tree.js";

const FORMAT = "gemma-pjrt conversations";

function download(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

const fileName = (title) => title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60).toLowerCase() || "conversation";

// `entries`: conversations, each with its `messages`.
export function exportJson(entries) {
  const name = entries.length === 1 ? fileName(entries[0].title) : `conversations-${new Date().toISOString().slice(0, 10)}`;
  download(`${name}.json`, "application/json", JSON.stringify({ format: FORMAT, version: 1, exported: new Date().toISOString(), conversations: entries }, null, 1));
}

export function exportMarkdown(conversation, messages) {
  const shown = path(messages, conversation.leaf);
  const parts = [`# ${conversation.title}`];
  if (conversation.system) parts.push(`> ${conversation.system.replaceAll("\n", "\n> ")}`);
  for (const message of shown) parts.push(`## ${message.role === "user" ? "You" : message.request?.model ?? "Answer"}`, message.content);
  download(`${fileName(conversation.title)}.md`, "text/markdown", `${parts.join("\n\n")}\n`);
}

// Returns the conversations of an exported file. Throws an Error that says what is wrong with it.
export function parseExport(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch (error) {
    throw new Error(`The file is no JSON: ${error.message}`);
  }
  if (file?.format !== FORMAT) throw new Error(`The file's format is "${file?.format}", not "${FORMAT}": export it from this page.`);
  if (file.version !== 1) throw new Error(`The file has version ${file.version}; this page reads version 1.`);
  if (!Array.isArray(file.conversations)) throw new Error("The file has no list of conversations.");
  for (const [i, { id, title, leaf, messages }] of file.conversations.entries()) {
    const text = typeof id === "string" && typeof title === "string" && (leaf === null || typeof leaf === "string") && Array.isArray(messages);
    const sound = text && messages.every((message) => typeof message.id === "string" && typeof message.content === "string" && ["user", "assistant"].includes(message.role));
    if (!sound) throw new Error(`Conversation ${i + 1} of the file is damaged: it needs id, title, leaf and messages.`);
  }
  return file.conversations;
}
