// Tabs, as ARIA has them: one stop for the tabulator, arrows between them, Home and End.
// Rule: the address names the tab (#/view/tab), so that it can be linked to and survives a reload.

import { el, fill, problem } from "./dom.js";

/** The parts of the address behind the view's name: "#/owner/models" -> ["models"]. */
export function place() {
  return location.hash.replace(/^#\/?/, "").split("/").slice(1).map(decoded);
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** entries: {id, title, mount(panel, context, ...rest of the address) -> leave}. Returns a function that ends it. */
export function tabs(root, view, label, entries, context) {
  const panel = el("section.panel", { role: "tabpanel", id: `${view}-panel`, tabindex: "0" });
  const list = el("div.tabs", { role: "tablist", "aria-label": label, onkeydown: moved });
  const made = entries.map((entry) => el("button", {
    type: "button", role: "tab", id: `${view}-tab-${entry.id}`, "aria-controls": panel.id, onclick: () => choose(entry),
  }, entry.title));
  let leave = null;

  function choose(entry, rest = [], { keep = false } = {}) {
    leave?.();
    leave = null;
    for (const [index, each] of made.entries()) {
      const chosen = entries[index] === entry;
      each.setAttribute("aria-selected", String(chosen));
      each.tabIndex = chosen ? 0 : -1;
      if (chosen) each.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    panel.setAttribute("aria-labelledby", `${view}-tab-${entry.id}`);
    if (!keep) history.replaceState(null, "", `#/${view}/${entry.id}`);
    fill(panel);
    try {
      leave = entry.mount(panel, context, ...rest);
    } catch (error) {
      console.error(error);
      fill(panel, problem(`this part of the page failed: ${error.message}`, () => choose(entry, rest)));
    }
  }

  function moved(event) {
    const now = made.indexOf(document.activeElement);
    const last = made.length - 1;
    const next = { ArrowRight: now === last ? 0 : now + 1, ArrowLeft: now <= 0 ? last : now - 1, Home: 0, End: last }[event.key];
    if (now < 0 || next === undefined) return;
    event.preventDefault();
    made[next].focus();
    choose(entries[next]);
  }

  fill(list, made);
  root.append(list, panel);
  const [wanted, ...rest] = place();
  const found = entries.find((entry) => entry.id === wanted);
  choose(found || entries[0], found ? rest : [], { keep: true });
  return () => leave?.();
}
