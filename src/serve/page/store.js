// Keeps conversations in IndexedDB and settings in localStorage. Nothing leaves the browser.
//
// Messages are records of their own: an answer with its probabilities is large, and while one is
// written the others need not be.

let opening = null;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const opened = indexedDB.open("gemma-pjrt", 1);
    opened.onupgradeneeded = () => {
      opened.result.createObjectStore("conversations", { keyPath: "id" });
      opened.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    opened.onsuccess = () => resolve(opened.result);
    opened.onerror = () => reject(opened.error);
  });
  return opening;
}

// Runs `work` in a transaction over both stores and resolves to its request's result.
async function transaction(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const opened = database.transaction(["conversations", "messages"], mode);
    const request = work(opened.objectStore("conversations"), opened.objectStore("messages"));
    opened.oncomplete = () => resolve(request?.result);
    opened.onabort = opened.onerror = () => reject(opened.error);
  });
}

export async function listConversations() {
  const all = await transaction("readonly", (conversations) => conversations.getAll());
  return all.sort((a, b) => b.updated - a.updated);
}

export function messagesOf(id) {
  return transaction("readonly", (_, messages) => messages.index("conversation").getAll(id));
}

export function save(conversation, ...changed) {
  return transaction("readwrite", (conversations, messages) => {
    conversations.put(conversation);
    for (const message of changed) messages.put(message);
  });
}

export function remove(id) {
  return transaction("readwrite", (conversations, messages) => {
    conversations.delete(id);
    messages.index("conversation").getAllKeys(id).onsuccess = (event) => {
      for (const key of event.target.result) messages.delete(key);
    };
  });
}

// Returns the ids of the conversations in which a message contains `words`, whatever their case.
export async function searchMessages(words) {
  const found = new Set();
  const wanted = words.toLowerCase();
  await transaction("readonly", (_, messages) => {
    messages.openCursor().onsuccess = ({ target: { result: cursor } }) => {
      if (!cursor) return;
      if (cursor.value.content.toLowerCase().includes(wanted)) found.add(cursor.value.conversation);
      cursor.continue();
    };
  });
  return found;
}

export const settings = {
  get(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(`gemma.${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    if (value === null) localStorage.removeItem(`gemma.${name}`);
    else localStorage.setItem(`gemma.${name}`, JSON.stringify(value));
  },
};
