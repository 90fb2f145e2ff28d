// Where peers lie on the map.
// Rule: pure. A place follows from a peer's id and the kind of its work, so that nothing jumps when others come, go or
// change: shares of the circle grow in powers of two, and who has a place keeps it as long as the shares are the same.

const REALMS = ["$CHAT", "$VISION", "$IMAGINE", "$SPEECH"];
const SPACINGS = [104, 88, 74, 62, 52, 44, 37, 31, 26, 22, 18]; // px between peers: the largest that fits
const FIRST_RING = 0.36; // of the half axes: inside is this node's place
const LAST_RING = 0.86;
const EDGE = 0.965; // where those lie that serve nothing
const DOT_SPACING = 13;

/**
 * peers: {id, group}; group "" serves nothing. memory: what this gave before as `memory`, or null.
 * Returns {places: Map(id -> {x, y}), spacing, memory}.
 */
export function layout(peers, width, height, memory = null) {
  const frame = { width, height };
  const serving = peers.filter((peer) => peer.group);
  const groups = [...new Set(serving.map((peer) => peer.group))].sort(byRealm);
  const weights = new Map(groups.map((group) => [group, weight(serving.filter((peer) => peer.group === group).length, memory?.weights.get(group))]));
  const { spacing, sectors } = fitted(groups, weights, frame);
  const dots = peers.filter((peer) => !peer.group);
  const edge = edgeSlots(frame, dots.length);
  const signature = JSON.stringify([width, height, spacing, [...weights], edge.length]);
  const kept = memory?.signature === signature ? memory.taken : new Map();
  const taken = new Map();
  for (const group of groups) occupy(serving.filter((peer) => peer.group === group), group, sectors.get(group).length, kept, taken);
  occupy(dots, "", edge.length, kept, taken);
  const places = new Map(peers.map((peer) => [peer.id, (peer.group ? sectors.get(peer.group) : edge)[taken.get(peer.id).slot]]));
  return { places, spacing, memory: { signature, weights, taken } };
}

/** A number that follows from an id alone (FNV-1a). */
export function hash(text) {
  let value = 0x811c9dc5;
  for (let index = 0; index < text.length; index += 1) value = Math.imul(value ^ text.charCodeAt(index), 0x01000193);
  return (value ^ (value >>> 15)) >>> 0;
}

function byRealm(one, other) {
  const place = (realm) => (REALMS.includes(realm) ? REALMS.indexOf(realm) : REALMS.length);
  return place(one) - place(other) || (one < other ? -1 : 1);
}

function weight(number, before = 1) {
  return Math.max(before, 2 ** Math.ceil(Math.log2(Math.max(1, number))));
}

/** The widest spacing at which every group has room in its share of the circle. */
function fitted(groups, weights, frame) {
  const total = [...weights.values()].reduce((sum, each) => sum + each, 0);
  for (const spacing of SPACINGS) {
    const sectors = new Map();
    let begin = -Math.PI / 2;
    for (const group of groups) {
      const end = begin + (2 * Math.PI * weights.get(group)) / total;
      sectors.set(group, sectorSlots(begin, end, spacing, frame));
      begin = end;
    }
    const enough = groups.every((group) => sectors.get(group).length >= weights.get(group));
    if (enough || spacing === SPACINGS.at(-1)) return { spacing, sectors };
  }
  return { spacing: SPACINGS[0], sectors: new Map() };
}

function sectorSlots(begin, end, spacing, frame) {
  const depth = ((LAST_RING - FIRST_RING) * Math.min(frame.width, frame.height)) / 2;
  const rings = Math.max(1, Math.floor(depth / spacing) + 1);
  const slots = [];
  for (let ring = 0; ring < rings; ring += 1) {
    const radius = rings === 1 ? (FIRST_RING + LAST_RING) / 2 : LAST_RING - ((LAST_RING - FIRST_RING) * ring) / (rings - 1);
    slots.push(...along(radius, begin, end, spacing, frame));
  }
  return slots;
}

function edgeSlots(frame, number) {
  const slots = [];
  for (let ring = 0; slots.length < number * 1.3 && ring < 6; ring += 1) slots.push(...along(EDGE - (ring * 2 * DOT_SPACING) / Math.min(frame.width, frame.height), 0, 2 * Math.PI, DOT_SPACING, frame));
  return slots;
}

/** Points on a part of an ellipse, evenly spaced. */
function along(radius, begin, end, spacing, frame) {
  const at = (turn) => ({ x: frame.width / 2 + (radius * frame.width * Math.cos(turn)) / 2, y: frame.height / 2 + (radius * frame.height * Math.sin(turn)) / 2 });
  const steps = 256;
  const lengths = [0];
  for (let step = 1; step <= steps; step += 1) {
    const one = at(begin + ((end - begin) * (step - 1)) / steps);
    const other = at(begin + ((end - begin) * step) / steps);
    lengths.push(lengths[step - 1] + Math.hypot(other.x - one.x, other.y - one.y));
  }
  const number = Math.floor(lengths[steps] / spacing);
  const points = [];
  let step = 0;
  for (let index = 0; index < number; index += 1) {
    const wanted = ((index + 0.5) * lengths[steps]) / number;
    while (lengths[step + 1] < wanted) step += 1;
    const part = (wanted - lengths[step]) / (lengths[step + 1] - lengths[step] || 1);
    points.push(at(begin + ((end - begin) * (step + part)) / steps));
  }
  return points;
}

/** Give each peer a free slot: its old one, else the first free one from where its id points. */
function occupy(peers, group, slots, kept, taken) {
  const used = new Set();
  const newcomers = [];
  for (const peer of [...peers].sort((one, other) => (one.id < other.id ? -1 : 1))) {
    const old = kept.get(peer.id);
    if (old?.group === group && old.slot < slots && !used.has(old.slot)) {
      used.add(old.slot);
      taken.set(peer.id, old);
    } else newcomers.push(peer);
  }
  for (const peer of newcomers) {
    let slot = hash(peer.id) % slots;
    for (let tries = 0; used.has(slot) && tries < slots; tries += 1) slot = (slot + 1) % slots;
    used.add(slot);
    taken.set(peer.id, { group, slot });
  }
}
