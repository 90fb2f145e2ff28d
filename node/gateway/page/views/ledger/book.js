// The ledger as a whole: the federation and its epoch, a check of everything, and a copy as a file.

import { el, fill, problem, spinner, toast } from "../../dom.js";
import { bytes, count, duration, exact, tidy, when } from "../../format.js";
import { action, bar, facts, identity, live, redraw } from "../../pieces.js";

export const id = "book";
export const title = "Ledger";

export function mount(panel, { operator }) {
  const stopping = new AbortController();
  const epoch = el("div");
  const federation = el("div");
  panel.append(el("div.cards", {},
    el("section.card.stack", {}, el("h2", {}, "Federation"), federation),
    el("section.card.stack", {}, el("h2", {}, "Epoch"), epoch),
    checking(operator, stopping.signal),
    exporting(operator, stopping.signal),
    settling(operator)));
  const lives = [
    live(federation, () => operator.call("federation.show"), (found, place) => redraw(place, constitution(found)), { seconds: 60 }),
    live(epoch, () => operator.call("ledger.epoch.status"), (found, place) => redraw(place, standing(found)), { seconds: 15, waiting: "Asking the witnesses" }),
  ];
  return () => {
    stopping.abort();
    for (const each of lives) each.stop();
  };
}

function constitution(found) {
  const part = [found.witness && "witness", found.issuer && "issuer"].filter(Boolean).join(" and ");
  return facts([
    ["Name", tidy(found.name)], ["Id", identity(found.id)], ["Founded", when(found.created_ms)],
    ["Witnesses", `${found.witnesses.length}; ${found.faults ? `${found.faults} of them may fail or lie` : "you trust it"}`],
    ["This node is", part || "a member"], ["Credits at most", exact(found.supply_cap)],
  ]);
}

function standing(found) {
  return [
    facts([["Epoch", found.epoch], ["Began", when(found.began_ms)], ["Ends", found.due ? "is due now" : `${when(found.due_ms)}, in ${duration((found.due_ms - Date.now()) / 1_000)}`], found.frozen && ["State", "being ended now"], ["Orders kept since", `epoch ${found.first_epoch}`]]),
    el("h3", {}, "Witnesses"),
    el("ul.plain", {}, found.witnesses.map((each) => el("li", {}, el("span.dot", { class: each.problem ? "bad" : "good", "aria-hidden": "true" }), el("div.grow", {}, each.own ? "this node" : identity(each.witness), el("p.small-text", { class: each.problem ? "bad-text" : "soft" }, each.problem ? tidy(each.problem, 200) : `${each.standing}, epoch ${each.epoch}`))))),
    el("p.hint", {}, `${found.quorum} of ${found.witnesses.length} have to agree.`),
  ];
}

function checking(operator, signal) {
  const signatures = el("input", { type: "checkbox", checked: true });
  const place = el("div.stack", { "aria-live": "polite" });
  const start = action("Check the ledger", async () => {
    fill(place, spinner("Reading"));
    try {
      const last = await operator.stream("ledger.verifying", { signatures: signatures.checked }, (line) => {
        if (line.total_count) fill(place, bar(line.done_count / line.total_count, "checked"), el("p.hint", {}, `${line.done_count.toLocaleString("en")} of ${count(line.total_count, "record")}`));
      }, signal);
      fill(place, verdict(last.report));
    } catch (error) {
      if (error.name !== "AbortError") fill(place, problem(error));
    }
  }, { kind: "primary" });
  return el("section.card.stack", {}, el("h2", {}, "Check"), el("p.soft", {}, "Goes through every record of this node’s copy: links, sums, places, and signatures if you want."), el("label.row", {}, signatures, "signatures, too (slower)"), el("div.row", {}, start), place);
}

function verdict(report) {
  const found = `${count(report.certificates, "order")}, ${count(report.accounts, "account")}, ${count(report.channels, "channel")}`;
  if (report.verified) return el("p.verdict.good-text", {}, `✓ Whole and true: ${found}; all balances and holds add up to ${exact(report.sum_micro)}.`);
  return el("div.problem", { role: "alert" }, el("p", {}, `Something is wrong in ${found}:`), el("ul", {}, report.problems.map((each) => el("li", {}, tidy(each, 400)))));
}

function exporting(operator, signal) {
  const place = el("div.stack", { "aria-live": "polite" });
  const start = action("Save a copy", async () => {
    const pieces = [];
    let size = 0;
    fill(place, spinner("Writing"));
    try {
      const last = await operator.stream("ledger.export", {}, (line) => {
        if (line.data) {
          const piece = decoded(line.data);
          pieces.push(piece);
          size += piece.length;
        }
        if (line.total_count) fill(place, bar(line.done_count / line.total_count, "written"), el("p.hint", {}, bytes(size)));
      }, signal);
      save(new Blob(pieces), `mtor-ledger-${last.federation.slice(0, 8)}-${new Date().toISOString().slice(0, 10)}.export`);
      fill(place, el("p", {}, el("span.good-text", {}, `✓ ${bytes(size)} written. `), el("code", {}, "mtor ledger verify FILE"), " checks it, also without a node."));
    } catch (error) {
      if (error.name !== "AbortError") fill(place, problem(error));
    }
  });
  return el("section.card.stack", {}, el("h2", {}, "Export"), el("p.soft", {}, "The whole ledger as one file, which somebody without a node can check."), el("div.row", {}, start), place);
}

function settling(operator) {
  const start = action("Settle now", async () => {
    const done = await operator.call("ledger.settle");
    toast(`${count(done.closed, "channel")} settled${done.undelivered ? `; ${count(done.undelivered, "voucher")} could not be delivered yet` : ""}`, "good");
  });
  return el("section.card.stack", {}, el("h2", {}, "Settle"), el("p.soft", {}, "Delivers vouchers that workers may have missed, closes idle channels that owe this node, and fetches what is new."), el("div.row", {}, start));
}

function decoded(text) {
  return Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
