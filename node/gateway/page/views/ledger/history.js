// What happened, newest first; and each entry's own page.

import { el, empty, fill, problem, select, spinner } from "../../dom.js";
import { tidy } from "../../format.js";
import { action } from "../../pieces.js";
import * as entry from "./entry.js";
import { KINDS, dayOf, entryLink, signed } from "./words.js";

export const id = "history";
export const title = "History";

const PAGE = 50;
const MOST_PAGES = 20; // asked for one press, while a filter finds too few
const ENOUGH = 25;
const NEW_SECONDS = 5;

export function mount(panel, context, shown = "") {
  if (shown) return entry.mount(panel, context, shown);
  return new History(panel, context).leave;
}

class History {
  #operator;
  #entries = [];
  #end = false;
  #kind = "";
  #text = "";
  #timer;
  #left = false;
  #list = el("div.stack");
  #foot = el("div.row");

  constructor(panel, { operator }) {
    this.#operator = operator;
    const search = el("input", { type: "search", placeholder: "peer, model, words", "aria-label": "Search", oninput: () => { this.#text = search.value.toLowerCase(); this.#draw(); } });
    panel.append(
      el("div.row.between", {}, el("h2", {}, "History"), el("div.row.filters", {},
        select([["", "everything"], ["asked", "what you asked"], ["answered", "what you answered"], ...Object.entries(KINDS).filter(([kind]) => kind !== "query").map(([kind, [, word]]) => [kind, `${word.toLowerCase()}s`])], "", (kind) => { this.#kind = kind; this.#draw(); }, { "aria-label": "Kind" }),
        search)),
      this.#list, this.#foot);
    fill(this.#list, spinner("Reading the ledger"));
    this.#first();
  }

  leave = () => {
    this.#left = true;
    clearInterval(this.#timer);
  };

  async #first() {
    try {
      await this.#page();
    } catch (error) {
      if (!this.#left) fill(this.#list, problem(error, () => this.#first()));
      return;
    }
    this.#draw();
    this.#timer = setInterval(() => !document.hidden && this.#newest().catch(() => {}), NEW_SECONDS * 1_000); // the balance above says if the node is gone
  }

  async #page() {
    const { entries } = await this.#operator.call("ledger.history", { limit: PAGE, before: this.#entries.at(-1)?.position || "" });
    this.#entries.push(...entries);
    this.#end = entries.length < PAGE;
  }

  /** What was added since; entries that an epoch change made void are told anew, too. */
  async #newest() {
    const { entries } = await this.#operator.call("ledger.history", { limit: PAGE });
    if (this.#left) return;
    const before = JSON.stringify(this.#entries.slice(0, entries.length));
    const oldest = Number(entries.at(-1)?.position ?? -1);
    const kept = this.#entries.filter((each) => Number(each.position) < oldest);
    if (kept.length && Number(this.#entries[0].position) < oldest) this.#entries = entries; // more came than a page holds
    else this.#entries = [...entries, ...kept];
    if (JSON.stringify(this.#entries.slice(0, entries.length)) !== before) this.#draw();
  }

  async #more() {
    const had = this.#found().length;
    for (let pages = 0; pages < MOST_PAGES && !this.#end && this.#found().length < had + ENOUGH; pages += 1) await this.#page();
    if (!this.#left) this.#draw();
  }

  #found() {
    return this.#entries.filter((each) => this.#fits(each));
  }

  #fits(each) {
    const kind = each.kind === "query" ? (each.role === "requester" ? "asked" : "answered") : each.kind;
    const said = `${each.sentence} ${each.counterparty} ${each.id} ${each.model || ""} ${each.realm || ""}`.toLowerCase();
    return (!this.#kind || kind === this.#kind) && said.includes(this.#text);
  }

  #draw() {
    const found = this.#found();
    const days = Map.groupBy ? Map.groupBy(found, (each) => dayOf(each.time_ms)) : grouped(found);
    const focused = document.activeElement?.getAttribute?.("href");
    if (!found.length) fill(this.#list, this.#entries.length ? el("p.soft", {}, this.#end ? "Nothing in the history fits." : "Nothing fits so far; older entries may.") : empty("Nothing yet", "Here stands every query, grant and settlement of this node, as soon as there is one."));
    else fill(this.#list, [...days].map(([day, entries]) => el("section", { "aria-label": day }, el("h3.day", {}, day), el("ul.entries.card", {}, entries.map(line)))));
    fill(this.#foot, !this.#end && action("Show older entries", () => this.#more()));
    if (focused) this.#list.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }
}

function grouped(entries) {
  const days = new Map();
  for (const each of entries) days.set(dayOf(each.time_ms), [...(days.get(dayOf(each.time_ms)) || []), each]);
  return days;
}

function line(each) {
  const [icon, word] = KINDS[each.kind] || ["·", tidy(each.kind)];
  return el("li", {}, el("span.icon", { title: word, "aria-label": word, role: "img" }, icon),
    el("div.grow", {}, el("p.said", { dir: "auto" }, tidy(each.sentence, 240)), el("p.small-text.soft", {}, each.time_ms ? new Date(each.time_ms).toLocaleTimeString([], { timeStyle: "short" }) : "", " · ", entryLink(each.id), each.void_ms ? " · void" : "")),
    signed(each.amount));
}
