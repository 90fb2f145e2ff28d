// One entry in plain words: a receipt, a channel, a grant, an epoch.
// Rule: first the node's own sentence, then who, what, when, how much and whether it is final; all else folded below.

import { copyButton } from "../../clipboard.js";
import { el, fill, problem, spinner } from "../../dom.js";
import { count, exact, price, tidy, when } from "../../format.js";
import { facts, identity } from "../../pieces.js";
import { entryLink, signed } from "./words.js";

const TITLES = {
  receipt: "Receipt of a query", channel: "A payment channel", grant: "A grant", move: "A move between accounts", attach: "An account was joined",
  recovery: "A recovery key was named", rotate: "A key was changed", checkpoint: "An epoch began", void: "A void entry", forgotten: "An entry whose records were pruned",
};
const ENDED = { stop: "whole", length: "at its longest length", tool_calls: "with a call of a tool" };
const SHOWN = { receipt, channel, grant: moved, move: moved, checkpoint };

export function mount(panel, context, id) {
  const place = el("div.stack");
  panel.append(el("p", {}, el("a", { href: "#/ledger/history" }, "← History")), place);
  ask();
  async function ask() {
    fill(place, spinner("Looking it up"));
    try {
      fill(place, page(await context.operator.call("ledger.show", { id })));
    } catch (error) {
      fill(place, problem(error, ask));
    }
  }
  return () => {};
}

function page(found) {
  return el("article.card.stack.entry", {},
    el("h2", {}, TITLES[found.kind] || tidy(found.kind)),
    el("p.sentence", { dir: "auto" }, tidy(found.sentence, 2_000)),
    facts((SHOWN[found.kind] || other)(found)),
    "adds_up" in found && (found.adds_up ? el("p.verdict.good-text", {}, "✓ It adds up.") : el("p.verdict.bad-text", {}, "✗ It does not add up: the counts times the prices are not what was signed.")),
    found.receipts?.length ? queries(found) : null,
    el("details", {}, el("summary", {}, "Everything that is known, for programs"), el("div.row.end", {}, copyButton(() => JSON.stringify(found, null, 2), { kind: "small", label: "Copy the JSON" })), el("pre", { tabindex: "0" }, el("code", {}, JSON.stringify(found, null, 2)))));
}

function receipt(found) {
  const asked = found.role === "requester";
  return [
    [asked ? "You asked" : "You answered", el("bdi", {}, `${tidy(found.model)} in ${tidy(found.realm, 40)}`)],
    [asked ? "Answered by" : "Asked by", identity(found.counterparty)],
    ["When", when(found.time_ms)],
    ["How it ended", ENDED[found.outcome] || tidy(found.outcome, 40)],
    ["Counted", `${found.units_in.toLocaleString("en")} in, ${found.units_out.toLocaleString("en")} out`],
    ["Price", found.channel ? `${price(found.price_in)} per 1,000 in, ${price(found.price_out)} per 1,000 out` : "nothing: it was free"],
    [asked ? "You paid" : "You earned", exact(Math.abs(found.amount))],
    ["Final", finality(found)],
    found.voucher && ["Proof", found.voucher.signed === false ? el("span.bad-text", {}, "the voucher is not signed by the payer") : `a voucher of ${exact(found.voucher.cumulative)} in all${found.voucher.signed ? ", signed by the payer" : ""}`],
    found.channel && ["Channel", entryLink(found.channel)],
    ["Query", identity(found.query)],
    ["Receipt", identity(found.id)],
  ];
}

function finality(found) {
  if (!found.channel) return "yes: nothing was owed";
  return { closed: "yes: the channel is settled, and witnesses signed it", open: "not yet: the channel is still open; what is promised is signed", refunded: "the hold expired and came back" }[found.channel_status] || "its channel is not in this copy of the ledger";
}

function channel(found) {
  return [
    ["Payer", found.role === "payer" ? "you" : identity(found.payer)],
    ["Worker", found.role === "payee" ? "you" : identity(found.payee)],
    ["Opened", found.opened_ms && when(found.opened_ms)],
    ["Settled", found.settled_ms && when(found.settled_ms)],
    ["Locked", exact(found.hold)],
    [found.status === "closed" ? "Paid" : "Promised so far", exact(found.status === "closed" ? found.paid : found.promised)],
    ["Prompts", `${found.units_in.toLocaleString("en")} × ${price(found.price_in)} per 1,000 = ${exact(found.cost_in)}`],
    ["Answers", `${found.units_out.toLocaleString("en")} × ${price(found.price_out)} per 1,000 = ${exact(found.cost_out)}`],
    ["Final", { closed: "yes: settled", open: `not yet; it ends by ${when(found.expiry_ms)} at the latest`, refunded: "yes: the hold expired and came back whole" }[found.status]],
    found.order && ["Witnesses", count(found.order.witnesses.length, "signature")],
    ["Id", identity(found.id)],
  ];
}

function moved(found) {
  return [
    ["Amount", exact(found.amount)], ["From", identity(found.from)], ["To", identity(found.to)], ["When", found.time_ms && when(found.time_ms)],
    found.issued_in_all !== undefined && ["Issued in all", `${exact(found.issued_in_all)} of at most ${exact(found.issuer_cap)}`],
    found.order && ["Witnesses", count(found.order.witnesses.length, "signature")], ["Id", identity(found.id)],
  ];
}

function checkpoint(found) {
  return [["Epoch", found.epoch], ["Began", when(found.time_ms)], ["Orders before it", found.orders.toLocaleString("en")], ["Witnesses", `${found.commits} of ${found.witnesses} committed`], ["Id", identity(found.id)]];
}

function other(found) {
  const named = ["account", "owner", "key", "counterparty"].map((name) => typeof found[name] === "string" && found[name] && [name[0].toUpperCase() + name.slice(1), identity(found[name])]);
  return [...named, typeof found.amount === "number" && ["Amount", exact(found.amount)], ["When", found.time_ms && when(found.time_ms)], ["Id", identity(found.id)]];
}

function queries(found) {
  return el("section.stack", {}, el("h3", {}, "Queries of this channel"),
    el("ul.entries", {}, found.receipts.map((each) => el("li", {}, el("div.grow", {}, el("p.said", {}, `${tidy(each.model)}: ${each.units_in.toLocaleString("en")} in, ${each.units_out.toLocaleString("en")} out`), el("p.small-text.soft", {}, when(each.time_ms), " · ", entryLink(each.id))), signed(each.amount)))),
    found.receipts_left_out > 0 && el("p.hint", {}, `and ${count(found.receipts_left_out, "query", "queries")} more`));
}
