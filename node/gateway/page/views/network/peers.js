// What the node says of its peers, as the map and the table show it.
// Rule: pure. What strangers call themselves and their models is made safe for a screen here, and nowhere later.

import { shortPeer, tidy } from "../../format.js";

const MOST_ON_MAP = 200;
const KNOWN = { $CHAT: "chat", $VISION: "vision", $IMAGINE: "imagine", $SPEECH: "speech" };
const OTHERS = 4;

/** The name of a realm's colour; realms of one's own share a few. */
export function colour(realm) {
  if (!realm) return "nothing";
  if (KNOWN[realm]) return KNOWN[realm];
  let sum = 0;
  for (const sign of realm) sum = (sum * 31 + sign.codePointAt(0)) % 9_973;
  return `other${sum % OTHERS}`;
}

/** All peers by id, and this node's own side. `details`: the operator's `peers`, or null. */
export function peersOf(node, details = null) {
  const known = new Map((details?.peers || []).map((peer) => [peer.node, peer]));
  const peers = new Map();
  const entry = (id) => {
    if (!peers.has(id)) peers.set(id, { id, name: "", connected: false, offers: [], detail: known.get(id) || null });
    return peers.get(id);
  };
  for (const peer of node.peers) Object.assign(entry(peer.node), { name: tidy(peer.name, 40), connected: peer.connected });
  const own = { id: node.node, name: tidy(node.name, 40), own: true, connected: true, offers: [], detail: null };
  for (const offer of node.offers) (offer.own ? own : entry(offer.node)).offers.push(plain(offer));
  peers.delete(node.node);
  for (const peer of [...peers.values(), own]) summed(peer);
  return { own, peers: [...peers.values()].sort((one, other) => (one.id < other.id ? -1 : 1)) };
}

/** Who is on the map: those that serve first. */
export function onMap(peers) {
  if (peers.length <= MOST_ON_MAP) return peers;
  return [...peers.filter((peer) => peer.group), ...peers.filter((peer) => !peer.group)].slice(0, MOST_ON_MAP);
}

/** What to call a peer. */
export function called(peer) {
  return peer.name || shortPeer(peer.id);
}

/** A peer in a sentence, for who does not see the map. */
export function described(peer) {
  const serves = peer.group ? `serves ${peer.realms.join(", ")}; ${peer.busy} of ${peer.slots} slots busy${peer.queued ? `, ${peer.queued} waiting` : ""}` : "serves nothing";
  return `${peer.own ? "This node" : `Peer ${called(peer)}`}: ${serves}${peer.connected ? "" : "; not connected"}`;
}

/** What this node experienced with a model of a peer; null where nothing was. */
export function experience(peer, offer) {
  const found = peer.detail?.models.find((model) => tidy(model.model) === offer.model && tidy(model.realm, 40) === offer.realm)?.experience;
  return found && found.successes + found.failures ? found : null;
}

function plain(offer) {
  return { ...offer, asked: { realm: offer.realm, model: offer.model }, realm: tidy(offer.realm, 40), model: tidy(offer.model), device_name: tidy(offer.device_name, 60), features: (offer.features || []).map((each) => tidy(each, 40)) };
}

function summed(peer) {
  const working = peer.offers.filter((offer) => offer.slots > 0);
  const sum = (field) => working.reduce((total, offer) => total + offer[field], 0);
  peer.realms = [...new Set(working.map((offer) => offer.realm))].sort();
  peer.group = peer.realms[0] || "";
  Object.assign(peer, { slots: sum("slots"), busy: sum("busy"), queued: sum("queued") });
}
