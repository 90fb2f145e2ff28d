// Servers beside the node whose models it offers; and the lines that add one.

import { el, field, fill, select } from "../../dom.js";
import { tidy } from "../../format.js";
import { live, snippet } from "../../pieces.js";
import { Table } from "../../table.js";

export const id = "workers";
export const title = "Workers";

// What each kind of server needs in realms.yml; see docs/workers.md.
const KINDS = {
  ollama: { title: "Ollama", model: "llama3.2:3b", engine: "openai", url: "http://127.0.0.1:11434/v1", slots: 2, realm: "$CHAT", hint: "As many slots as OLLAMA_NUM_PARALLEL." },
  vllm: { title: "vLLM", model: "Qwen/Qwen2.5-7B-Instruct", engine: "openai", url: "http://127.0.0.1:8000/v1", slots: 8, realm: "$CHAT", hint: "Its --api-key goes into a variable that api_key_env names." },
  llama: { title: "llama.cpp", model: "smollm2-135m", engine: "openai", url: "http://127.0.0.1:8080/v1", slots: 2, realm: "$CHAT", hint: "The name that --alias gives; as many slots as --parallel." },
  lmstudio: { title: "LM Studio", model: "qwen2.5-7b-instruct", engine: "openai", url: "http://127.0.0.1:1234/v1", slots: 1, realm: "$CHAT", hint: "Start its server first." },
  a1111: { title: "Stable Diffusion WebUI", model: "v1-5-pruned-emaonly", engine: "a1111", url: "http://127.0.0.1:7860", slots: 1, realm: "$IMAGINE", hint: "Started with --api; the model is a checkpoint’s name." },
  whisper: { title: "A speech server", model: "whisper-1", engine: "openai", url: "http://127.0.0.1:8085/v1", slots: 1, realm: "$SPEECH", options: "{serves: transcribe}", hint: "With options: {serves: speak} it speaks instead." },
  mtor: { title: "Another MTOR node", model: "smollm2-135m", engine: "openai", url: "http://192.168.1.5:9000/v1", slots: 2, realm: "$CHAT", key: "OTHER_NODE_KEY", hint: "Do not let two nodes name each other." },
  predict: { title: "A RENTAHAL worker", model: "llava", engine: "predict", url: "http://192.168.1.20:8001", slots: 1, realm: "$VISION", options: "{serves: vision}", hint: "" },
};

export function mount(panel, { operator }) {
  const table = new Table([
    { id: "model", title: "Model", value: (row) => row.model, cell: (row) => el("div", {}, el("strong.long", {}, tidy(row.model)), el("div.small-text.soft", {}, `${tidy(row.realm, 40)}, ${tidy(row.engine, 20)}`)) },
    { id: "url", title: "Server", value: (row) => row.url, cell: (row) => el("code", {}, tidy(row.url, 200)) },
    { id: "ready", title: "State", value: (row) => (row.ready ? 1 : 0), cell: (row) => el("span.chip", { class: row.ready ? "good" : "bad" }, row.ready ? "ready" : "not used") },
    { id: "busy", title: "Slots", value: (row) => row.busy / (row.slots || 1), cell: (row) => `${row.busy} of ${row.slots} busy${row.queued ? `, ${row.queued} waiting` : ""}` },
    { id: "answered", title: "Answered", number: true, value: (row) => row.answered, cell: (row) => row.answered.toLocaleString("en") },
    { id: "failed", title: "Failed", number: true, value: (row) => row.failed, cell: (row) => el("span", { class: row.failed ? "bad-text" : "" }, row.failed.toLocaleString("en")) },
    { id: "error", title: "Last error", cell: (row) => el("span.small-text.long", {}, tidy(row.last_error, 300) || "–") },
  ], { key: (row) => `${row.realm} ${row.model} ${row.url}`, caption: "Servers beside the node", none: "No server beside the node is used. Below are the lines that add one." });
  const place = el("div");
  panel.append(el("section.stack", { "aria-label": "Servers" }, el("h2", {}, "Servers beside this node"), el("p.soft", {}, "Programs that you run already; the node offers their models to others and asks them over HTTP."), place), adding(operator));
  const asking = live(place, () => operator.call("workers.list"), ({ workers }, inside) => {
    if (!inside.contains(table.element)) fill(inside, table.element);
    table.set(workers);
  });
  return () => asking.stop();
}

function adding(operator) {
  const model = el("input", { autocomplete: "off", spellcheck: "false" });
  const url = el("input", { type: "url", autocomplete: "off", spellcheck: "false" });
  const slots = el("input", { type: "number", min: "1", max: "64" });
  const lines = el("div.stack", { "aria-live": "polite" });
  const hint = el("p.hint");
  const path = el("code", {}, "realms.yml");
  let kind = KINDS.ollama;
  const choose = (name) => {
    kind = KINDS[name];
    [model.value, url.value, slots.value] = [kind.model, kind.url, kind.slots];
    hint.textContent = kind.hint;
    show();
  };
  const show = () => fill(lines, snippet(yaml(kind, model.value, url.value, slots.valueAsNumber || 1), "lines for realms.yml"), outside(url.value) && el("div.stack", {}, el("p", {}, "That server is on another machine: say where servers may be, too."), snippet(`workers:\n  allowed: [127.0.0.1, ${hostOf(url.value)}]\n`, "lines that allow the address")));
  for (const input of [model, url, slots]) input.addEventListener("input", show);
  operator.call("config.show").then((found) => { path.textContent = found.path; }).catch(() => {}); // the file's usual name is shown instead
  choose("ollama");
  return el("section.card.stack", { "aria-label": "Add a server" }, el("h2", {}, "Add a server"),
    el("div.fields", {}, field("Kind", select(Object.entries(KINDS).map(([name, each]) => [name, each.title]), "ollama", choose)), field("Model", model, "As the server calls it."), field("Address", url), field("Slots", slots, "As many answers as it gives at once.")), hint,
    el("p", {}, "Put this into ", path, ", check it with ", el("code", {}, "mtor config check"), ", and restart the node:"), lines);
}

function yaml(kind, model, url, slots) {
  const rows = [`  - realm: ${kind.realm}`, `    model: ${quoted(model)}`, `    engine: ${kind.engine}`, `    url: ${quoted(url)}`, `    slots: ${slots}`];
  if (kind.options) rows.push(`    options: ${kind.options}`);
  if (kind.key) rows.push(`    api_key_env: ${kind.key}`);
  return `realms:\n${rows.join("\n")}\n`;
}

/** A text that YAML reads as this text. */
function quoted(text) {
  return /^[A-Za-z0-9][\w./-]*$/.test(text) || /^https?:\/\/[\w.:/-]+$/.test(text) ? text : JSON.stringify(text);
}

function hostOf(url) {
  try {
    return new URL(url).hostname;
  } catch {
    return "";
  }
}

function outside(url) {
  const host = hostOf(url);
  return host !== "" && !["127.0.0.1", "localhost", "[::1]"].includes(host);
}
