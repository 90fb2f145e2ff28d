// The map: this node in the middle, its peers around it.
// Rule: elements belong to peers and are moved, not made anew; style sheets do the moving, so that who wants no motion has none.

import { fill, svg } from "../../dom.js";
import { layout } from "./layout.js";
import { called, colour, described } from "./peers.js";

const OWN = 30; // px, half of this node's mark
const LABELS_FROM = 60; // px between peers
const GONE_MS = 500;

export class NetworkMap {
  #on;
  #lines = svg("g", { class: "lines" });
  #marks = svg("g", { class: "marks" });
  #made = new Map(); // id -> {line, mark, …}
  #memory = null;
  #size = { width: 0, height: 0 };
  #model = null;
  #chosen = "";
  #watcher;

  /** on: {show(id), choose(id), leave()} */
  constructor(on) {
    this.#on = on;
    this.svg = svg("svg", { class: "map", role: "group", "aria-label": "Map of the network; arrow keys go from peer to peer" }, this.#lines, this.#marks);
    this.svg.addEventListener("keydown", (event) => this.#key(event));
    this.#watcher = new ResizeObserver(() => this.#resized());
    this.#watcher.observe(this.svg);
  }

  stop() {
    this.#watcher.disconnect();
  }

  /** Draw {own, peers} as they are now. */
  update(model) {
    this.#model = model;
    if (!this.#size.width) return;
    const { width, height } = this.#size;
    const found = layout(model.peers, width, height, this.#memory);
    this.#memory = found.memory;
    this.svg.dataset.labels = found.spacing >= LABELS_FROM ? "yes" : "no";
    const size = Math.min(20, Math.max(6, found.spacing * 0.3));
    const now = new Set(model.peers.map((peer) => peer.id)).add(model.own.id);
    for (const [id, parts] of this.#made) if (!now.has(id)) this.#remove(id, parts);
    for (const peer of model.peers) this.#peer(peer, found.places.get(peer.id), peer.group ? size : 3.5);
    this.#peer(model.own, { x: width / 2, y: height / 2 }, OWN);
    this.#oneStop();
  }

  /** Mark the peer that is looked at. */
  choose(id) {
    this.#chosen = id;
    for (const [each, parts] of this.#made) {
      parts.mark.classList.toggle("chosen", each === id);
      parts.mark.setAttribute("aria-pressed", String(each === id));
      parts.line.classList.toggle("chosen", each === id);
    }
    this.#oneStop();
  }

  #resized() {
    const { width, height } = this.svg.getBoundingClientRect();
    if (!width || (Math.abs(width - this.#size.width) < 2 && Math.abs(height - this.#size.height) < 2)) return;
    this.#size = { width: Math.round(width), height: Math.round(height) };
    this.svg.setAttribute("viewBox", `0 0 ${this.#size.width} ${this.#size.height}`);
    if (this.#model) this.update(this.#model);
  }

  #peer(peer, place, size) {
    const parts = this.#made.get(peer.id) || this.#make(peer.id);
    const moved = !parts.place || parts.place.x !== place.x || parts.place.y !== place.y;
    parts.peer = peer;
    if (moved) {
      parts.place = place;
      parts.mark.style.transform = `translate(${place.x.toFixed(1)}px, ${place.y.toFixed(1)}px)`;
      this.#draw(parts.line, place);
    }
    const stamp = JSON.stringify([peer.offers, peer.name, peer.connected, size]);
    if (parts.stamp === stamp) return;
    parts.stamp = stamp;
    drawn(parts, peer, size);
  }

  /** A line from the middle. It fades in at its new place, since lines cannot be moved by a style sheet. */
  #draw(line, place) {
    const ends = { x1: this.#size.width / 2, y1: this.#size.height / 2, x2: place.x, y2: place.y };
    for (const [name, value] of Object.entries(ends)) line.setAttribute(name, value.toFixed(1));
    line.classList.add("coming");
    soon(() => line.classList.remove("coming"));
  }

  #make(id) {
    const mark = svg("g", { class: "mark coming", role: "button", tabindex: "-1", dataset: { peer: id } });
    const line = svg("line", { class: "line coming" });
    mark.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && this.#on.show(id));
    mark.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.#on.leave());
    mark.addEventListener("focus", () => mark.matches(":focus-visible") && this.#on.show(id));
    mark.addEventListener("click", () => this.#on.choose(id));
    this.#marks.append(mark);
    this.#lines.append(line);
    soon(() => mark.classList.remove("coming"));
    const parts = { mark, line, place: null, stamp: "", peer: null };
    this.#made.set(id, parts);
    return parts;
  }

  #remove(id, parts) {
    const focused = parts.mark === document.activeElement;
    this.#made.delete(id);
    for (const each of [parts.mark, parts.line]) {
      each.classList.add("coming");
      setTimeout(() => each.remove(), GONE_MS);
    }
    if (focused) this.#made.get(this.#model.own.id)?.mark.focus();
  }

  // --- the keyboard ---------------------------------------------------------------------------------

  /** One stop for the tabulator: the chosen peer, or this node. */
  #oneStop() {
    const stop = document.activeElement?.dataset?.peer || this.#chosen;
    const id = this.#made.has(stop) ? stop : this.#model?.own.id;
    for (const [each, parts] of this.#made) parts.mark.setAttribute("tabindex", each === id ? "0" : "-1");
  }

  #key(event) {
    const from = this.#made.get(document.activeElement?.dataset?.peer);
    if (!from) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.#on.choose(from.peer.id);
      return;
    }
    const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const next = this.#nearest(from, way);
    if (!next) return;
    next.mark.setAttribute("tabindex", "0");
    next.mark.focus();
    this.#on.show(next.peer.id);
    this.#oneStop();
  }

  #nearest(from, [right, down]) {
    let best = null;
    for (const parts of this.#made.values()) {
      const x = parts.place.x - from.place.x;
      const y = parts.place.y - from.place.y;
      const ahead = x * right + y * down;
      if (parts === from || ahead <= 1) continue;
      const far = ahead + 2.5 * Math.abs(x * down + y * right);
      if (!best || far < best.far) best = { parts, far };
    }
    return best?.parts;
  }
}

/** After the next frame, so that a style sheet sees the change. */
function soon(change) {
  requestAnimationFrame(() => requestAnimationFrame(change));
}

function drawn({ mark, line }, peer, size) {
  mark.setAttribute("class", `mark${peer.own ? " own" : ""}${peer.group ? "" : " idle"}${peer.connected ? "" : " apart"}${mark.classList.contains("chosen") ? " chosen" : ""}${mark.classList.contains("coming") ? " coming" : ""}`);
  mark.setAttribute("aria-label", described(peer));
  const load = peer.slots ? Math.min(1, peer.busy / peer.slots) : 0;
  fill(mark,
    svg("circle", { class: "reach", r: Math.max(size + 3, peer.group ? 11 : 6.5) }),
    svg("circle", { class: "face", r: size }),
    load > 0 && svg("circle", { class: `load fill-${colour(peer.group)}`, r: (size - 2.5) * Math.sqrt(load) }),
    ring(peer.realms, size),
    peer.own && svg("text", { class: "sign", dy: "0.35em" }, "you"),
    peer.queued > 0 && badge(peer.queued, size),
    svg("text", { class: "label", y: size + 15 }, cut(called(peer))));
  line.setAttribute("class", `line${peer.own ? " own" : ""}${peer.group ? "" : " idle"}${peer.connected ? "" : " apart"}${line.classList.contains("coming") ? " coming" : ""}${line.classList.contains("chosen") ? " chosen" : ""} stroke-${colour(peer.busy ? peer.group : "")}`);
  const thick = Math.min(1, size / 14); // thinner where many are
  line.style.strokeWidth = `${peer.busy ? 1.2 + thick * Math.min(5, peer.busy * 0.8 + load * 1.5 + peer.queued * 0.3) : 1}px`;
}

/** A ring with a part for each realm that is served. */
function ring(realms, size) {
  if (!realms.length) return null;
  const around = 2 * Math.PI * size;
  const part = around / realms.length;
  return realms.map((realm, index) => svg("circle", {
    class: `ring stroke-${colour(realm)}`, r: size, "stroke-dasharray": `${part - (realms.length > 1 ? 2 : 0)} ${around}`, "stroke-dashoffset": -index * part, transform: "rotate(-90)",
  }));
}

function badge(queued, size) {
  const text = queued > 99 ? "99+" : String(queued);
  const width = 9 + 6 * text.length;
  return svg("g", { class: "badge", transform: `translate(${size * 0.72} ${-size * 0.72})` },
    svg("rect", { x: -width / 2, y: -8, width, height: 16, rx: 8 }), svg("text", { dy: "0.35em" }, text));
}

function cut(text) {
  const signs = [...text];
  return signs.length > 12 ? `${signs.slice(0, 11).join("")}…` : text;
}
