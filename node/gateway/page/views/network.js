// The network as this node sees it: a map, one peer in detail, and all offers as a table.
// Rule: everything is drawn from the node's own events; what only the owner may know is asked for while unlocked.

import { button, confirmed, el, fill, select, spinner, toast } from "../dom.js";
import { count, price } from "../format.js";
import { live } from "../pieces.js";
import { recall, remember } from "../settings.js";
import { Table } from "../table.js";
import { NetworkMap } from "./network/map.js";
import { PeerPanel, load, machine, realmChip, told } from "./network/panel.js";
import { called, colour, experience, onMap, peersOf } from "./network/peers.js";

// Where each realm is asked, and the choices (choice.js) that are remembered there.
const ASKED = {
  $CHAT: { view: "chat", choices: ["chat"] }, $VISION: { view: "chat", choices: ["chat"] },
  $IMAGINE: { view: "imagine", choices: ["imagine"] }, $SPEECH: { view: "speech", choices: ["transcribe", "speak"] },
};

export function mount(root, context) {
  return new NetworkView(root, context).leave;
}

class NetworkView {
  #context;
  #pinned = "";
  #hovered = "";
  #details = null;
  #blocked = new Set();
  #realm = "";
  #model = null;
  #began = false;
  #root;
  #ends = [];

  #summary = el("p.soft", { role: "status" });
  #legend = el("ul.legend", { "aria-label": "Realms" });
  #filter = el("div.row");
  #waiting = el("div.stack", {}, spinner("Waiting for the node"));
  #panel;
  #map;
  #table;

  constructor(root, context) {
    this.#root = root;
    this.#context = context;
    this.#panel = new PeerPanel({ ask: (peer, offer) => this.#ask(peer, offer), block: (peer, on) => this.#block(peer, on), unlock: () => context.unlock(), close: () => this.#choose("") });
    this.#map = new NetworkMap({ show: (each) => this.#show(each), leave: () => this.#show(""), choose: (each) => this.#choose(each) });
    this.#table = new Table(this.#columns(), { key: (row) => row.key, sort: { id: "realm", down: false }, caption: "All offers", none: "Nobody offers a model now." });
    fill(root, this.#waiting);
    this.#ends.push(context.node.watch((node) => node && this.#update(node)), context.operator.unlocked.watch((unlocked) => this.#watchDetails(unlocked)), () => this.#map.stop());
    this.#ends.push(context.connection.watch((connection) => this.#connection(connection)));
  }

  leave = () => {
    for (const end of this.#ends) end();
    this.#quiet?.stop();
  };

  // --- what the node says ---------------------------------------------------------------------------

  #connection(connection) {
    this.#root.classList.toggle("stale", this.#began && connection.state !== "open");
    if (!this.#began && connection.problem) fill(this.#waiting, spinner(connection.problem));
  }

  #update(node) {
    if (!this.#began) this.#begin();
    this.#model = { ...peersOf(node, this.#details), node };
    const { own, peers } = this.#model;
    const shown = onMap(peers);
    const serving = peers.filter((peer) => peer.group).length;
    this.#summary.textContent = `${count(peers.length, "peer")} known, ${serving} serving, ${count(peers.filter((peer) => peer.connected).length, "connection")}. `
      + (peers.length > shown.length ? `The map shows ${shown.length}; the table has all. ` : "") + `Federation ${node.federation?.name || "not known"}.`;
    this.#map.update({ own, peers: shown });
    this.#showPanel();
    this.#showLegend(own, peers);
    this.#showTable(own, peers);
  }

  #begin() {
    this.#began = true;
    fill(this.#root,
      el("div.row.between.network-head", {}, el("h1", {}, "Network"), this.#summary),
      el("div.network", {}, el("div.card.map-card", {}, this.#map.svg, this.#legend), this.#panel.element),
      el("section.stack", { "aria-label": "Offers" }, el("div.row.between", {}, el("h2", {}, "Offers"), this.#filter), this.#table.element));
  }

  /** What only the owner may know: experience, addresses, who is blocked. */
  #quiet = null;

  #watchDetails(unlocked) {
    this.#quiet?.stop();
    this.#quiet = null;
    this.#details = null;
    if (unlocked) this.#quiet = live(el("div"), () => this.#askDetails(), () => this.#again(), { seconds: 10 });
    this.#again();
  }

  async #askDetails() {
    const [peers, blocked] = await Promise.all([this.#context.operator.call("peers"), this.#context.operator.call("peers.blocked").catch(() => ({ blocked: [] }))]);
    this.#details = peers;
    this.#blocked = new Set(blocked.blocked.map((each) => each.node));
    return [peers, blocked];
  }

  #again() {
    if (this.#context.node.value) this.#update(this.#context.node.value);
  }

  // --- one peer -------------------------------------------------------------------------------------

  #show(each) {
    this.#hovered = each || this.#hovered;
    if (!each && this.#pinned) this.#hovered = "";
    this.#showPanel();
  }

  #choose(each) {
    this.#pinned = this.#pinned === each ? "" : each;
    this.#hovered = this.#pinned;
    this.#map.choose(this.#pinned);
    this.#showPanel();
    if (this.#pinned && matchMedia("(max-width: 860px)").matches) this.#panel.element.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  #showPanel() {
    const { own, peers, node } = this.#model;
    const wanted = this.#hovered || this.#pinned || own.id;
    const peer = wanted === own.id ? own : peers.find((each) => each.id === wanted);
    if (peer) this.#panel.show(peer, { unlocked: this.#context.operator.unlocked.value, blocked: this.#blocked.has(peer.id), node });
    else this.#panel.gone();
  }

  /** Go where this kind of work is asked for, with this peer as the only worker. */
  #ask(peer, offer) {
    const chosen = offer || peer.offers.find((each) => each.realm === "$CHAT" && each.slots) || peer.offers.find((each) => each.slots);
    const realm = chosen.asked.realm;
    const { view, choices } = ASKED[realm] || ASKED.$CHAT;
    const kind = realm in ASKED ? realm : "$CHAT"; // the chat asks realms of one's own, too
    for (const name of choices) {
      const all = recall(`choice.${name}`, {});
      const wish = { ...all[kind], worker: peer.id, model: offer ? offer.asked.model : "auto", realm: kind === realm ? "" : realm };
      remember(`choice.${name}`, { ...all, [kind]: wish });
    }
    toast(`What you ask next goes to ${called(peer)} alone; Options beside the question changes that.`);
    this.#context.go(view);
  }

  async #block(peer, on) {
    if (!(await this.#context.unlock())) return;
    if (on && !(await confirmed(`Block ${called(peer)}? Its connections end, its offers are ignored, and it gets no answers from here until you unblock it (My node, Block list).`, "Block it", { danger: true }))) return;
    await this.#context.operator.call(on ? "peers.block" : "peers.unblock", { peer: peer.id });
    if (on) this.#blocked.add(peer.id);
    else this.#blocked.delete(peer.id);
    toast(on ? `${called(peer)} is blocked` : `${called(peer)} is not blocked any more`, "good");
    this.#quiet?.refresh();
    this.#showPanel();
  }

  // --- all offers -----------------------------------------------------------------------------------

  #showLegend(own, peers) {
    const realms = [...new Set([own, ...peers].flatMap((peer) => peer.realms))].sort();
    const entries = realms.map((realm) => [colour(realm), realm, count([own, ...peers].filter((peer) => peer.realms.includes(realm)).length, "node")]);
    const stamp = JSON.stringify(entries);
    if (this.#legend.dataset.stamp === stamp) return;
    this.#legend.dataset.stamp = stamp;
    fill(this.#legend, entries.map(([name, realm, text]) => el("li", {}, el("span.swatch", { class: `back-${name}`, "aria-hidden": "true" }), el("bdi", {}, realm), el("span.soft", {}, text))),
      el("li", {}, el("span.swatch.small", { "aria-hidden": "true" }), "serves nothing"));
    if (this.#realm && !realms.includes(this.#realm)) this.#realm = "";
    fill(this.#filter, select([["", "all realms"], ...realms.map((realm) => [realm, realm])], this.#realm, (chosen) => { this.#realm = chosen; this.#again(); }, { "aria-label": "Realm" }));
  }

  #showTable(own, peers) {
    const rows = [own, ...peers].flatMap((peer) => peer.offers.map((offer, index) => ({
      ...offer, key: `${peer.id} ${offer.realm} ${offer.model} ${index}`, peer: peer.id, called: peer.own ? "this node" : called(peer), mine: Boolean(peer.own), experience: experience(peer, offer),
    })));
    this.#table.set(rows.filter((row) => !this.#realm || row.realm === this.#realm));
  }

  #columns() {
    return [
      { id: "realm", title: "Realm", value: (row) => row.realm, cell: (row) => realmChip(row.realm) },
      { id: "model", title: "Model", value: (row) => row.model, cell: (row) => el("span.long", { dir: "auto" }, row.model) },
      { id: "peer", title: "Node", value: (row) => row.called, cell: (row) => button(row.called, () => this.#reveal(row.peer), { kind: "link", label: `Show ${row.called} on the map` }) },
      { id: "card", title: "Machine", value: (row) => row.vram_mib || 0, cell: machine },
      { id: "context", title: "Context", number: true, value: (row) => row.context_tokens || 0, cell: (row) => (row.context_tokens ? row.context_tokens.toLocaleString("en") : "–") },
      { id: "load", title: "Busy", value: (row) => (row.slots ? (row.busy + row.queued) / row.slots : 9e9), cell: busy },
      { id: "in", title: "In per 1,000", number: true, value: (row) => row.price_in, cell: (row) => price(row.price_in) },
      { id: "out", title: "Out per 1,000", number: true, value: (row) => row.price_out, cell: (row) => price(row.price_out) },
      { id: "you", title: "Your experience", value: (row) => (row.experience ? row.experience.successes : -1), cell: (row) => (row.mine ? "–" : row.experience ? el("span.small-text", {}, told(row.experience)) : el("span.soft", {}, this.#context.operator.unlocked.value ? "none yet" : "locked")) },
    ];
  }

  #reveal(peer) {
    this.#pinned = "";
    this.#choose(peer);
    this.#map.svg.scrollIntoView({ block: "center", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }
}

/** A bar and figures: how much of an offer is in use. */
function busy(offer) {
  if (!offer.slots) return el("span.soft", {}, load(offer));
  return el("span.slots", { title: load(offer) }, el("meter", { min: "0", max: offer.slots, value: Math.min(offer.busy, offer.slots), "aria-label": load(offer) }), `${offer.busy} of ${offer.slots}${offer.queued ? `, +${offer.queued}` : ""}`);
}
