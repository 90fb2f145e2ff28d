// Credits: what this node has, where it came from, and each entry down to its receipt.
// Rule: amounts come from the ledger and are shown to the last µcredit; nothing is added up by this page but what the
// node says it adds up to.

import { el, fill } from "../dom.js";
import { exact } from "../format.js";
import { live, ownersOnly, redraw } from "../pieces.js";
import { tabs } from "../tabs.js";
import * as accounts from "./ledger/accounts.js";
import * as book from "./ledger/book.js";
import * as history from "./ledger/history.js";
import * as why from "./ledger/why.js";

const id = "ledger";

const TABS = [why, history, accounts, book];

export function mount(root, context) {
  return ownersOnly(root, context, "Credits are shown to the owner", (place) => {
    const balance = el("div");
    const body = el("div.stack");
    fill(place, el("h1.unseen", {}, "Credits"), balance, body);
    const asking = live(balance, () => context.operator.call("ledger.balance"), (found, inside) => redraw(inside, figures(found)));
    const leave = tabs(body, id, "Credits", TABS, context);
    return () => {
      asking.stop();
      leave();
    };
  });
}

function figures(balance) {
  return el("div.figures", {},
    figure("To spend", balance.balance, "main"),
    figure("Held", balance.held, "", balance.owed ? `${exact(balance.owed)} of it is promised to workers` : "locked while workers answer; the rest comes back"),
    figure("Earned", balance.earned, "good-text", balance.pending ? `and ${exact(balance.pending)} promised, not settled yet` : "by answering"),
    figure("Spent", balance.spent, "", "by asking"));
}

function figure(name, micro, kind, more = "free to use now") {
  return el("div.card.figure", {}, el("span.soft", {}, name), el("strong.amount", { class: kind }, exact(micro)), el("span.small-text.soft", {}, more));
}
