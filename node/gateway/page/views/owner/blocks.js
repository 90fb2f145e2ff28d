// Peers that are refused.

import { el, field, fill, toast } from "../../dom.js";
import { moment, tidy } from "../../format.js";
import { action, form, identity, live } from "../../pieces.js";
import { Table } from "../../table.js";

export const id = "blocks";
export const title = "Block list";

export function mount(panel, { operator }) {
  const table = new Table([
    { id: "node", title: "Peer", value: (row) => row.node, cell: (row) => identity(row.node) },
    { id: "reason", title: "Why", value: (row) => row.reason || "", cell: (row) => el("span.long", { dir: "auto" }, tidy(row.reason, 300) || "–") },
    { id: "since", title: "Since", value: (row) => row.since || 0, cell: (row) => moment(row.since) || "–" },
    { id: "do", title: "", cell: (row) => action("Unblock", () => unblock(row), { kind: "small", label: `Unblock ${row.node}` }) },
  ], { key: (row) => row.node, caption: "Blocked peers", none: "Nobody is blocked." });
  const peer = el("input", { required: true, autocomplete: "off", spellcheck: "false", placeholder: "12D3KooW…" });
  const reason = el("input", { maxlength: "200", autocomplete: "off" });
  const place = el("div");
  panel.append(
    el("section.stack", { "aria-label": "Blocked peers" }, el("h2", {}, "Blocked peers"), el("p.soft", {}, "They get no connection and no answer, and their offers are ignored."), place),
    el("section.card.stack", { "aria-label": "Block a peer" }, el("h2", {}, "Block a peer"), form(block, "Block", [el("div.fields", {}, field("Peer id", peer, "As the map of the network and the logs show it; of a peer that is known here, the end will do."), field("Why", reason, "For you; nobody else sees it."))], { kind: "danger" })));
  const asking = live(place, () => operator.call("peers.blocked"), ({ blocked }, inside) => {
    if (!inside.contains(table.element)) fill(inside, table.element);
    table.set(blocked);
  });

  async function block() {
    const why = reason.value.trim();
    const done = await operator.call("peers.block", { peer: peer.value.trim(), ...(why && { reason: why }) });
    toast(["Blocked", tidy(done.note, 300)].filter(Boolean).join("; "), "good");
    peer.value = reason.value = "";
    asking.refresh();
  }

  async function unblock(row) {
    await operator.call("peers.unblock", { peer: row.node });
    toast("Not blocked any more", "good");
    asking.refresh();
  }

  return () => asking.stop();
}
