// A conversation is a tree: each message names its parent, and the conversation the leaf that is
// shown. Edits and second answers are siblings, so nothing is ever overwritten.

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function newConversation(system, params) {
  const now = Date.now();
  return { id: newId(), title: "New conversation", named: false, created: now, updated: now, system, params, leaf: null };
}

// `turn` keeps messages of one moment in order.
export function newMessage(conversation, parent, role, content, turn = 0) {
  return { id: newId(), conversation: conversation.id, parent, role, content, created: Date.now() + turn };
}

// Returns the messages from the root to `leaf`.
export function path(messages, leaf) {
  const found = [];
  for (let at = messages.get(leaf); at; at = messages.get(at.parent)) found.unshift(at);
  return found;
}

export function siblings(messages, message) {
  return [...messages.values()].filter((other) => other.parent === message.parent).sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
}

// Returns the leaf below `message` that was written last.
export function newestLeaf(messages, message) {
  const parents = new Set([...messages.values()].map((other) => other.parent));
  let newest = message;
  const below = (other) => {
    for (let at = other; at; at = messages.get(at.parent)) if (at.id === message.id) return true;
    return false;
  };
  for (const other of messages.values()) {
    if (!parents.has(other.id) && below(other) && (newest === message || other.created >= newest.created)) newest = other;
  }
  return newest.id;
}

// Copies messages under new ids, which point at each other as the old ones did.
export function copyMessages(messages, conversation) {
  const ids = new Map(messages.map((message) => [message.id, newId()]));
  return messages.map((message) => ({
    ...structuredClone(message), id: ids.get(message.id), parent: ids.get(message.parent) ?? null, conversation,
  }));
}
