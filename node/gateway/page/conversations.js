// The conversations: what is said, what is being answered, what is kept.
// Rule: one owner, which outlives the view: an answer goes on while another view is shown, and after the page was loaded again it is
// taken up where it was. What is kept of a running answer is its text and the number of the last event in it, together.

import { attention } from "./attention.js";
import { summary } from "./history.js";
import { Observable } from "./observable.js";

const SAVE_MS = 1_000; // between two writes of a growing answer
const MOST_PICTURES = 8; // of one query; the newest
const TITLE_LENGTH = 60;

function freshId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Conversations {
  #context;
  #history;
  #running = new Map(); // by the answer's id: {query, conversation, answer}
  #listeners = new Set();
  #saving = new Map(); // timers, by conversation
  #loaded = new Map(); // conversations with running answers, so that each exists once

  /** `history` is an opened `History`. */
  constructor(context, history) {
    this.#context = context;
    this.#history = history;
    this.list = new Observable([]);
    this.current = new Observable(fresh());
    this.trouble = new Observable(""); // why conversations cannot be kept
    addEventListener("pagehide", () => this.#running.forEach(({ conversation }) => this.#write(conversation)));
  }

  get lasting() {
    return this.#history.lasting;
  }

  get history() {
    return this.#history;
  }

  /** Read what there is, and take up answers that were running when the page went away. */
  async begin() {
    await this.#refresh();
    for (const { id, running } of this.list.value) if (running) await this.#takeUp(id);
  }

  /** `listener(event)`: {type, conversation, message}; types: changed (its messages), event (of a running answer), ended. */
  listen(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  isRunning(answer) {
    return this.#running.has(answer.id);
  }

  // --- which one ---------------------------------------------------------------------------------------------------

  startNew() {
    this.current.set(fresh());
  }

  async open(id) {
    const found = this.#loaded.get(id) || (this.current.value.id === id ? this.current.value : await this.#history.get(id));
    if (found) this.current.set(found);
  }

  async rename(id, title) {
    const conversation = await this.#find(id);
    if (!conversation || !title.trim()) return;
    conversation.title = title.trim();
    conversation.named = true;
    await this.#write(conversation);
  }

  async remove(id) {
    for (const { conversation, query } of this.#running.values()) if (conversation.id === id) query.cancel();
    this.#forgetSaving(id);
    this.#loaded.delete(id);
    if (this.current.value.id === id) this.startNew();
    await this.#history.remove(id);
    await this.#refresh();
  }

  async clear() {
    for (const { query } of this.#running.values()) query.cancel();
    for (const id of this.#saving.keys()) this.#forgetSaving(id);
    this.#loaded.clear();
    this.startNew();
    await this.#history.clear();
    await this.#refresh();
  }

  /** Keep a change of a conversation's settings. */
  async keep(conversation) {
    if (conversation.messages.length) await this.#write(conversation);
  }

  // --- saying ------------------------------------------------------------------------------------------------------

  /** Say something and ask for an answer. asked: {model, mtor}. */
  say(text, pictures, asked) {
    const conversation = this.current.value;
    conversation.messages.push({ id: freshId(), role: "user", text, pictures, time: Date.now() });
    if (!conversation.title) conversation.title = titleOf(text);
    this.#ask(conversation, asked);
  }

  /** Say something else instead: what followed goes. Gives a function that brings it back. */
  edit(message, text, asked) {
    const conversation = this.current.value;
    const index = conversation.messages.indexOf(message);
    const before = structuredClone(conversation.messages);
    this.#drop(conversation, index);
    conversation.messages.push({ ...message, id: freshId(), text, time: Date.now() });
    if (index === 0 && !conversation.named) conversation.title = titleOf(text);
    this.#ask(conversation, asked);
    return () => this.#bringBack(conversation, before);
  }

  /** Ask for another answer in place of one, or of the one that an own message never got. */
  retry(message, asked) {
    const conversation = this.current.value;
    const index = conversation.messages.indexOf(message);
    this.#drop(conversation, message.role === "user" ? index + 1 : index);
    this.#ask(conversation, asked);
  }

  /** Stop an answer; what came stays. */
  stop(answer) {
    this.#running.get(answer.id)?.query.cancel();
  }

  #drop(conversation, index) {
    for (const gone of conversation.messages.splice(index)) {
      const running = this.#running.get(gone.id);
      this.#running.delete(gone.id);
      running?.query.cancel();
    }
  }

  #bringBack(conversation, messages) {
    this.#drop(conversation, 0);
    for (const message of messages) if (message.state === "running") message.state = "stopped";
    conversation.messages.push(...messages);
    this.#tell("changed", conversation);
    this.#write(conversation);
  }

  #ask(conversation, asked) {
    const body = { model: asked.model, messages: spoken(conversation), ...settingsOf(conversation) };
    if (Object.keys(asked.mtor).length) body.mtor = asked.mtor;
    const answer = { id: freshId(), role: "assistant", text: "", state: "running", query: "", seq: 0, began: Date.now(), asked };
    conversation.messages.push(answer);
    conversation.updated = Date.now();
    this.#follow(conversation, answer, this.#context.socket.ask("chat", body));
    this.#tell("changed", conversation);
    this.#write(conversation);
  }

  // --- answers that come -------------------------------------------------------------------------------------------

  async #takeUp(id) {
    const conversation = this.#loaded.get(id) || (await this.#history.get(id));
    let lost = false;
    for (const answer of conversation?.messages || []) {
      if (answer.state !== "running" || this.#running.has(answer.id)) continue;
      if (answer.query) {
        this.#follow(conversation, answer, this.#context.socket.resume(answer.query, answer.seq));
      } else {
        Object.assign(answer, { state: "failed", error: { message: "the page was closed before the node took the question" } });
        lost = true;
      }
    }
    if (lost) await this.#write(conversation);
  }

  #follow(conversation, answer, query) {
    this.#running.set(answer.id, { query, conversation, answer });
    this.#loaded.set(conversation.id, conversation);
    const take = (event) => {
      if (!this.#running.has(answer.id)) return; // it was dropped; nobody waits for it
      answer.seq = event.seq;
      this.#take(conversation, answer, event);
    };
    for (const type of ["accepted", "routed", "waiting", "delta", "tool_call", "completed", "failed", "cancelled"]) query.on(type, take);
  }

  #take(conversation, answer, event) {
    if (event.type === "accepted") answer.query = event.query;
    if (event.type === "delta") answer.text += event.text;
    if (event.type === "tool_call") answer.calls = [...(answer.calls || []), event.call];
    if (event.type === "completed") {
      this.#end(conversation, answer, { state: "done", facts: { ...event, seconds: (Date.now() - answer.began) / 1_000 } });
    } else if (event.type === "failed") {
      this.#end(conversation, answer, { state: "failed", error: event.error });
    } else if (event.type === "cancelled") {
      this.#end(conversation, answer, { state: "stopped" });
    } else {
      this.#tell("event", conversation, answer, event);
      if (event.type === "accepted") this.#write(conversation); // by its id it is found again
      else this.#saveSoon(conversation);
    }
  }

  #end(conversation, answer, changes) {
    Object.assign(answer, changes);
    this.#running.delete(answer.id);
    if (![...this.#running.values()].some((each) => each.conversation === conversation)) this.#loaded.delete(conversation.id);
    this.#tell("ended", conversation, answer);
    if (answer.error?.code === "taken_over") return; // another tab follows it now, and keeps it
    if (answer.state !== "stopped") attention(answer.state === "done" ? "Answer ready" : "No answer");
    conversation.updated = Date.now();
    this.#write(conversation);
  }

  // --- keeping -----------------------------------------------------------------------------------------------------

  #saveSoon(conversation) {
    if (this.#saving.has(conversation.id)) return;
    this.#saving.set(conversation.id, setTimeout(() => this.#write(conversation), SAVE_MS));
  }

  #forgetSaving(id) {
    clearTimeout(this.#saving.get(id));
    this.#saving.delete(id);
  }

  async #write(conversation) {
    this.#forgetSaving(conversation.id);
    if (!conversation.messages.length) return;
    try {
      await this.#history.put(conversation);
      this.trouble.set("");
    } catch (error) {
      this.trouble.set(`this conversation is not kept: ${error?.message || error}`);
    }
    this.#noteInList(conversation);
  }

  #noteInList(conversation) {
    const others = this.list.value.filter((each) => each.id !== conversation.id);
    this.list.set([summary(conversation), ...others].sort((one, other) => other.updated - one.updated));
  }

  async #refresh() {
    this.list.set(await this.#history.list());
  }

  async #find(id) {
    if (this.current.value.id === id) return this.current.value;
    return this.#loaded.get(id) || this.#history.get(id);
  }

  #tell(type, conversation, message = null, event = null) {
    for (const listener of [...this.#listeners]) listener({ type, conversation, message, event });
  }
}

function fresh() {
  return { id: freshId(), title: "", named: false, created: Date.now(), updated: Date.now(), system: "", settings: {}, messages: [] };
}

function titleOf(text) {
  const line = text.trim().split("\n")[0] || "A picture";
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1)}…` : line;
}

/** Temperature, number of tokens and seed, where they were set. */
function settingsOf({ settings }) {
  return Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== null && value !== undefined));
}

/** The conversation as the node takes it: without answers that never came, and with the newest pictures. */
function spoken(conversation) {
  let pictures = MOST_PICTURES;
  const turns = [];
  for (const message of [...conversation.messages].reverse()) {
    if (message.role === "assistant") {
      if (message.text) turns.push({ role: "assistant", content: message.text });
      continue;
    }
    const shown = (message.pictures || []).slice(0, pictures);
    pictures -= shown.length;
    const parts = shown.map((url) => ({ type: "image_url", image_url: { url } }));
    turns.push({ role: "user", content: parts.length ? [...parts, { type: "text", text: message.text }] : message.text });
  }
  if (conversation.system.trim()) turns.push({ role: "system", content: conversation.system.trim() });
  return turns.reverse();
}

/** Whether a conversation shows pictures: then it is asked of another realm. */
export function showsPictures(conversation) {
  return conversation.messages.some((message) => message.pictures?.length);
}

/** A conversation as Markdown. */
export function asMarkdown(conversation) {
  const said = conversation.messages.map((message) => {
    const pictures = message.pictures?.length ? `\n\n_(${message.pictures.length} picture(s))_` : "";
    return `## ${message.role === "user" ? "You" : message.facts?.model || "Answer"}\n\n${message.text}${pictures}`;
  });
  const system = conversation.system ? [`> ${conversation.system.replaceAll("\n", "\n> ")}`] : [];
  return [`# ${conversation.title}`, ...system, ...said].join("\n\n") + "\n";
}
