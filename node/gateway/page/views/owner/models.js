// What is served now, what is in the store, and how more comes in.

import { button, confirmed, el, field, fill, problem, toast } from "../../dom.js";
import { bytes, memory, tidy } from "../../format.js";
import { action, live, redraw } from "../../pieces.js";
import { Table } from "../../table.js";
import { Pull, lookAndPull } from "./pulling.js";
import { serveDialog } from "./serving.js";

export const id = "models";
export const title = "Models";

export function mount(panel, context) {
  return new ModelsTab(panel, context.operator).leave;
}

class ModelsTab {
  #operator;
  #fits = new Map(); // model -> what `models.show` says, for those that are here
  #pulls = new Map(); // what is being pulled, by what was asked for
  #lives;
  #left = false;
  #served;
  #store;
  #pulling = el("div.stack");
  #disk = el("p.hint");
  #rows = [];

  constructor(panel, operator) {
    this.#operator = operator;
    this.#served = new Table(this.#servedColumns(), { key: (row) => `${row.realm} ${row.model}`, caption: "Models served now", none: "Nothing is served. Choose a model below." });
    this.#store = new Table(this.#storeColumns(), { key: (row) => row.name, sort: { id: "here", down: true }, caption: "Models in the store and the catalogue" });
    const served = el("div");
    const store = el("div");
    panel.append(
      el("section.stack", { "aria-label": "Served now" }, el("h2", {}, "Served now"), served),
      el("section.stack", { "aria-label": "Store" }, el("div.row.between", {}, el("h2", {}, "Store"), this.#disk), store),
      el("section.card.stack", { "aria-label": "Get another model" }, el("h2", {}, "Get another model"), this.#form(), this.#pulling));
    this.#lives = {
      served: live(served, () => this.#askServed(), (rows, place) => { if (!place.contains(this.#served.element)) fill(place, this.#served.element); this.#served.set(rows); }, { seconds: 3 }),
      store: live(store, () => operator.call("models.list"), (found, place) => this.#showStore(found, place), { seconds: 20 }),
    };
  }

  leave = () => {
    this.#left = true;
    for (const each of Object.values(this.#lives)) each.stop();
    for (const pull of this.#pulls.values()) pull.stop();
  };

  // --- served ---------------------------------------------------------------------------------------

  async #askServed() {
    const [status, hardware] = await Promise.all([this.#operator.call("status"), this.#operator.call("hardware")]);
    const planned = new Map(hardware.models.map((model) => [model.model, model])); // by "$REALM name"
    const rows = status.serving.map((row) => ({ ...row, loaded: planned.get(`${row.realm} ${row.model}`) || null }));
    const served = new Set(rows.map((row) => `${row.realm} ${row.model}`));
    return [...rows, ...hardware.models.filter((model) => !served.has(model.model)).map(notYet)];
  }

  #servedColumns() {
    return [
      { id: "model", title: "Model", value: (row) => row.model, cell: (row) => el("div", {}, el("strong.long", {}, tidy(row.model)), el("div.small-text.soft", {}, tidy(row.realm, 40))) },
      { id: "state", title: "State", value: state, cell: (row) => el("div", {}, el("span.chip", { class: { ready: "good", asleep: "", loading: "busy" }[state(row)] ?? "bad" }, state(row)), row.loaded?.problem && el("p.small-text.bad-text", {}, tidy(row.loaded.problem, 300))) },
      { id: "where", title: "Where", value: (row) => row.device_name, cell: (row) => tidy(row.device_name || row.device, 60) },
      { id: "busy", title: "Slots", value: (row) => row.busy / (row.slots || 1), cell: (row) => row.slots > 0 && el("span.slots", {}, el("meter", { min: "0", max: row.slots, value: row.busy, "aria-label": "busy slots" }), `${row.busy} of ${row.slots}`) },
      { id: "queued", title: "Waiting", number: true, value: (row) => row.queued, cell: (row) => String(row.queued) },
      { id: "speed", title: "Tokens/s", number: true, value: (row) => row.tokens_per_second, cell: (row) => (row.tokens_per_second ? row.tokens_per_second.toFixed(1) : "–") },
      { id: "memory", title: "Memory", number: true, value: (row) => row.memory_mib, cell: (row) => (row.memory_mib ? memory(row.memory_mib) : "–") },
      { id: "do", title: "", cell: (row) => action("Stop serving", () => this.#stopServing(row), { kind: "small", label: `Stop serving ${tidy(row.model)}` }) },
    ];
  }

  async #stopServing(row) {
    if (!(await confirmed(`Stop serving ${tidy(row.model)} in ${tidy(row.realm, 40)}? Its answers in progress are handed over to other nodes, and it stays off after a restart.`, "Stop serving", { danger: true }))) return;
    const done = await this.#operator.call("serving.stop", { model: row.model, realm: row.realm });
    toast([`${tidy(row.model)} is not served any more`, tidy(done.note, 300)].filter(Boolean).join("; "), "good");
    this.#again();
  }

  // --- the store ------------------------------------------------------------------------------------

  #showStore(found, place) {
    if (!place.contains(this.#store.element)) fill(place, this.#store.element);
    const here = found.models.filter((row) => row.installed);
    const used = here.reduce((sum, row) => sum + (row.linked || row.builtin ? 0 : row.bytes), 0);
    redraw(this.#disk, `${bytes(used)} used${found.partial_bytes ? `, ${bytes(found.partial_bytes)} of unfinished downloads` : ""}, ${bytes(found.free_bytes)} free on the disk`);
    this.#rows = found.models;
    this.#drawStore();
    this.#askFits(here);
  }

  #drawStore() {
    this.#store.set(this.#rows.map((row) => ({ ...row, fits: this.#fits.get(row.name) ?? null, pulling: this.#pulls.has(row.name) })));
  }

  /** Whether each model that is here fits this machine: worked out by the node, one after another. */
  async #askFits(rows) {
    for (const row of rows) {
      if (this.#left) return;
      if (this.#fits.has(row.name)) continue;
      this.#fits.set(row.name, null);
      const shown = await this.#operator.call("models.show", { model: row.name }).catch((error) => ({ fits: `not known: ${error.message}` }));
      this.#fits.set(row.name, String(shown.fits || ""));
      if (!this.#left) this.#drawStore();
    }
  }

  #storeColumns() {
    return [
      { id: "name", title: "Model", value: (row) => row.name, cell: (row) => el("div.model-cell", {}, el("strong.long", { dir: "auto" }, tidy(row.name)), el("div.small-text.soft", { dir: "auto" }, tidy(row.title, 120)), row.limits && el("details.small-text", {}, el("summary", {}, "What it cannot do"), el("p", {}, tidy(row.limits, 400)))) },
      { id: "realm", title: "Realm", value: (row) => row.realm, cell: (row) => tidy(row.realm, 40) || "–" },
      { id: "licence", title: "Licence", value: (row) => row.licence, cell: (row) => el("span.long", {}, tidy(row.licence, 60) || "not known") },
      { id: "size", title: "Size", number: true, value: (row) => row.bytes || row.fetch_bytes, cell: (row) => (row.installed ? bytes(row.bytes) : row.fetch_bytes ? `${bytes(row.fetch_bytes)} to fetch` : "–") },
      { id: "here", title: "Here", value: (row) => (row.installed ? 1 : 0), cell: (row) => (row.installed ? fitChip(row.fits) : el("span.soft", {}, "no")) },
      { id: "do", title: "", cell: (row) => this.#buttons(row) },
    ];
  }

  #buttons(row) {
    if (!row.installed) return row.pulling ? el("span.soft", {}, "being pulled") : button("Pull", () => this.#pull(row.name), { kind: "small", label: `Pull ${tidy(row.name)}` });
    return el("div.row.nowrap", {},
      button("Serve", () => serveDialog(this.#operator, row, () => this.#again()), { kind: "small primary", label: `Serve ${tidy(row.name)}` }),
      !row.builtin && action("Remove", () => this.#remove(row), { kind: "small", label: `Remove ${tidy(row.name)}` }));
  }

  async #remove(row) {
    const what = row.linked ? "Its files stay where they are." : `${bytes(row.bytes)} are deleted; it can be pulled again.`;
    if (!(await confirmed(`Remove ${tidy(row.name)} from the store? ${what}`, "Remove", { danger: true }))) return;
    await this.#operator.call("models.rm", { model: row.name });
    this.#fits.delete(row.name);
    toast(`${tidy(row.name)} is removed`, "good");
    this.#again();
  }

  // --- pulling --------------------------------------------------------------------------------------

  #form() {
    const wanted = el("input", { required: true, autocomplete: "off", spellcheck: "false", placeholder: "hf:OWNER/NAME" });
    const said = el("div");
    return el("form.stack", { onsubmit: async (event) => {
      event.preventDefault();
      const model = wanted.value.trim();
      fill(said);
      try {
        if (model.startsWith("hf:")) await lookAndPull(this.#operator, model, (agreed) => this.#pull(model, { agreed }));
        else this.#pull(model);
        wanted.value = "";
      } catch (error) {
        fill(said, problem(error));
      }
    } }, field("Name", wanted, "A name from the list above, or hf:OWNER/NAME for a model of Hugging Face (safetensors or GGUF); its licence is shown before anything is fetched."),
    el("div.row", {}, el("button.button", {}, "Look")), said);
  }

  #pull(model, more = {}) {
    if (this.#pulls.has(model)) return;
    const pull = new Pull(this.#operator, model, more, (ended) => {
      if (this.#left) return;
      if (ended !== "failed") this.#pulls.delete(model);
      this.#drawStore();
      this.#again();
    }, () => {
      this.#pulls.delete(model);
      this.#drawStore();
    });
    this.#pulls.set(model, pull);
    this.#pulling.append(pull.element);
    pull.element.scrollIntoView({ block: "nearest" });
    this.#drawStore();
  }

  #again() {
    this.#lives.served.refresh();
    this.#lives.store.refresh();
  }
}

/** A row for a model that is being loaded, or could not be. */
function notYet(model) {
  const [realm, ...name] = model.model.split(" ");
  return { realm, model: name.join(" "), ready: false, unloaded: false, device: "", device_name: model.where, slots: 0, busy: 0, queued: 0, tokens_per_second: 0, memory_mib: 0, loaded: model };
}

function state(row) {
  if (row.ready) return "ready";
  if (row.unloaded) return "asleep";
  return row.loaded?.problem ? "failed" : "loading";
}

/** "fits" with the node's words; `text` as `models.show` has it: "yes: …", "no: …" or what went wrong. */
function fitChip(text) {
  if (text === null) return el("span.soft", {}, "yes");
  if (text.startsWith("yes")) return el("span.chip.good", { title: text }, "fits");
  if (text.startsWith("no:")) return el("details.small-text", {}, el("summary", {}, el("span.chip.bad", {}, "does not fit")), el("p", {}, tidy(text.slice(3), 400)));
  return el("span.chip", { title: text }, "yes");
}
