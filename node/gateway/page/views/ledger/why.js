// Why is the balance this? A sum by its parts, and by counterparty or by day.

import { button, el, svg } from "../../dom.js";
import { count, exact, tidy, when } from "../../format.js";
import { live, redraw } from "../../pieces.js";
import { PARTS, account, signed } from "./words.js";

export const id = "why";
export const title = "Why";

const BY = { counterparty: "by counterparty", day: "by day" };
const GROUPS = 30;

export function mount(panel, context, whose = "") {
  let by = "counterparty";
  const choices = Object.entries(BY).map(([key, text]) => button(text, () => choose(key), { kind: "small", "aria-pressed": String(key === by), "data-by": key }));
  const place = el("div");
  panel.append(el("div.row.between", {}, el("h2", {}, whose ? "Why has this account what it has?" : "Why do you have what you have?"), el("div.row", { role: "group", "aria-label": "Summed up" }, choices)), place);
  let asking = null;

  function choose(key) {
    by = key;
    for (const each of choices) each.setAttribute("aria-pressed", String(each.dataset.by === by));
    asking?.stop();
    asking = live(place, () => context.operator.call("ledger.why", { account: whose, by, limit: GROUPS }), (why, inside) => redraw(inside, drawn(why)), { seconds: 15, waiting: "Adding up" });
  }

  choose(by);
  return () => asking.stop();
}

function drawn(why) {
  const opening = why.opening.epoch ? [[PARTS.opening, why.opening.balance + why.opening.held, `since epoch ${why.opening.epoch}`]] : [];
  const parts = why.parts.map((part) => [PARTS[part.part] || part.part, part.amount, more(part, why)]);
  const rows = [...opening, ...parts];
  return el("div.why", {},
    el("div.card.stack", {},
      rows.length ? el("table.sum", {}, el("caption.unseen", {}, "The balance as a sum"), el("tbody", {}, rows.map(([name, amount, said]) => el("tr", {}, el("th", { scope: "row" }, el("div", {}, name), el("div.small-text.soft", {}, said)), el("td.number", {}, signed(amount))))),
        el("tfoot", {}, el("tr", {}, el("th", { scope: "row" }, "In all"), el("td.number", {}, el("strong.amount", {}, exact(why.sum)))))) : el("p.soft", {}, "No order of this ledger names this account: nobody granted it credits, and it neither asked nor answered."),
      why.adds_up
        ? el("p.verdict.good-text", {}, "✓ It adds up: the balance is ", exact(why.balance), ", and each part of it has an order with signatures.")
        : el("div.problem", { role: "alert" }, el("p", {}, "It does not add up."), why.missing.map((each) => el("p", {}, each)), el("p", {}, "“Check the ledger” under Ledger says more."))),
    el("div.card.stack", {}, el("h3", {}, why.by === "day" ? "Days" : "Counterparties"), why.groups.length ? chart(why) : el("p.soft", {}, "Nothing yet."),
      why.groups_left_out > 0 && el("p.hint", {}, `and ${count(why.groups_left_out, why.by === "day" ? "earlier day" : "smaller counterparty", why.by === "day" ? "earlier days" : "smaller counterparties")}`)));
}

function more(part, why) {
  const lines = count(part.lines, "line");
  if (part.part === "held" && why.owed) return `${lines}; ${exact(why.owed)} of it promised`;
  if (part.part === "promised" && why.pending) return `${lines}; ${exact(why.pending)} by vouchers`;
  if (part.part === "returned" && part.locked) return `${lines}; ${exact(part.locked)} had been locked`;
  return lines;
}

/** A row for each group, with a bar from the middle: to the left what went, to the right what came. */
function chart(why) {
  const largest = Math.max(1, ...why.groups.flatMap((group) => [came(group), went(group)])); // for the bars' lengths alone
  return el("table.chart", {}, el("caption.unseen", {}, `Amounts ${BY[why.by]}`),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, why.by === "day" ? "Day" : "Account"), el("th.wide", { scope: "col" }, "Went and came"), el("th.number", { scope: "col" }, "In all"), el("th.number.not-on-phones", { scope: "col" }, "Queries"))),
    el("tbody", {}, why.groups.map((group) => el("tr", { title: group.last_ms ? `last ${when(group.last_ms)}` : null },
      el("td", {}, why.by === "day" ? el("span", {}, tidy(group.day)) : account(group.counterparty)),
      el("td.wide", {}, bars(went(group), came(group), largest)),
      el("td.number", {}, signed(group.amount)),
      el("td.number.not-on-phones", {}, group.queries.toLocaleString("en"))))));
}

const PARTS_OF_A_GROUP = ["granted", "issued", "moved", "earned", "spent", "held", "returned", "promised"];
const came = (group) => PARTS_OF_A_GROUP.reduce((sum, part) => sum + Math.max(0, group[part] || 0), 0);
const went = (group) => PARTS_OF_A_GROUP.reduce((sum, part) => sum + Math.max(0, -(group[part] || 0)), 0);

function bars(less, plus, largest) {
  const wide = (amount) => (amount ? Math.max(1, (98 * amount) / largest) : 0);
  return svg("svg", { class: "bars", viewBox: "0 0 200 14", preserveAspectRatio: "none", role: "img", "aria-label": `went ${exact(less)}, came ${exact(plus)}` },
    svg("rect", { class: "went", x: 100 - wide(less), y: 2, width: wide(less), height: 10 }),
    svg("rect", { class: "came", x: 100, y: 2, width: wide(plus), height: 10 }),
    svg("line", { class: "zero", x1: 100, y1: 0, x2: 100, y2: 14 }));
}
