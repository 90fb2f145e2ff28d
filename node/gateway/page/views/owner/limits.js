// What is allowed: the limits in force, and every setting of realms.yml, checked by the node before it is written.
// Rule: the node's validator decides; its words stand at the field.

import { button, el, fill, problem, select, spinner } from "../../dom.js";
import { bytes, count, tidy } from "../../format.js";
import { action, facts, live, redraw } from "../../pieces.js";

export const id = "limits";
export const title = "Limits";

const GROUPS = {
  gateway: "Who may ask, and how much (gateway)", free: "What strangers get for nothing (free)", spend: "What this node pays (spend)", guard: "When the owner needs the machine (guard)",
  hardware: "Cards and memory (hardware)", realms: "What is served (realms)", blocked_peers: "Who is blocked (blocked_peers)", backup: "Realms that stand in (backup)", node: "This node on the network (node)", workers: "Servers beside the node (workers)", ledger: "The copy of the ledger (ledger)", log: "Logs (log)",
};

export function mount(panel, { operator }) {
  const limits = el("div");
  const settings = el("div.stack");
  panel.append(el("section.card.stack", { "aria-label": "Limits in force" }, el("h2", {}, "In force now"), limits), el("section.stack", { "aria-label": "Settings" }, el("h2", {}, "Settings"), settings));
  const asking = live(limits, () => operator.call("limits.show"), (found, place) => redraw(place, listed(found.limits)), { seconds: 15 });
  let left = false;
  ask();

  async function ask() {
    fill(settings, spinner("Reading the settings"));
    try {
      const found = await operator.call("config.show");
      if (!left) fill(settings, ...shown(found, operator, asking));
    } catch (error) {
      if (!left) fill(settings, problem(error, ask));
    }
  }

  return () => {
    left = true;
    asking.stop();
  };
}

/** Limits as the node tells them: figures, and groups of figures. */
function listed(limits) {
  const plain = Object.entries(limits).filter(([, value]) => !isGroup(value));
  const groups = Object.entries(limits).filter(([, value]) => isGroup(value));
  return [
    plain.length > 0 && facts(plain.map(([name, value]) => [words(name), told(value, name)])),
    groups.length > 0 && el("div.cards", {}, groups.map(([name, value]) => el("section", {}, el("h3", {}, words(name)), listed(value)))),
  ];
}

const isGroup = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function words(name) {
  const text = tidy(name, 60).replaceAll("_", " ");
  return text[0].toUpperCase() + text.slice(1);
}

function told(value, name) {
  if (Array.isArray(value) && value.some(isGroup)) return count(value.length, "key");
  if (typeof value === "number" && value && name.endsWith("_bytes")) return bytes(value);
  if (value === null || value === 0) return el("span.soft", {}, "no limit");
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return value.toLocaleString("en");
  return Array.isArray(value) ? value.map((each) => tidy(each, 80)).join(", ") || el("span.soft", {}, "none") : tidy(value, 200);
}

// --- settings -------------------------------------------------------------------------------------------

function shown(found, operator, asking) {
  const search = el("input", { type: "search", placeholder: "search the settings", "aria-label": "Search the settings", oninput: () => filtered(groups, search.value.toLowerCase()) });
  const names = [...new Set(found.settings.map((setting) => section(setting.key)))].sort((one, other) => rank(one) - rank(other));
  const groups = names.map((name) => group(name, found.settings.filter((setting) => section(setting.key) === name), operator, asking));
  return [found.problem && problem(found.problem), el("p.soft", {}, "Kept in ", el("code", {}, tidy(found.path, 300)), "; the node checks what you write before it is kept."), search, groups];
}

const section = (key) => key.split(".")[0];
const rank = (name) => (name in GROUPS ? Object.keys(GROUPS).indexOf(name) : 99);

function group(name, settings, operator, asking) {
  return el("details.card.settings", { open: name === "gateway", "data-group": name }, el("summary", {}, el("h3", {}, GROUPS[name] || words(name))),
    settings.map((setting) => row(setting, operator, asking)));
}

function filtered(groups, text) {
  for (const each of groups) {
    let any = false;
    for (const setting of each.querySelectorAll(".setting")) {
      setting.hidden = !setting.dataset.text.includes(text);
      any ||= !setting.hidden;
    }
    each.hidden = !any;
    if (text) each.open = any;
  }
}

function row(setting, operator, asking) {
  if (setting.changed_by) return elsewhere(setting);
  const input = inputOf(setting);
  input.id = `set-${setting.key}`;
  const said = el("div", { id: `set-${setting.key}-said`, "aria-live": "polite" });
  const hint = el("p.hint", { id: `set-${setting.key}-hint` }, tidy(setting.description, 300), ` Default: ${asText(setting.default)}.`);
  input.setAttribute("aria-describedby", `${hint.id} ${said.id}`);
  let kept = written(setting);
  const save = action("Save", async () => {
    input.removeAttribute("aria-invalid");
    fill(said);
    try {
      const done = await operator.call("config.set", { key: setting.key, value: read(setting, input) });
      kept = done.value;
      put(setting, input, kept);
      fill(said, done.note && el("p.busy-text.long", {}, tidy(done.note, 400)), done.restart ? el("p.busy-text", {}, "Saved; takes effect after a restart of the node.") : el("p.good-text", {}, "Saved; in force now."));
      asking.refresh();
    } catch (error) {
      input.setAttribute("aria-invalid", "true");
      fill(said, el("p.bad-text.long", { role: "alert" }, error.message));
      input.focus();
    }
    changed();
  }, { kind: "small primary", label: `Save ${setting.key}` });
  const back = button("Undo", () => { put(setting, input, kept); input.removeAttribute("aria-invalid"); fill(said); changed(); input.focus(); }, { kind: "small", label: `Undo ${setting.key}` });
  const buttons = el("div.row", { hidden: true }, save, back);
  const changed = () => { buttons.hidden = same(setting, input, kept); };
  input.addEventListener("input", changed);
  return el("form.setting", { dataset: { text: `${setting.key} ${setting.description}`.toLowerCase() }, onsubmit: (event) => { event.preventDefault(); if (!buttons.hidden) save.click(); } },
    el("div.row.between", {}, el("label", { for: input.id }, setting.key), !setting.live && el("span.chip", {}, "after a restart")), input, hint,
    setting.after_restart !== undefined && el("p.small-text.busy-text", {}, `In force until a restart: ${asText(setting.value)}.`),
    setting.set_by && el("p.small-text.busy-text.long", {}, `Set by ${tidy(setting.set_by, 120)}, which goes over realms.yml.`), buttons, said);
}

/** What the file says: that is edited, also while another value is in force. */
const written = (setting) => (setting.after_restart !== undefined ? setting.after_restart : setting.value);

/** A setting that has a place of its own. */
function elsewhere(setting) {
  return el("div.setting", { dataset: { text: `${setting.key} ${setting.description}`.toLowerCase() } }, el("strong.mono", {}, setting.key),
    el("p.hint", {}, tidy(setting.description, 300), ` ${Array.isArray(setting.value) ? count(setting.value.length, "entry", "entries") : ""}`), el("p.small-text.soft.long", {}, tidy(setting.changed_by, 300)));
}

function inputOf(setting) {
  const input = setting.kind === "bool" ? el("input", { type: "checkbox" })
    : setting.choices?.length ? select(setting.choices.map((each) => [String(each), String(each)]), "")
    : setting.kind === "map" ? el("textarea", { rows: "3", spellcheck: "false", placeholder: '{"$CHAT": ["$CODE"]}' })
    : setting.kind === "int" ? el("input", { inputmode: "numeric", autocomplete: "off" })
    : setting.kind === "list" ? el("textarea", { rows: "2", spellcheck: "false", placeholder: "one a line" })
    : el("input", { autocomplete: "off", spellcheck: "false" });
  put(setting, input, written(setting));
  return input;
}

function put(setting, input, value) {
  if (setting.kind === "bool") input.checked = Boolean(value);
  else if (setting.kind === "map") input.value = JSON.stringify(value || {});
  else input.value = setting.kind === "list" ? (value || []).join("\n") : String(value ?? "");
  if (setting.kind === "list") input.rows = Math.min(6, Math.max(2, (value || []).length));
}

/** What is sent: a whole number as one, anything else that was written as it was written, so that the node can say what is wrong. */
function read(setting, input) {
  if (setting.kind === "bool") return input.checked;
  if (setting.kind === "list") return input.value.split("\n").map((line) => line.trim()).filter(Boolean);
  const text = input.value.trim();
  if (setting.kind === "map") return parsed(text);
  return setting.kind === "int" && /^-?\d+$/.test(text) ? Number(text) : text;
}

/** JSON as a value, or, while it is none, as the text that it is: the node then says what it wants. */
function parsed(text) {
  try {
    return JSON.parse(text || "{}");
  } catch {
    return text;
  }
}

/** True while the field says what is kept. */
function same(setting, input, kept) {
  const usual = { list: kept || [], text: String(kept ?? ""), map: kept || {} };
  return JSON.stringify(read(setting, input)) === JSON.stringify(setting.kind in usual ? usual[setting.kind] : kept);
}

function asText(value) {
  if (Array.isArray(value)) return value.length ? value.map((each) => tidy(each, 60)).join(", ") : "none";
  if (value !== null && typeof value === "object") return JSON.stringify(value);
  return value === "" || value === null ? "empty" : typeof value === "boolean" ? (value ? "yes" : "no") : tidy(value, 80);
}
