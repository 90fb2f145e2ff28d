// What the ledger's words mean to people.
// Rule: pure; the node's numbers are repeated and never changed.

import { el } from "../../dom.js";
import { exact, shortPeer } from "../../format.js";

/** What each part of a balance is. */
export const PARTS = {
  opening: "there when the kept ledger begins",
  granted: "granted by the issuer",
  issued: "granted to others, as the issuer",
  moved: "moved between your accounts",
  earned: "earned by answering",
  spent: "paid to workers",
  held: "locked for workers now",
  returned: "came back whole",
  promised: "promised to you, not settled yet",
};

/** Kinds of entries in the history: [icon, word]. */
export const KINDS = {
  query: ["💬", "Query"],
  grant: ["🎁", "Grant"],
  hold: ["🔒", "Hold"],
  close: ["✓", "Settlement"],
  refund: ["↩", "Refund"],
  move: ["⇄", "Move"],
  attach: ["🔗", "Account"],
  recovery: ["🗝", "Recovery key"],
  rotate: ["🔁", "Key change"],
  checkpoint: ["🏁", "Epoch"],
};

/** "+0.0123 cr" in its colour. */
export function signed(micro) {
  return el("span.amount", { class: micro > 0 ? "good-text" : micro < 0 ? "" : "soft" }, micro > 0 ? "+" : "", exact(micro));
}

/** A link to an entry's page. */
export function entryLink(id, text = `${id.slice(0, 12)}…`) {
  return el("a.mono", { href: `#/ledger/history/${id}`, title: id }, text);
}

/** An account as a short code with its whole id as the title. */
export function account(id) {
  return el("code.short", { title: id }, shortPeer(id));
}

/** The day of Unix milliseconds, as a heading. */
export function dayOf(time) {
  return time ? new Date(time).toLocaleDateString([], { weekday: "long", day: "numeric", month: "long", year: "numeric" }) : "No day known";
}
