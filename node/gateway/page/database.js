// Records that this browser keeps, in IndexedDB; where there is none (private windows), in memory until the page closes.
// Rule: one store a database, records found by their `id`; a full or broken disk is an error that is told, never a lost page.

export class Store {
  #opening;
  #memory = null; // records by id, where IndexedDB cannot be used

  constructor(name) {
    this.#opening = open(name).catch(() => {
      this.#memory = new Map();
      return null;
    });
  }

  /** False where records last only as long as the page. */
  async lasting() {
    return (await this.#opening) !== null;
  }

  async get(id) {
    return (await this.#opening) ? this.#run("readonly", (store) => store.get(id)) : this.#memory.get(id);
  }

  async all() {
    return (await this.#opening) ? this.#run("readonly", (store) => store.getAll()) : [...this.#memory.values()];
  }

  async put(record) {
    if (await this.#opening) await this.#run("readwrite", (store) => store.put(record));
    else this.#memory.set(record.id, record);
  }

  async delete(id) {
    if (await this.#opening) await this.#run("readwrite", (store) => store.delete(id));
    else this.#memory.delete(id);
  }

  async clear() {
    if (await this.#opening) await this.#run("readwrite", (store) => store.clear());
    else this.#memory.clear();
  }

  async #run(mode, work) {
    const transaction = (await this.#opening).transaction("records", mode);
    const request = work(transaction.objectStore("records"));
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(new Error(`the browser could not keep this: ${transaction.error?.message || "no room"}`));
    });
  }
}

function open(name) {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => request.result.createObjectStore("records", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked"));
  });
}
