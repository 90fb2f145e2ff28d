// API keys: who may ask through this gateway, for what, and how much.
// Rule: a key is shown once and kept nowhere in this browser.

import { copyButton } from "../../clipboard.js";
import { button, confirmed, dialog, el, field, fill, select, toast } from "../../dom.js";
import { exact, shortPeer, tidy, when } from "../../format.js";
import { action, form, live } from "../../pieces.js";
import { Table } from "../../table.js";

export const id = "keys";
export const title = "Keys";

const SCOPES = [["$CHAT", "chat"], ["$VISION", "vision"], ["$IMAGINE", "pictures"], ["$SPEECH", "speech"]];
const ENDS = [["", "never"], ["7", "in a week"], ["30", "in 30 days"], ["90", "in 90 days"], ["365", "in a year"]];

export function mount(panel, { operator }) {
  const table = new Table(columns(revoke), { key: (row) => row.id, sort: { id: "created", down: true }, caption: "API keys", none: "No key yet. Programs on this machine need none, as long as the gateway listens on this machine alone." });
  const place = el("div");
  panel.append(el("section.stack", { "aria-label": "Keys" }, el("h2", {}, "API keys"), place), maker(operator, () => asking.refresh()));
  const asking = live(place, () => operator.call("keys.list"), ({ keys }, inside) => {
    if (!inside.contains(table.element)) fill(inside, table.element);
    table.set(keys);
  }, { seconds: 10 });

  async function revoke(row) {
    if (!(await confirmed(`Revoke the key “${tidy(row.name, 60)}”? Whoever uses it is refused from the next request on. This cannot be undone.`, "Revoke", { danger: true }))) return;
    await operator.call("keys.revoke", { id: row.id });
    toast(`“${tidy(row.name, 60)}” is revoked`, "good");
    asking.refresh();
  }

  return () => asking.stop();
}

function columns(revoke) {
  return [
    { id: "name", title: "Name", value: (row) => row.name, cell: (row) => el("div", {}, el("strong.long", { dir: "auto" }, tidy(row.name)), el("div.small-text.soft.mono", {}, row.id)) },
    { id: "scopes", title: "May ask for", cell: (row) => el("span", {}, (row.scopes || []).map((each) => (each === "all" ? "everything" : tidy(each, 40))).join(", ") || "everything") },
    { id: "limits", title: "Limits", cell: (row) => limits(row) },
    { id: "spent", title: "This month", number: true, value: (row) => row.spent_micro || 0, cell: (row) => spent(row) },
    { id: "created", title: "Made", value: (row) => row.created, cell: (row) => when(row.created) },
    { id: "used", title: "Last used", value: (row) => row.last_used || 0, cell: (row) => (row.last_used ? when(row.last_used) : el("span.soft", {}, "never")) },
    { id: "expires", title: "Ends", value: (row) => row.expires || 9e12, cell: (row) => (!row.expires ? el("span.soft", {}, "never") : row.expires * 1_000 < Date.now() ? el("span.bad-text", {}, "ended") : when(row.expires)) },
    { id: "do", title: "", cell: (row) => action("Revoke", () => revoke(row), { kind: "small", label: `Revoke ${tidy(row.name, 60)}` }) },
  ];
}

function limits(row) {
  const parts = [row.requests_per_minute && `${row.requests_per_minute.toLocaleString("en")} queries/min`, row.tokens_per_minute && `${row.tokens_per_minute.toLocaleString("en")} tokens/min`, row.account && `paid by ${shortPeer(row.account)}`].filter(Boolean);
  return parts.length ? parts.join(", ") : el("span.soft", {}, "none of its own");
}

/** Amounts come as µcredits, or as the text that was written. */
const amount = (value) => (Number.isInteger(value) ? exact(value) : tidy(value, 40));

function spent(row) {
  return row.monthly_credits ? `${amount(row.spent_this_month || 0)} of ${amount(row.monthly_credits)}` : amount(row.spent_this_month || 0);
}

function maker(operator, made) {
  const name = el("input", { required: true, maxlength: "64", autocomplete: "off", placeholder: "laptop, a friend’s name" });
  const scopes = SCOPES.map(([realm, text]) => [realm, el("input", { type: "checkbox", value: realm }), text]);
  const more = el("input", { autocomplete: "off", spellcheck: "false", placeholder: "$MYREALM" });
  const ends = select(ENDS, "");
  const requests = el("input", { type: "number", min: "1", step: "1", placeholder: "no limit" });
  const tokens = el("input", { type: "number", min: "1", step: "1", placeholder: "no limit" });
  const credits = el("input", { inputmode: "decimal", autocomplete: "off", placeholder: "no limit" });
  const account = select([["", "this node’s account"]], "");
  operator.call("ledger.accounts").then(({ accounts }) => account.append(...accounts.filter((each) => !each.main).map((each) => el("option", { value: each.account }, tidy(each.name) || shortPeer(each.account))))).catch(() => {}); // then it is this node's

  async function make() {
    const wish = { name: name.value.trim() };
    const chosen = [...scopes.filter(([, box]) => box.checked).map(([realm]) => realm), ...more.value.split(/[\s,]+/).filter(Boolean)];
    if (chosen.length) wish.scopes = chosen;
    if (ends.value) wish.expires_days = Number(ends.value);
    if (requests.value) wish.requests_per_minute = requests.valueAsNumber;
    if (tokens.value) wish.tokens_per_minute = tokens.valueAsNumber;
    if (credits.value.trim()) wish.monthly_credits = credits.value.trim();
    if (account.value) wish.account = account.value;
    const key = await operator.call("keys.create", wish);
    for (const input of [name, more, requests, tokens, credits]) input.value = "";
    for (const [, box] of scopes) box.checked = false;
    made();
    showOnce(key);
  }

  return el("section.card.stack", { "aria-label": "Make a key" }, el("h2", {}, "Make a key"), form(make, "Make it", [
    el("div.fields", {}, field("Name", name, "Whose it is."), field("Ends", ends), field("Paid by", account, "A sub-account can spend no more than it has.")),
    el("fieldset", {}, el("legend", {}, "May ask for"), el("div.row", {}, scopes.map(([, box, text]) => el("label.row", {}, box, text))), el("p.hint", {}, "Nothing chosen: everything.")),
    el("details", {}, el("summary", {}, "Limits and other realms"), el("div.fields", {}, field("Queries a minute", requests), field("Tokens a minute", tokens), field("Credits a month", credits, "Such as 1.5"), field("Other realms", more, "Separated by spaces."))),
  ]));
}

function showOnce(made) {
  const close = dialog("The new key",
    el("p", {}, `This is the key of “${tidy(made.name, 60)}”. It is shown this once: the node keeps no copy that could be read.`),
    el("div.snippet", {}, el("pre", { tabindex: "0", "aria-label": "The key" }, el("code.key", {}, made.key)), copyButton(() => made.key, { kind: "small", label: "Copy the key" })),
    el("p.soft", {}, "Programs send it as ", el("code", {}, "Authorization: Bearer …"), "; under Connect stand examples."),
    el("div.row.end", {}, button("I have it", () => close(), { kind: "primary" })));
}
