// What is known of one peer, beside the map.
// Rule: a view of the model that it is given; what is done with a peer is done by the functions that it is given.

import { button, el, fill } from "../../dom.js";
import { count, duration, memory, price } from "../../format.js";
import { action, identity, redraw } from "../../pieces.js";
import { called, colour, experience } from "./peers.js";

export class PeerPanel {
  #do;
  #id = "";
  #stamp = "";
  #head = el("div");
  #facts = el("div.stack");
  #actions = el("div.row");

  /** do: {ask(peer, offer|null), block(peer), unlock(), close()} */
  constructor(things) {
    this.#do = things;
    this.element = el("aside.card.peer-panel", { "aria-label": "The chosen peer", "aria-live": "off" }, this.#head, this.#facts, this.#actions);
  }

  /** Show a peer as it is now. */
  show(peer, { unlocked, blocked, node }) {
    const stamp = JSON.stringify([peer, unlocked, blocked, peer.own && [node.loading, node.running, node.paused]]);
    if (stamp === this.#stamp) return;
    this.#stamp = stamp;
    if (peer.id !== this.#id) this.#headOf(peer);
    this.#id = peer.id;
    redraw(this.#facts, peer.own ? ownFacts(peer, node) : connection(peer, unlocked), peer.offers.map((offer) => this.#offer(peer, offer, unlocked)));
    redraw(this.#actions, this.#buttons(peer, unlocked, blocked));
  }

  /** The peer went away. */
  gone() {
    if (!this.#id) return;
    this.#stamp = "";
    redraw(this.#facts, el("p.soft", {}, "This peer is not known any more: its offer ended, and it is not connected."));
    fill(this.#actions);
  }

  #headOf(peer) {
    fill(this.#head, el("div.row.between", {}, el("h2.called", { dir: "auto" }, peer.own ? `This node${peer.name ? `, ${peer.name}` : ""}` : called(peer)),
      !peer.own && button("×", () => this.#do.close(), { kind: "bare", label: "Show this node again" })), identity(peer.id));
  }

  #offer(peer, offer, unlocked) {
    const known = experience(peer, offer);
    return el("div.offer", {},
      el("div.row.between", {}, realmChip(offer.realm), el("span.small-text", { class: offer.busy >= offer.slots ? "busy-text" : "soft" }, load(offer))),
      el("strong.model", { dir: "auto" }, offer.model),
      el("p.small-text.soft", {}, [machine(offer), offer.context_tokens ? `context ${offer.context_tokens.toLocaleString("en")} tokens` : "", prices(offer)].filter(Boolean).join(" · ")),
      offer.features?.length ? el("div.row", {}, offer.features.slice(0, 8).map((each) => el("span.chip", {}, each))) : null,
      !peer.own && unlocked && el("p.small-text", {}, known ? `You: ${told(known)}` : "You have no experience with it yet."),
      !peer.own && offer.slots > 0 && peer.offers.length > 1 && button("Ask for this", () => this.#do.ask(peer, offer), { kind: "small", "data-key": `ask ${offer.realm} ${offer.model}` }));
  }

  #buttons(peer, unlocked, blocked) {
    if (peer.own) return [];
    return [
      peer.offers.some((offer) => offer.slots > 0) && button("Ask this peer", () => this.#do.ask(peer, peer.offers.length === 1 ? peer.offers[0] : null), { kind: "primary", "data-key": "ask" }),
      blocked ? action("Unblock", () => this.#do.block(peer, false), { key: "block" }) : action("Block", () => this.#do.block(peer, true), { key: "block" }),
      !unlocked && button("Unlock to see your experience with it", () => this.#do.unlock(), { kind: "bare small", "data-key": "unlock" }),
    ];
  }
}

/** A realm in its colour. */
export function realmChip(realm) {
  return el("span.chip.realm", {}, el("span.swatch", { class: `back-${colour(realm)}`, "aria-hidden": "true" }), realm);
}

/** "2 of 4 busy, 3 waiting". */
export function load(offer) {
  if (!offer.slots) return "not serving now";
  return `${offer.busy} of ${offer.slots} busy${offer.queued ? `, ${offer.queued} waiting` : ""}`;
}

/** "RTX 4090, 24 GiB". */
export function machine(offer) {
  return [offer.device_name || (offer.device === "cpu" ? "CPU" : offer.device), offer.vram_mib ? memory(offer.vram_mib) : ""].filter(Boolean).join(", ");
}

/** "free", or both prices for 1,000 units. */
export function prices(offer) {
  if (!offer.price_in && !offer.price_out) return "free";
  return `${price(offer.price_in)} in, ${price(offer.price_out)} out per 1,000${offer.free ? "; some for nothing" : ""}`;
}

/** Own experience in words. */
export function told(known) {
  const parts = [`${count(known.successes, "answer")} of ${known.successes + known.failures} came whole`];
  if (known.ttft_ms) parts.push(`first word after ${duration(known.ttft_ms / 1_000)}`);
  if (known.tokens_per_second) parts.push(`${known.tokens_per_second.toFixed(1)} tokens a second`);
  if (known.avoid_until_ms > Date.now()) parts.push("left alone for a while after a failure");
  return `${parts.join(", ")}.`;
}

function connection(peer, unlocked) {
  const words = peer.connected ? "Connected" : "Not connected; its offer came through others";
  const more = unlocked && peer.detail ? [peer.detail.connected_seconds ? `for ${duration(peer.detail.connected_seconds)}` : "", peer.detail.same_federation ? "in your federation" : peer.offers.length ? "in another federation: you cannot pay it" : ""].filter(Boolean) : [];
  return [
    el("p.small-text.soft", {}, [words, ...more].join(", "), "."),
    !peer.offers.length && el("p.soft", {}, "It serves nothing: it may ask, or pass on what others say."),
    peer.detail?.addresses?.length ? el("details.small-text", { "data-key": "addresses" }, el("summary", {}, "Addresses"), peer.detail.addresses.slice(0, 8).map((address) => el("code.block", {}, address))) : null,
  ];
}

function ownFacts(peer, node) {
  const running = node.running ? `${count(node.running, "query", "queries")} of this gateway running now` : "No query of this gateway is running";
  return [
    el("p.small-text.soft", {}, `${running}.`),
    node.paused && el("p.busy-text", {}, `Paused: ${node.pause_reason || "the owner needs the machine"}.`),
    node.loading.length > 0 && el("p.small-text", {}, el("span.spinner.inline", { "aria-hidden": "true" }), ` Loading ${node.loading.join(", ")}`),
    !peer.offers.length && !node.loading.length && el("p.soft", {}, "It serves no model. It can still ask others."),
  ];
}
