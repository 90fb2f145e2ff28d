// Tables that can be sorted, whose rows stay in place while their values change; on phones each row is a card.
// Rule: a row has a key, and only what changed is drawn anew: the keyboard's place and a selection survive.

import { el, fill, select } from "./dom.js";

/**
 * columns: {id, title, cell(row) -> text or node(s), value?(row) -> what it sorts by, number?, hide?: left out of cards}
 * options: {key(row), sort: {id, down}, caption, most, none: text for an empty table}
 */
export class Table {
  #columns;
  #options;
  #rows = [];
  #lines = new Map();
  #sort;
  #body = el("tbody", { role: "rowgroup" }); // roles: as cards the style sheet takes them away
  #more = el("p.hint");
  #heads = new Map();
  #all = false;
  #list = null; // of what they can be sorted by

  constructor(columns, options) {
    this.#columns = columns;
    this.#options = { most: 300, none: "Nothing here yet.", ...options };
    this.#sort = options.sort || null;
    const head = el("tr", { role: "row" }, columns.map((column) => this.#head(column)));
    this.element = el("div.stack", {}, this.#chooser(),
      el("div.scroll-x", {}, el("table.cards-on-phones", { role: "table" }, options.caption && el("caption.unseen", {}, options.caption), el("thead", { role: "rowgroup" }, head), this.#body)), this.#more);
  }

  /** The rows as they are now. */
  set(rows) {
    this.#rows = rows;
    this.#draw();
  }

  /** Cards have no heads to press: there, a list says what they are sorted by. */
  #chooser() {
    const sortable = this.#columns.filter((column) => column.value);
    if (!sortable.length) return null;
    const options = [["", "as they come"], ...sortable.map((column) => [column.id, `sorted by: ${column.title.toLowerCase()}`])];
    this.#list = select(options, "", (id) => this.#by(this.#columns.find((column) => column.id === id)), { class: "sort-by", "aria-label": "Sorted by" });
    return this.#list;
  }

  #head(column) {
    const kind = column.number ? "number" : "";
    if (!column.value) return el("th", { scope: "col", role: "columnheader", class: kind }, column.title);
    const head = el("th", { scope: "col", role: "columnheader", class: kind }, el("button.sorter", { type: "button", onclick: () => this.#by(column) }, column.title));
    this.#heads.set(column.id, head);
    return head;
  }

  #by(column) {
    const same = column && this.#sort?.id === column.id;
    this.#sort = column ? { id: column.id, down: same ? !this.#sort.down : Boolean(column.number) } : null;
    this.#draw();
  }

  #draw() {
    if (this.#list) this.#list.value = this.#sort?.id ?? "";
    for (const [id, head] of this.#heads) head.setAttribute("aria-sort", id !== this.#sort?.id ? "none" : this.#sort.down ? "descending" : "ascending");
    const sorted = this.#sorted();
    const shown = this.#all ? sorted : sorted.slice(0, this.#options.most);
    const lines = shown.map((row) => this.#line(row));
    const kept = new Set(shown.map((row) => this.#options.key(row)));
    for (const key of [...this.#lines.keys()]) if (!kept.has(key)) this.#lines.delete(key);
    if (!lines.length) fill(this.#body, el("tr.nothing", { role: "row" }, el("td", { role: "cell", colspan: this.#columns.length }, this.#options.none)));
    else if (lines.length !== this.#body.children.length || lines.some((line, index) => line !== this.#body.children[index])) this.#place(lines);
    const left = sorted.length - shown.length;
    fill(this.#more, left > 0 && [`${left} more. `, el("button.link", { type: "button", onclick: () => { this.#all = true; this.#draw(); } }, "Show all")]);
  }

  #place(lines) {
    const active = this.#body.contains(document.activeElement) ? document.activeElement : null;
    this.#body.replaceChildren(...lines);
    active?.focus({ preventScroll: true });
  }

  #sorted() {
    const column = this.#columns.find((each) => each.id === this.#sort?.id);
    if (!column) return this.#rows;
    const sign = this.#sort.down ? -1 : 1;
    return [...this.#rows].sort((one, other) => sign * compared(column.value(one), column.value(other)) || compared(this.#options.key(one), this.#options.key(other)));
  }

  #line(row) {
    const key = this.#options.key(row);
    const stamp = JSON.stringify(row);
    const known = this.#lines.get(key);
    if (known?.stamp === stamp) return known.element;
    if (known) {
      known.stamp = stamp;
      for (const [index, cell] of [...known.element.children].entries()) {
        if (cell.querySelector("[aria-busy]")) known.stamp = ""; // its button works: drawn anew when that is over
        else refilled(cell, this.#columns[index].cell(row));
      }
      return known.element;
    }
    const element = el("tr", { role: "row" }, this.#columns.map((column) => el("td", { role: "cell", class: column.number ? "number" : "", dataset: { title: column.title } }, column.cell(row))));
    this.#lines.set(key, { stamp, element });
    return element;
  }
}

/** New content for a cell; what had the keyboard in it keeps it. */
function refilled(cell, ...content) {
  const place = cell.contains(document.activeElement) ? [...cell.querySelectorAll("button, summary, a")].indexOf(document.activeElement) : -1;
  fill(cell, ...content);
  if (place >= 0) cell.querySelectorAll("button, summary, a")[place]?.focus({ preventScroll: true });
}

function compared(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one ?? "").localeCompare(String(other ?? ""), undefined, { numeric: true });
}
