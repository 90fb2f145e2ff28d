// The node's WebSocket: many queries on one connection, and what the node says of itself. See docs/websocket.md.
// Rule: one owner of the connection. A query is an event target of its own and survives a lost connection: after a
// reconnect it is resumed after the last event that came.

import { Observable } from "./observable.js";
import { recall } from "./settings.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;
const ENDS = new Set(["completed", "failed", "cancelled"]);

/** One query. `on(type, handler)`; the last event is completed, failed or cancelled. `ended` is a promise of it. */
export class Query {
  #handlers = new Map();
  #close;

  constructor(id, send) {
    this.id = id;
    this.query = "";
    this.seq = 0;
    this.done = false;
    this.send = send;
    this.ended = new Promise((resolve) => { this.#close = resolve; });
  }

  on(type, handler) {
    if (!this.#handlers.has(type)) this.#handlers.set(type, []);
    this.#handlers.get(type).push(handler);
    return this;
  }

  /** Stop it: the worker stops, too. */
  cancel() {
    if (!this.done) this.send({ type: "cancel", id: this.id });
  }

  take(event) {
    if (this.done || (event.seq && event.seq <= this.seq)) return;
    this.seq = event.seq || this.seq;
    if (event.type === "accepted") this.query = event.query;
    for (const handler of this.#handlers.get(event.type) || []) handler(event);
    if (ENDS.has(event.type)) {
      this.done = true;
      this.#close(event);
    }
  }

  fail(message, code) {
    this.take({ type: "failed", id: this.id, seq: this.seq + 1, error: { message, code, type: "api_error", status: 0 } });
  }
}

export class NodeSocket {
  #socket = null;
  #wait = FIRST_WAIT_MS;
  #queries = new Map();
  #unsent = [];
  #next = 1;

  constructor() {
    this.node = new Observable(null); // the last "node" event
    this.connection = new Observable({ state: "connecting", problem: "" }); // connecting, open, lost, or keyless
    this.#connect();
    addEventListener("online", () => this.#connect());
    addEventListener("pagehide", () => this.#socket?.close());
  }

  /** Ask; events come to the returned `Query`. route: chat, images, speech, transcription or translation. */
  ask(route, body) {
    const query = new Query(`q${this.#next++}`, (frame) => this.#send(frame));
    this.#queries.set(query.id, query);
    query.ended.then(() => this.#queries.delete(query.id));
    this.#send({ type: "ask", id: query.id, route, body });
    return query;
  }

  /** Take over a query that was asked before, such as by this page before it was loaded again. */
  resume(id, after) {
    const query = new Query(`q${this.#next++}`, (frame) => this.#send(frame));
    query.query = id;
    query.seq = after;
    this.#queries.set(query.id, query);
    query.ended.then(() => this.#queries.delete(query.id));
    this.#send({ type: "resume", id: query.id, query: id, after }); // when the socket opens, all that have an id are resumed
    return query;
  }

  /** Take a key, and connect anew with it. */
  useKey() {
    this.#socket?.close();
    this.#wait = FIRST_WAIT_MS;
    this.#connect();
  }

  #connect() {
    if (this.#socket && this.#socket.readyState <= WebSocket.OPEN) return;
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/ws`);
    this.#socket = socket;
    socket.addEventListener("open", () => this.#opened(socket));
    socket.addEventListener("message", (message) => this.#received(JSON.parse(message.data)));
    socket.addEventListener("close", () => this.#closed(socket));
  }

  #opened(socket) {
    this.#wait = FIRST_WAIT_MS;
    const key = recall("key", "");
    if (key) socket.send(JSON.stringify({ type: "hello", key }));
    socket.send(JSON.stringify({ type: "watch" }));
    for (const query of this.#queries.values()) {
      if (query.query) socket.send(JSON.stringify({ type: "resume", id: query.id, query: query.query, after: query.seq }));
    }
    for (const frame of this.#unsent.splice(0)) socket.send(JSON.stringify(frame));
    this.connection.set({ state: "open", problem: "" });
  }

  #send(frame) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(frame));
    else if (frame.type === "ask" || frame.type === "cancel") this.#unsent.push(frame);
  }

  #received(event) {
    if (event.type === "node") return this.node.set(event);
    if (event.type === "error" && !event.id) return this.#refused(event.error);
    const query = this.#queries.get(event.id);
    if (!query) return undefined;
    if (event.type === "error") return query.fail(event.error.message, event.error.code);
    return query.take(event);
  }

  #refused(error) {
    const state = error.code === "invalid_api_key" ? "keyless" : this.connection.value.state;
    this.connection.set({ state, problem: error.message });
  }

  #closed(socket) {
    if (socket !== this.#socket) return;
    for (const query of this.#queries.values()) {
      // What was never accepted may not have arrived: asking twice could cost twice, so the person decides.
      if (!query.query && !this.#unsent.some((frame) => frame.id === query.id)) query.fail("the connection was lost before the node took the question; ask again", "connection_lost");
    }
    if (this.connection.value.state === "keyless") return;
    this.connection.set({ state: "lost", problem: "the node does not answer; it may be stopped. This page connects again by itself." });
    setTimeout(() => this.#connect(), this.#wait);
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_MS);
  }
}
