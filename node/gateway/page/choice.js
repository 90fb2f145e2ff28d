// Who should answer, and what that would cost, said before anything is asked; and who did, said after.
// Rule: everything shown before asking is worked out from the node's state as it is now; nothing is promised that an offer does not say.
//
//   const chosen = choice(context, { realm: "$CHAT", remember: "chat" });
//   chosen.element; chosen.value() -> { model, mtor }; chosen.watch(fn); chosen.expect({ in, out }); chosen.realm("$VISION"); chosen.leave()

import { button, dialog, el, field, fill, problem, select, spinner } from "./dom.js";
import { count, credits, duration, shortPeer } from "./format.js";
import { Observable } from "./observable.js";
import { recall, remember as keep } from "./settings.js";

const MIB = 1024; // MiB in a GiB
const PATIENCE = 600; // seconds: who watches an answer grow stops it himself
const SPOKEN = { "$IMAGINE": "units of picture", "$SPEECH": "tenths of a second" }; // tokens otherwise
const TYPICAL = { "$CHAT": { in: 200, out: 300 }, "$VISION": { in: 400, out: 120 }, "$IMAGINE": { in: 20, out: 16 }, "$SPEECH": { in: 30, out: 60 } };
const OTHER_USES = ["$VISION", "$IMAGINE", "$SPEECH"]; // realms with routes of their own: not offered as a kind of chat
const DEVICES = [["", "Any"], ["cuda", "NVIDIA card"], ["mps", "Apple card"], ["cpu", "CPU"]];
const EMPTY = { model: "auto", realm: "", vram: 0, device: "", price: 0, context: 0, worker: "", deadline: 0 };

/** What people call a node: its own name, "this node", or the end of its id. */
export function workerName(context, id) {
  const node = context.node.value;
  if (node?.node === id) return node.name ? `${node.name} (this node)` : "this node";
  return node?.peers.find((peer) => peer.node === id)?.name || shortPeer(id);
}

// --- before asking --------------------------------------------------------------------------------------------------

/** Each requirement: [what it asks of an offer, what to say if nobody meets it]. */
const REQUIREMENTS = [
  [(offer) => offer.slots > 0, () => "whoever offers it takes no queries"],
  [(offer, wish) => wish.model === "auto" || offer.model === wish.model, (wish) => `no worker offers ${wish.model}`],
  [(offer, wish) => !wish.worker || offer.node === wish.worker, () => "the worker that you chose does not offer it now"],
  [(offer, wish) => !wish.device || offer.device === wish.device, (wish) => `no worker answers on this kind of device (${wish.device})`],
  [(offer, wish) => offer.vram_mib >= wish.vram * MIB, (wish, left) => `no worker has ${wish.vram} GB of graphics memory; the most is ${Math.floor(most(left, "vram_mib") / MIB)} GB`],
  [(offer, wish) => offer.context_tokens >= wish.context, (wish, left) => `no worker looks at ${wish.context.toLocaleString("en")} tokens at once; the most is ${most(left, "context_tokens").toLocaleString("en")}`],
  [(offer, wish) => !wish.price || Math.max(offer.price_in, offer.price_out) <= wish.price * 1e6, (wish, left) => `no worker answers for ${wish.price} credits; the cheapest takes ${credits(Math.min(...left.map((offer) => Math.max(offer.price_in, offer.price_out))))}`],
];

function most(offers, key) {
  return Math.max(0, ...offers.map((offer) => offer[key]));
}

/** Who could take a query: {offers, reason}; the reason is said where nobody can. */
export function candidates(node, realm, wish) {
  if (!node) return { offers: [], reason: "the node has not told yet what is on offer" };
  let offers = node.offers.filter((offer) => offer.realm === realm);
  if (!offers.length) return { offers, reason: node.paused ? `this node is paused (${node.pause_reason}), and no peer offers ${realm}` : `no worker offers ${realm}` };
  for (const [meets, reason] of REQUIREMENTS) {
    const left = offers.filter((offer) => meets(offer, wish));
    if (!left.length) return { offers: left, reason: reason(wish, offers) };
    offers = left;
  }
  return { offers: [...offers].sort((one, other) => load(one) - load(other) || listed(one) - listed(other)), reason: "" };
}

function load(offer) {
  return (offer.busy + offer.queued) / offer.slots >= 1 ? (offer.busy + offer.queued) / offer.slots : 0;
}

/** µcredits for so many units. */
function cost(offer, units) {
  return offer.own ? 0 : Math.ceil((units.in * offer.price_in + units.out * offer.price_out) / 1_000);
}

function listed(offer) {
  return isFree(offer) ? 0 : offer.price_in + offer.price_out;
}

/** A worker's free quota is for those who cannot pay: this node pays as long as it has credits. */
function isFree(offer) {
  return offer.own || !(offer.price_in || offer.price_out);
}

/** Choose realm, model and requirements. */
export function choice(context, { realm, remember }) {
  const home = realm;
  const changed = new Observable(null);
  const all = recall(`choice.${remember}`, {});
  let expected = null;
  let wish = { ...EMPTY, ...all[realm] };

  const models = el("select.choice-model", { "aria-label": "Model", onchange: () => chooseModel(models.value) });
  const line = el("p.choice-line.small-text.soft");
  const panel = el("div.choice-panel.card", { hidden: true });
  const more = button("Options", () => togglePanel(), { kind: "small", label: "What the worker must have, and who could answer", "aria-expanded": "false" });
  const element = el("div.choice", {}, el("div.choice-row", {}, models, more, line), panel);
  const inputs = requirementInputs(context, () => changeWish());
  const workers = el("div.choice-workers");
  fill(panel, el("div.fields", {}, inputs.elements), workers);

  function togglePanel() {
    panel.hidden = !panel.hidden;
    more.setAttribute("aria-expanded", String(!panel.hidden));
    if (!panel.hidden) showWorkers();
  }

  function chooseModel(value) {
    const [chosenRealm, model] = JSON.parse(value);
    wish = { ...wish, model, realm: chosenRealm === realm ? "" : chosenRealm };
    store();
  }

  function changeWish() {
    wish = { ...wish, ...inputs.value() };
    store();
  }

  function store() {
    all[realm] = wish;
    keep(`choice.${remember}`, all);
    show();
    changed.set(value());
  }

  function inRealm() {
    return wish.realm || realm;
  }

  function show() {
    const node = context.node.value;
    showModels(node);
    inputs.show(wish, offersOf(node));
    const found = candidates(node, inRealm(), wish);
    const wishes = count(Object.entries(inputs.value()).filter(([, each]) => each).length, "requirement");
    more.textContent = wishes.startsWith("0") ? "Options" : `Options (${wishes})`;
    fill(line, found.reason ? el("span.bad-text", {}, `Nobody can answer this now: ${found.reason}.`) : sayings(found.offers));
    if (!panel.hidden) showWorkers();
  }

  function sayings(offers) {
    const units = expected || TYPICAL[inRealm()] || TYPICAL.$CHAT;
    const [first] = offers;
    const most = Math.max(...offers.map((offer) => (isFree(offer) ? 0 : cost(offer, units))));
    const others = `${count(offers.length, "worker")} can take it${most ? `, for at most ${credits(most)} credits` : ", for nothing"}`;
    return [`${priceWords(first, units, SPOKEN[inRealm()] || "tokens", Boolean(expected))} at ${workerName(context, first.node)}, ${queueWords(first)}`, offers.length > 1 ? others : ""]
      .filter(Boolean).map((text) => el("span.choice-part", {}, text));
  }

  function offersOf(node) {
    return (node?.offers || []).filter((offer) => offer.realm === inRealm());
  }

  function showModels(node) {
    const realms = new Map([[realm, new Set()]]);
    for (const offer of node?.offers || []) {
      const fits = offer.realm === realm || (home === "$CHAT" && realm === home && !OTHER_USES.includes(offer.realm));
      if (!fits) continue;
      if (!realms.has(offer.realm)) realms.set(offer.realm, new Set());
      realms.get(offer.realm).add(offer.model);
    }
    if (wish.model !== "auto" || wish.realm) { // what was chosen stays in the list, even if nobody offers it now
      if (!realms.has(inRealm())) realms.set(inRealm(), new Set());
      if (wish.model !== "auto") realms.get(inRealm()).add(wish.model);
    }
    const signature = JSON.stringify([...realms].map(([name, each]) => [name, [...each]]));
    if (models.dataset.shown !== signature && document.activeElement !== models) {
      models.dataset.shown = signature;
      fill(models, [...realms].map(([name, each]) => realms.size > 1 ? el("optgroup", { label: name }, options(name, each, `Any for ${name}`)) : options(name, each, "Any model")));
    }
    models.value = JSON.stringify([inRealm(), wish.model]);
  }

  function options(name, found, any) {
    return [el("option", { value: JSON.stringify([name, "auto"]) }, any),
      [...found].sort().map((model) => el("option", { value: JSON.stringify([name, model]) }, model))];
  }

  function showWorkers() {
    const node = context.node.value;
    const able = new Set(candidates(node, inRealm(), wish).offers);
    const offers = offersOf(node).sort((one, other) => able.has(other) - able.has(one));
    fill(workers, offers.length ? el("div.scroll-x", {}, el("table", {}, el("caption.unseen", {}, "Who offers it"),
      el("thead", {}, el("tr", {}, ["Worker", "Model", "Device", "Context", "Now", "Price of 1,000 in / out"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, offers.map((offer) => el("tr", { class: able.has(offer) ? "" : "unable" }, [
        [workerName(context, offer.node), able.has(offer) ? null : el("span.unseen", {}, " (does not meet the requirements)")],
        offer.model,
        `${offer.device_name || offer.device}${offer.vram_mib ? `, ${Math.round(offer.vram_mib / MIB)} GB` : ""}`,
        offer.context_tokens ? offer.context_tokens.toLocaleString("en") : "–",
        offerQueue(offer),
        isFree(offer) ? el("span.chip.good", {}, offer.own ? "free: your own node" : "free") : `${price(offer)}${offer.free ? ", or out of a free quota while you have no credits" : ""}`,
      ].map((content) => el("td", {}, content))))))) : el("p.soft", {}, `No worker offers ${inRealm()}.`));
  }

  function value() {
    const mtor = {};
    if (wish.realm) mtor.realm = wish.realm;
    if (wish.vram) mtor.min_vram_mib = wish.vram * MIB;
    if (wish.device) mtor.device = wish.device;
    if (wish.price) Object.assign(mtor, { max_price_in: Math.round(wish.price * 1e6), max_price_out: Math.round(wish.price * 1e6) });
    if (wish.context) mtor.min_context_tokens = wish.context;
    if (wish.worker) mtor.worker = wish.worker;
    mtor.deadline_ms = (wish.deadline || PATIENCE) * 1_000;
    return { model: wish.model, mtor };
  }

  const leave = context.node.watch(show);
  return {
    element,
    value,
    leave,
    watch: (fn) => changed.watch((now) => now && fn(now)),
    /** How many units this query will probably take. */
    expect(units) {
      expected = units;
      show();
    },
    /** Ask another realm from now on, such as $VISION while a picture is there. */
    realm(next) {
      if (next === realm) return;
      realm = next;
      wish = { ...EMPTY, ...all[realm] };
      models.dataset.shown = "";
      show();
      changed.set(value());
    },
  };
}

function requirementInputs(context, changed) {
  const number = (step, max) => el("input", { type: "number", min: "0", step: String(step), max: String(max), inputmode: "decimal", placeholder: "any", onchange: changed });
  const inputs = { vram: number(1, 1_000), context: number(1, 10_000_000), price: number(0.0001, 1_000_000), deadline: number(1, 1_800) };
  const device = select(DEVICES, "", changed);
  const worker = el("select", { onchange: changed });
  return {
    elements: [
      field("Graphics memory at least (GB)", inputs.vram),
      field("Context at least (tokens)", inputs.context),
      field("Highest price (credits)", inputs.price, "for 1,000 units, in and out alike"),
      field("Whole answer within (s)", inputs.deadline, `${PATIENCE} if nothing is said`),
      field("Device", device),
      field("Worker", worker),
    ],
    value: () => ({ ...Object.fromEntries(Object.entries(inputs).map(([key, input]) => [key, Math.max(0, Number(input.value) || 0)])), device: device.value, worker: worker.value }),
    show(wish, offers) {
      for (const [key, input] of Object.entries(inputs)) if (document.activeElement !== input) input.value = wish[key] || "";
      device.value = wish.device;
      const nodes = [...new Set([...offers.map((offer) => offer.node), wish.worker].filter(Boolean))];
      if (worker.dataset.shown !== nodes.join() && document.activeElement !== worker) {
        worker.dataset.shown = nodes.join();
        fill(worker, el("option", { value: "" }, "Any"), nodes.map((node) => el("option", { value: node }, workerName(context, node))));
      }
      worker.value = wish.worker;
    },
  };
}

function price(offer) {
  return `${credits(offer.price_in)} / ${credits(offer.price_out)}`;
}

function priceWords(offer, units, unit, known) {
  if (isFree(offer)) return "Free";
  return `About ${credits(cost(offer, units))} credits${known ? "" : " for a typical answer"} (1,000 ${unit}: ${credits(offer.price_in)} in, ${credits(offer.price_out)} out)`;
}

function queueWords(offer) {
  if (offer.busy + offer.queued < offer.slots) return "at once";
  return offer.queued ? `after ${offer.queued} in line` : "when one answer ends";
}

function offerQueue(offer) {
  if (!offer.slots) return "takes none";
  const free = offer.slots - offer.busy;
  return free > 0 && !offer.queued ? `${free} of ${offer.slots} free` : `busy${offer.queued ? `, ${offer.queued} wait` : ""}`;
}

// --- after asking ---------------------------------------------------------------------------------------------------

const LANES = { own: "your own node", free: "free lane", paid: "" };

/** Who answered, how fast, for how much. `seconds`: of the whole answer, where the caller knows. */
export function answered(event, context, { seconds = event.seconds } = {}) {
  const { shares = [], ttft_ms = 0, cost_micro = 0, failover = false } = event.mtor || {};
  const names = el("span");
  const lanes = [...new Set(shares.map((share) => LANES[share.lane] ?? share.lane))].filter(Boolean);
  whenKnown(context, () => { names.textContent = [...new Set(shares.map((share) => workerName(context, share.worker)))].join(", then ") || "an unknown worker"; });
  const told = [
    event.model,
    ttft_ms ? `first word after ${duration(ttft_ms / 1_000)}` : "",
    seconds ? duration(seconds) : "",
    cost_micro ? `${credits(cost_micro) === "0" ? "less than 0.0001" : credits(cost_micro)} credits` : `free${lanes.length ? ` (${lanes.join(", ")})` : ""}`,
    failover ? "another worker went on after the first was lost" : "",
  ].filter(Boolean);
  return el("p.answered.small-text.soft", {}, "Answered by ", names, ` · ${told.join(" · ")} `,
    button("Why?", () => explain(event, context), { kind: "bare small", label: "Why this worker and this price" }));
}

/** At once, and again when the node has told its name and its peers, if it has not yet. */
function whenKnown(context, tell) {
  tell();
  if (context.node.value) return;
  const leave = context.node.watch((node) => {
    if (!node) return;
    tell();
    queueMicrotask(() => leave());
  });
}

function explain(event, context) {
  const place = el("div.stack");
  dialog("Who answered, and what it cost", place);
  fill(place, (event.mtor?.shares || []).map((share) => oneShare(share, context)),
    el("p.hint", {}, "A worker is chosen by its load, its price and this node's own experience with it."));
}

function oneShare(share, context) {
  const receipt = el("div");
  const show = async () => {
    if (!(await context.unlock())) return;
    fill(receipt, spinner("looking into the ledger"));
    try {
      fill(receipt, receiptDetails(await context.operator.call("ledger.show", { id: share.receipt })));
    } catch (error) {
      fill(receipt, problem(error, show));
    }
  };
  const why = { own: "Your own node answered: nothing is paid.", free: "This came out of the free quota that the worker gives: nothing is paid." };
  return el("section.card", {}, el("h3", {}, workerName(context, share.worker)),
    el("p", {}, `${share.model}: ${share.units_in.toLocaleString("en")} units in, ${share.units_out.toLocaleString("en")} units out.`),
    el("p", {}, share.amount ? `${share.amount.toLocaleString("en")} µcredits (${credits(share.amount)} credits).` : why[share.lane] || "Nothing was paid."),
    share.receipt ? button("Show the receipt", show, { kind: "small" }) : null, receipt);
}

function receiptDetails(found) {
  const rows = [["Receipt", found.id], ["Counted in", found.units_in], ["Counted out", found.units_out], ["Price of 1,000 in", credits(found.price_in)], ["Price of 1,000 out", credits(found.price_out)], ["Channel", found.channel], ["Adds up", found.adds_up === undefined ? undefined : found.adds_up ? "yes" : "NO"]];
  return el("div.stack", {}, el("p", {}, found.sentence || ""), el("dl.facts", {}, rows.filter(([, value]) => value !== undefined && value !== "")
    .map(([name, value]) => [el("dt", {}, name), el("dd", { class: String(value).length > 30 ? "mono" : null }, String(value))])));
}
