// Sub-accounts: what each may spend, new ones, and moves between them.

import { button, el, field, fill, select, toast } from "../../dom.js";
import { exact, shortPeer, tidy } from "../../format.js";
import { form, identity, live } from "../../pieces.js";
import { Table } from "../../table.js";
import { account as short } from "./words.js";

export const id = "accounts";
export const title = "Accounts";

export function mount(panel, { operator, go }) {
  const table = new Table([
    { id: "name", title: "Account", value: (row) => row.shown, cell: (row) => el("strong.long", {}, row.shown) },
    { id: "id", title: "Id", cell: (row) => identity(row.account) },
    { id: "balance", title: "To spend", number: true, value: (row) => row.balance, cell: (row) => exact(row.balance) },
    { id: "held", title: "Held", number: true, value: (row) => row.held, cell: (row) => exact(row.held) },
    { id: "keys", title: "Recovery key", cell: (row) => (row.recovery ? short(row.recovery) : el("span.soft", {}, "none")) },
    { id: "why", title: "", cell: (row) => button("Why", () => go(`ledger/why/${row.account}`), { kind: "small", label: `Why has ${row.shown} this balance?` }) },
  ], { key: (row) => row.account, caption: "Accounts that this node signs for" });
  const place = el("div");
  const forms = el("div.cards");
  panel.append(el("h2", {}, "Accounts"), el("p.soft", {}, "A sub-account holds credits of its own: who asks with its key can spend no more than it has. Keys are given to one under My node, Keys."), place, forms);
  const asking = live(place, () => operator.call("ledger.accounts"), ({ accounts }, inside) => {
    if (!inside.contains(table.element)) fill(inside, table.element);
    table.set(accounts.map((account) => ({ ...account, shown: account.main ? "This node" : tidy(account.name) || shortPeer(account.account) })));
    choices(accounts);
  });

  const name = el("input", { required: true, maxlength: "64", autocomplete: "off" });
  const credits = el("input", { inputmode: "decimal", autocomplete: "off", placeholder: "0" });
  const source = select([], "");
  const target = select([], "");
  const amount = el("input", { required: true, inputmode: "decimal", autocomplete: "off", placeholder: "1.5, or all" });
  fill(forms,
    el("section.card.stack", {}, el("h3", {}, "New sub-account"), form(create, "Create it", [field("Name", name), field("Credits moved to it", credits, "From this node’s account; 0 leaves it empty.")])),
    el("section.card.stack", {}, el("h3", {}, "Move credits"), form(move, "Move them", [field("From", source), field("To", target), field("Credits", amount, "The word all moves everything that is free to spend.")])));

  async function create() {
    const made = await operator.call("ledger.account.create", { name: name.value.trim(), credits: credits.value.trim() || "0" });
    toast(`${tidy(made.name)} has ${made.balance_text}`, "good");
    name.value = credits.value = "";
    asking.refresh();
  }

  async function move() {
    const moved = await operator.call("ledger.move", { source: source.value, to: target.value, credits: amount.value.trim() });
    toast(`${moved.amount_text} moved`, "good");
    amount.value = "";
    asking.refresh();
  }

  function choices(accounts) {
    const options = accounts.map((account) => [account.account, account.main ? "This node" : tidy(account.name) || shortPeer(account.account)]);
    const stamp = JSON.stringify(options);
    if (source.dataset.stamp === stamp) return;
    source.dataset.stamp = stamp;
    for (const [list, index] of [[source, 0], [target, 1]]) {
      const before = list.value;
      fill(list, options.map(([key, text]) => el("option", { value: key }, text)));
      list.value = options.some(([key]) => key === before) ? before : options[index]?.[0] ?? options[0]?.[0] ?? "";
    }
  }

  return () => asking.stop();
}
