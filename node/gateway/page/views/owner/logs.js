// The node's log, as it is written.
// Rule: a log holds what strangers sent: it is shown as text, a line at a time, and never more lines than a screen can take.

import { button, el, field, fill, problem, select } from "../../dom.js";
import { count, tidy } from "../../format.js";

export const id = "logs";
export const title = "Logs";

const MOST_LINES = 1_000;
const FIRST_LINES = 200;
const QUERY = /^([0-9a-f]{4,32})?$/;
const AGAIN_MS = 3_000;
const NEAR_BOTTOM = 40; // px
const LEVELS = [["debug", "everything"], ["info", "info and worse"], ["warning", "warnings and errors"], ["error", "errors"]];

export function mount(panel, { operator }) {
  return new Logs(panel, operator).leave;
}

class Logs {
  #operator;
  #stopping = null;
  #again = 0;
  #paused = false;
  #held = []; // came while paused
  #waiting = []; // came since the last frame
  #frame = 0;
  #list = el("ol.log", { tabindex: "0", role: "log", "aria-label": "Log lines", "aria-live": "off" });
  #said = el("div");
  #state = el("span.soft", { role: "status" });
  #level = select(LEVELS, "info", () => this.#follow());
  #query = el("input", { type: "search", autocomplete: "off", spellcheck: "false", placeholder: "a query’s id" });
  #pause = button("Pause", () => this.#hold(), { "aria-pressed": "false" });
  #down = button("↓ Newest", () => this.#bottom(), { kind: "small primary to-bottom", hidden: true });

  constructor(panel, operator) {
    this.#operator = operator;
    let typing = 0;
    this.#query.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => this.#follow(), 400); });
    this.#list.addEventListener("scroll", () => { this.#down.hidden = this.#atBottom(); });
    panel.append(el("h2.unseen", {}, "Logs"), el("div.row.log-tools", {}, field("Level", this.#level), field("Query", this.#query), el("div.row", {}, this.#pause, button("Clear", () => this.#clear())), this.#state),
      this.#said, el("div.log-box", {}, this.#list, this.#down));
    document.addEventListener("visibilitychange", this.#seen);
    this.#follow();
  }

  leave = () => {
    document.removeEventListener("visibilitychange", this.#seen);
    this.#stop();
  };

  #seen = () => {
    if (document.hidden) this.#stop();
    else this.#follow();
  };

  #stop() {
    clearTimeout(this.#again);
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#stopping?.abort();
    this.#stopping = null;
  }

  /** Read the last lines and go on with what comes. */
  async #follow() {
    this.#stop();
    this.#clear();
    fill(this.#said);
    const stopping = new AbortController();
    this.#stopping = stopping;
    const wish = { lines: FIRST_LINES, follow: true, level: this.#level.value };
    const query = this.#query.value.trim().toLowerCase();
    if (query) wish.query = query;
    this.#query.setAttribute("aria-invalid", String(!QUERY.test(query)));
    if (!QUERY.test(query)) return fill(this.#said, el("p.hint", {}, "A query’s id is made of 4 to 32 digits and letters from a to f."));
    this.#show();
    try {
      await this.#operator.stream("logs.tail", wish, (line) => !line.done && this.#stopping === stopping && this.#take(line), stopping.signal);
    } catch (error) {
      if (error.name === "AbortError" || this.#stopping !== stopping) return;
      fill(this.#said, problem(error, () => this.#follow()));
      if (!error.status) this.#again = setTimeout(() => this.#follow(), AGAIN_MS); // the node stopped or the line broke
    }
  }

  #take(line) {
    const lines = this.#paused ? this.#held : this.#waiting;
    lines.push(line);
    if (lines.length > MOST_LINES) lines.splice(0, lines.length - MOST_LINES);
    if (this.#paused) this.#show();
    else this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#frame = 0;
    const follows = this.#atBottom();
    this.#list.append(...this.#waiting.splice(0).map(shown));
    while (this.#list.children.length > MOST_LINES) this.#list.firstChild.remove();
    if (follows) this.#bottom();
    else this.#down.hidden = false;
    this.#show();
  }

  #hold() {
    this.#paused = !this.#paused;
    this.#pause.setAttribute("aria-pressed", String(this.#paused));
    this.#pause.textContent = this.#paused ? "Go on" : "Pause";
    if (!this.#paused) {
      this.#waiting.push(...this.#held.splice(0));
      this.#draw();
    }
    this.#show();
  }

  #clear() {
    this.#waiting.length = this.#held.length = 0;
    fill(this.#list);
    this.#down.hidden = true;
    this.#show();
  }

  #show() {
    const lines = this.#list.children.length;
    const text = this.#paused ? `paused, ${this.#held.length} new` : lines ? `${count(lines, "line")}${lines >= MOST_LINES ? ", older ones left out" : ""}` : "no line yet";
    if (this.#state.textContent !== text) this.#state.textContent = text;
  }

  #atBottom() {
    return this.#list.scrollHeight - this.#list.scrollTop - this.#list.clientHeight < NEAR_BOTTOM;
  }

  #bottom() {
    this.#list.scrollTop = this.#list.scrollHeight;
    this.#down.hidden = true;
  }
}

function shown(line) {
  const level = String(line.level || "info").toLowerCase();
  return el("li", { class: ["warning", "error", "critical"].includes(level) ? level : "" },
    el("time", {}, time(line.time)), el("span.level", {}, tidy(level, 10)), el("span.logger", {}, tidy(line.logger, 40).replace(/^mtor\./, "")),
    el("span.message", { dir: "ltr" }, tidy(line.message, 4_000), line.query && el("code.query", { title: "The query’s id" }, tidy(line.query, 40)), line.trace && el("details", {}, el("summary", {}, "where"), el("pre.wrap", {}, line.trace))));
}

function time(value) {
  const date = typeof value === "number" ? new Date(value < 1e12 ? value * 1_000 : value) : new Date(value);
  return Number.isNaN(date.getTime()) ? tidy(value, 30) : date.toLocaleTimeString([], { hour12: false });
}
