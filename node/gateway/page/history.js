// Conversations, kept in this browser alone (IndexedDB).
// Rule: a browser that keeps nothing (a private window, a full disk) costs what was said before, never the page: then they
// are kept in memory, and `lasting` says so.

const NAME = "mtor";
const VERSION = 1;
const SUMMARIES = "summaries"; // what the list shows
const CONTENTS = "contents"; // whole conversations

/** What the list shows of a conversation. */
export function summary(conversation) {
  const { id, title, created, updated } = conversation;
  const running = conversation.messages.some((message) => message.state === "running");
  return { id, title, created, updated, running, messages: conversation.messages.length };
}

/** All text of a conversation, for searching. */
function textOf(conversation) {
  return [conversation.title, ...conversation.messages.map((each) => each.text)].join("\n").toLowerCase();
}

export class History {
  #memory = new Map();
  #database = null;

  /** True if what is kept survives the page. */
  get lasting() {
    return this.#database !== null;
  }

  /** Open what there is; never fails. */
  async open() {
    try {
      this.#database = await opened();
    } catch (error) {
      console.info(`conversations are kept until this page is closed: ${error?.message || error}`);
    }
    return this;
  }

  /** Summaries, the newest first. */
  async list() {
    const found = this.#database ? await this.#read(SUMMARIES, (store) => store.getAll()) : [...this.#memory.values()].map(summary);
    return found.sort((one, other) => other.updated - one.updated);
  }

  /** One conversation, or undefined. */
  async get(id) {
    if (!this.#database) return structuredClone(this.#memory.get(id));
    return this.#read(CONTENTS, (store) => store.get(id));
  }

  /** Keep a conversation as it is now. */
  async put(conversation) {
    if (!this.#database) {
      this.#memory.set(conversation.id, structuredClone(conversation));
      return;
    }
    try {
      await this.#write((summaries, contents) => {
        summaries.put(summary(conversation));
        contents.put(conversation);
      });
    } catch (error) {
      if (error?.name === "QuotaExceededError") throw new Error("this browser has no room left for conversations; delete some");
      throw error;
    }
  }

  async remove(id) {
    this.#memory.delete(id);
    if (!this.#database) return;
    await this.#write((summaries, contents) => {
      summaries.delete(id);
      contents.delete(id);
    });
  }

  async clear() {
    this.#memory.clear();
    if (!this.#database) return;
    await this.#write((summaries, contents) => {
      summaries.clear();
      contents.clear();
    });
  }

  /** The ids of conversations that hold all words. */
  async search(words) {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    const found = new Set();
    const look = (conversation) => {
      const text = textOf(conversation);
      if (wanted.every((word) => text.includes(word))) found.add(conversation.id);
    };
    if (this.#database) await this.#each(look);
    else this.#memory.forEach(look);
    return found;
  }

  /** All of them, one after the other. */
  async all() {
    const found = [];
    if (this.#database) await this.#each((conversation) => found.push(conversation));
    else found.push(...structuredClone([...this.#memory.values()]));
    return found;
  }

  #read(name, ask) {
    return promised(ask(this.#database.transaction(name).objectStore(name)));
  }

  #write(change) {
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction([SUMMARIES, CONTENTS], "readwrite");
      transaction.oncomplete = resolve;
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
      change(transaction.objectStore(SUMMARIES), transaction.objectStore(CONTENTS));
    });
  }

  #each(look) {
    return new Promise((resolve, reject) => {
      const request = this.#database.transaction(CONTENTS).objectStore(CONTENTS).openCursor();
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        if (!request.result) return resolve();
        look(request.result.value);
        return request.result.continue();
      };
    });
  }
}

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(SUMMARIES, { keyPath: "id" });
      request.result.createObjectStore(CONTENTS, { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds an older version of them open"));
  });
}

function promised(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
