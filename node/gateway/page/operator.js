// What the node's owner may do: operations, by a session that the owner's terminal opens (`mtor open`).
// Rule: the session's token is sent as a header and never as a cookie, so that no other site's page can use it.

import { Observable } from "./observable.js";
import { recall, remember } from "./settings.js";

/** The node's answer was an error; `message` names the fix. */
export class OperationFailed extends Error {
  constructor(message, status, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export class Operator {
  constructor() {
    this.unlocked = new Observable(Boolean(recall("session", "")));
  }

  /** Use a code from the address (`#unlock=CODE`), if there is one. */
  async unlockByAddress() {
    const match = /^#unlock=([\w-]+)$/.exec(location.hash);
    if (!match) return;
    history.replaceState(null, "", location.pathname); // a code in the address would stay in the history
    await this.unlock(match[1]);
  }

  /** Exchange a one-use code for a session. Throws `OperationFailed`. */
  async unlock(code) {
    const response = await fetch("/mtor/unlock", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ code }) });
    const answer = await read(response);
    remember("session", answer.token);
    this.unlocked.set(true);
  }

  /** Forget the session. */
  lock() {
    remember("session", undefined);
    this.unlocked.set(false);
  }

  /** One operation's answer. Throws `OperationFailed`. */
  async call(name, parameters = {}) {
    return this.#checked(await this.#post(name, parameters));
  }

  /** A long operation: `progress(line)` for each line, a promise of the last. Throws `OperationFailed`. `signal` stops it. */
  async stream(name, parameters, progress, signal = null) {
    const response = await this.#post(name, parameters, signal);
    if (!response.ok) await this.#checked(response);
    let last = null;
    for await (const line of lines(response.body)) {
      if (line.error) throw new OperationFailed(line.error.message, 400);
      last = line;
      progress(line);
    }
    if (!last?.done) throw new OperationFailed(`${name} broke off: the node stopped or the connection was lost`, 0);
    return last;
  }

  async #post(name, parameters, signal = null) {
    const headers = { "Content-Type": "application/json", Authorization: `Bearer ${recall("session", "")}` };
    try {
      return await fetch(`/mtor/v1/${name}`, { method: "POST", headers, body: JSON.stringify(parameters), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new OperationFailed("the node does not answer; is it running?", 0);
    }
  }

  async #checked(response) {
    if (response.status === 401) this.lock(); // the node was restarted, and its sessions ended with it
    return read(response);
  }
}

async function read(response) {
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const error = answer?.error || {};
  throw new OperationFailed(error.message || `the node answered with status ${response.status}`, response.status, error.code);
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part.trim()) yield JSON.parse(part);
  }
}
