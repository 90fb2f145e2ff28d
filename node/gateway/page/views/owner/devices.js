// The machine: cards, who is on them, what fits where.

import { el } from "../../dom.js";
import { count, duration, memory, tidy } from "../../format.js";
import { facts, live, redraw } from "../../pieces.js";

export const id = "devices";
export const title = "Devices";

const WHOSE = { "this node": "good", desktop: "", another: "busy" };

export function mount(panel, { operator }) {
  const asking = live(panel, () => operator.call("hardware"), (found, place) => redraw(place, drawn(found)), { seconds: 3, waiting: "Looking at the cards" });
  return () => asking.stop();
}

function drawn(found) {
  return [
    el("section.stack", { "aria-label": "Graphics cards" }, el("h2", {}, "Graphics cards"),
      found.cards.length ? el("div.cards.two", {}, found.cards.map(card)) : el("p.soft", {}, "No graphics card is seen. ", tidy(found.about, 300), " Models run on the CPU; ", el("code", {}, "mtor doctor"), " says what a card would need."),
      found.cards.length > 0 && el("p.hint", {}, tidy(found.about, 300))),
    el("section.card", { "aria-label": "Processor" }, el("h2", {}, "CPU"), el("p", {}, `${memory(found.cpu_mib)} of memory for models.`)),
    el("section.stack", { "aria-label": "Models" }, el("h2", {}, "Models in memory"),
      found.models.length ? el("div.cards.two", {}, found.models.map(model)) : el("p.soft", {}, "None is loaded.")),
  ];
}

function card(found) {
  const used = found.vram_mib - found.free_mib;
  const own = (found.processes || []).filter((each) => each.whose === "this node").reduce((sum, each) => sum + (each.mib || 0), 0);
  const part = (mib) => (100 * Math.max(0, Math.min(mib, found.vram_mib))) / (found.vram_mib || 1);
  const bar = el("div.vram", { role: "img", "aria-label": `${memory(used)} of ${memory(found.vram_mib)} in use, ${memory(own)} by this node` }, el("span.ours"), el("span.theirs"));
  bar.children[0].style.width = `${part(own)}%`;
  bar.children[1].style.width = `${part(used - own)}%`;
  return el("article.card.stack", {},
    el("div.row.between", {}, el("h3", { dir: "auto" }, `${found.index}: ${tidy(found.name, 60)}`), found.declared && el("span.chip", {}, "declared")),
    bar,
    el("p.small-text", {}, `${memory(found.free_mib)} free of ${memory(found.vram_mib)}${own ? `; ${memory(own)} ours` : ""}${found.utilisation === null ? "" : `; working ${found.utilisation} % of the time`}`),
    facts([["Driver", tidy(found.driver, 40)], ["Compute", found.compute_capability ? (found.compute_capability / 10).toFixed(1) : ""]]),
    found.processes === null ? el("p.hint", {}, "Who is on the card cannot be told.") : found.processes.length ? el("ul.plain.processes", {}, found.processes.map(process)) : el("p.hint", {}, "Nobody is on it."));
}

function process(each) {
  return el("li", {}, el("span.chip", { class: WHOSE[each.whose] || "" }, each.whose), el("span.grow.long", { dir: "auto" }, tidy(each.name, 60) || `process ${each.pid}`), el("span.soft", {}, each.mib === null ? "" : memory(each.mib)));
}

function model(found) {
  const fits = found.fits;
  return el("article.card.stack", {},
    el("div.row.between", {}, el("h3.long", { dir: "auto" }, tidy(found.model)), el("span.chip", { class: found.loaded ? "good" : found.problem ? "bad" : "" }, found.loaded ? "loaded" : found.problem ? "failed" : "not loaded")),
    found.problem && el("p.bad-text", {}, tidy(found.problem, 400)),
    facts([
      ["Where", tidy(found.where, 60)], ["Planned", found.planned_mib ? memory(found.planned_mib) : ""], ["Context", found.context ? `${count(found.context, "token")}` : ""],
      ["Pinned", found.pinned ? "stays when another needs its room" : ""], ["Busy", `${found.busy} answering, ${found.queued} waiting`], ["Idle for", found.idle_seconds ? duration(found.idle_seconds) : ""],
      ["Alone it", fits.fits ? `fits: ${tidy(fits.said, 300)}` : el("span.bad-text", {}, `does not fit: ${tidy(fits.said, 300)}`)],
      ["Nearest", fits.nearest.length ? fits.nearest.map((each) => tidy(each, 200)).join("; ") : ""],
    ]));
}
