// The list of conversations: search, rename, delete, take out.
// Rule: the list shows summaries; whole conversations are read when one is opened, searched or taken out.

import { asMarkdown } from "./conversations.js";
import { button, confirmed, dialog, el, field, fill, toast } from "./dom.js";
import { when } from "./format.js";

const SEARCH_MS = 180;

/** `opened()` after one was chosen. */
export function sidebar(conversations, { opened }) {
  const search = el("input", { type: "search", placeholder: "Search", "aria-label": "Search conversations", oninput: () => searchSoon() });
  const list = el("ul.conversation-list");
  const note = el("p.hint.kept-note");
  const element = el("div.sidebar", {},
    el("div.row", {}, button("New chat", () => {
      conversations.startNew();
      opened();
    }, { kind: "primary grow" })),
    search, list, note,
    el("div.row.sidebar-foot", {}, button("Export all", exportAll, { kind: "small" }), button("Delete all", deleteAll, { kind: "small" })));
  let wanted = null; // ids that the search found
  let timer = null;

  function searchSoon() {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const words = search.value.trim();
      wanted = words ? await conversations.history.search(words) : null;
      show();
    }, SEARCH_MS);
  }

  function show() {
    const rows = conversations.list.value.filter((each) => !wanted || wanted.has(each.id));
    const open = conversations.current.value.id;
    fill(list, rows.map((each) => el("li", { class: each.id === open ? "open" : "" },
      el("button.conversation", { type: "button", "aria-current": each.id === open ? "true" : null, onclick: async () => {
        await conversations.open(each.id);
        opened();
      } }, el("span.title", {}, each.title || "Untitled"), el("span.hint", {}, each.running ? "being answered" : when(each.updated))),
      button("⋯", () => about(each), { kind: "bare small", label: `Rename, export or delete: ${each.title}` }))));
    if (!rows.length) fill(list, el("li.soft.small-text.none", {}, wanted ? "No conversation has these words." : "Your conversations will be listed here."));
    note.textContent = conversations.trouble.value || (conversations.lasting ? "Kept in this browser alone." : "This browser keeps nothing: they go when the page is closed.");
    note.classList.toggle("bad-text", Boolean(conversations.trouble.value));
  }

  function about(row) {
    const title = el("input", { value: row.title, maxlength: "200" });
    const close = dialog("Conversation", el("form.stack", { onsubmit: async (event) => {
      event.preventDefault();
      await conversations.rename(row.id, title.value);
      close();
    } }, field("Title", title),
    el("div.row.between", {},
      el("div.row", {}, button("Markdown", () => exportOne(row.id, "md"), { kind: "small", label: "Save as Markdown" }), button("JSON", () => exportOne(row.id, "json"), { kind: "small", label: "Save as JSON" }),
        button("Delete", async () => {
          if (!(await confirmed(`Delete “${row.title}”? It is nowhere else.`, "Delete", { danger: true }))) return;
          close();
          await conversations.remove(row.id);
        }, { kind: "small" })),
      el("button.button.primary", {}, "Rename"))));
  }

  async function exportOne(id, kind) {
    const current = conversations.current.value;
    const conversation = current.id === id ? current : await conversations.history.get(id);
    if (kind === "md") download(`${fileName(conversation.title)}.md`, asMarkdown(conversation), "text/markdown");
    else download(`${fileName(conversation.title)}.json`, JSON.stringify(conversation, null, 2), "application/json");
  }

  async function exportAll() {
    const all = await conversations.history.all();
    if (!all.length) return toast("There is nothing to export yet.");
    return download("mtor-conversations.json", JSON.stringify(all, null, 2), "application/json");
  }

  async function deleteAll() {
    const count = conversations.list.value.length;
    const question = `Delete all ${count} conversations of this browser? They are nowhere else.`;
    if (count && (await confirmed(question, "Delete all", { danger: true }))) await conversations.clear();
  }

  const leaves = [conversations.list.watch(show), conversations.current.watch(show), conversations.trouble.watch(show)];
  return { element, leave: () => leaves.forEach((each) => each()) };
}

function fileName(title) {
  return title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60).toLowerCase() || "conversation";
}

function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
