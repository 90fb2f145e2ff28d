// Markdown as models write it, to elements.
// Rule: text becomes text nodes and elements of a short list, nothing else: no HTML is read, no picture is fetched, a link goes to
// http, https or mailto and shows where. Time is linear in the text, and depth is bounded, whatever the text is.
//
// While an answer comes, blocks that are complete stay as they are; only the last one is made anew (`MarkdownView`).

import { copyButton } from "./clipboard.js";
import { el, fill } from "./dom.js";

const MOST_DEPTH = 8; // of lists and quotes in each other, and of emphasis
const MOST_COLUMNS = 40;
const MOST_ADDRESS = 2_048; // characters
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const SAFE = new Set(["http:", "https:", "mailto:"]);
const ESCAPED = /[!-/:-@[-`{-~]/;
const TRAILING = ".,;:!?'*_~)]";
const SPECIAL = /[\\`*_~[\]!<h\n]/g;

/** A whole text. */
export function markdown(text) {
  const view = new MarkdownView();
  view.append(text);
  view.finish();
  return view.element;
}

/** A text that grows. `element` holds what came so far; `append` is cheap, and the page is changed once a frame at most. */
export class MarkdownView {
  #done = el("div.blocks");
  #open = el("div.blocks");
  #rest = ""; // the source of what is not complete
  #scanned = 0; // of `#rest`, whole lines
  #scan = startOfScan();
  #timer = null;
  #frame = null;
  #cost = 0; // milliseconds that the last change took
  #code = null; // an open fence: its text only grows

  constructor() {
    this.element = el("div.markdown", {}, this.#done, this.#open);
  }

  append(text) {
    this.#rest += text;
    this.#schedule();
  }

  /** Nothing follows. */
  finish() {
    this.#unschedule();
    this.#settle();
    this.#code = null;
    this.#done.append(...blocks(this.#rest.split("\n"), 0));
    this.#rest = "";
    this.#open.remove();
  }

  /** A long last block costs time, and so is made anew more seldom: a tenth of the time at most goes into it. */
  #schedule() {
    if (this.#timer !== null || this.#frame !== null) return;
    if (document.hidden || this.#cost > 4) this.#timer = setTimeout(() => this.#show(), Math.max(30, this.#cost * 9));
    else this.#frame = requestAnimationFrame(() => this.#show());
  }

  #unschedule() {
    clearTimeout(this.#timer);
    cancelAnimationFrame(this.#frame);
    this.#timer = this.#frame = null;
  }

  #show() {
    this.#unschedule();
    const began = performance.now();
    this.#settle();
    if (!this.#growCode()) fill(this.#open, blocks(this.#rest.split("\n"), 0));
    this.#cost = performance.now() - began;
  }

  /** Move what is complete to where it stays. */
  #settle() {
    for (;;) {
      const end = this.#rest.indexOf("\n", this.#scanned);
      if (end < 0) return;
      const cut = scanLine(this.#scan, this.#rest.slice(this.#scanned, end), this.#scanned);
      this.#scanned = end + 1;
      if (cut > 0) this.#cut(cut);
    }
  }

  #cut(end) {
    this.#done.append(...blocks(this.#rest.slice(0, end).split("\n"), 0));
    this.#rest = this.#rest.slice(end);
    this.#scanned -= end;
    this.#code = null;
    fill(this.#open);
  }

  /** An open fence at the top: only its new text is added. */
  #growCode() {
    if (!this.#scan.topFence) return false;
    const start = this.#rest.indexOf("\n") + 1;
    if (!start) return false;
    const source = this.#rest.slice(start);
    if (!this.#code) {
      const text = document.createTextNode("");
      this.#code = { text, length: 0 };
      fill(this.#open, codeBlock(text, fenceOf(this.#rest.slice(0, start - 1))?.info || "", () => text.data));
    }
    this.#code.text.appendData(source.slice(this.#code.length));
    this.#code.length = source.length;
    return true;
  }
}

// --- where a block is complete --------------------------------------------------------------------------------------

function startOfScan() {
  return { fence: "", topFence: false, blank: false, list: false, empty: true };
}

/** Look at one more whole line; where the text before it (or with it) is complete, its end, else 0. */
function scanLine(scan, line, at) {
  const end = at + line.length + 1;
  const blank = !line.trim();
  if (scan.fence) {
    if (!closes(scan.fence, line)) return 0;
    const top = scan.topFence;
    Object.assign(scan, top ? startOfScan() : { fence: "", blank: false });
    return top ? end : 0;
  }
  if (scan.empty && blank) return end;
  const indent = leading(line);
  const item = ITEM.test(line);
  const fence = fenceOf(withoutSigns(line))?.fence || "";
  const apart = !scan.empty && !blank && scan.blank && indent < 2 && !(scan.list && item);
  const top = fence && !item && indent < 2 && (apart || !scan.list);
  const cut = !scan.empty && (apart || top) ? at : 0;
  if (cut || scan.empty) scan.list = false;
  Object.assign(scan, { fence, topFence: Boolean(top), blank, empty: false, list: scan.list || (item && indent < 2) });
  return cut;
}

/** A line without the signs of the items that it begins. */
function withoutSigns(line) {
  for (let depth = 0; depth < 3; depth += 1) line = line.replace(ITEM, "");
  return line;
}

/** What opens a block of code: {fence, info}. */
function fenceOf(line) {
  const sign = line.trimStart()[0];
  if (sign !== "`" && sign !== "~") return null;
  const text = line.trimStart();
  const length = leadingOf(text, sign);
  const info = text.slice(length);
  return length < 3 || info.includes("`") ? null : { fence: sign.repeat(length), info };
}

function closes(fence, line) {
  const end = line.trim();
  return end.length >= fence.length && end[0] === fence[0] && end === fence[0].repeat(end.length);
}

function leading(line) {
  let count = 0;
  while (line[count] === " ") count += 1;
  return count;
}

// --- blocks ---------------------------------------------------------------------------------------------------------

/** The elements of some lines. */
function blocks(lines, depth) {
  const made = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const reader = READERS.find((each) => each.opens(lines, at, depth)) || PARAGRAPH;
    const [element, next] = reader.read(lines, at, depth);
    made.push(element);
    at = next;
  }
  return made;
}

const CODE = {
  opens: (lines, at) => fenceOf(lines[at]) !== null,
  read(lines, at) {
    const { fence, info } = fenceOf(lines[at]);
    const indent = leading(lines[at]);
    let end = at + 1;
    while (end < lines.length && !closes(fence, lines[end])) end += 1;
    const text = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent, leading(line)))).join("\n");
    return [codeBlock(document.createTextNode(text), info, () => text), end + 1];
  },
};

function codeBlock(text, info, source) {
  const language = info.trim().split(/\s/)[0].slice(0, 30);
  const head = el("div.code-head", {}, el("span", {}, language || "text"), copyButton(source, { label: "Copy this code" }));
  return el("div.code", {}, head, el("pre", {}, el("code", {}, text)));
}

const HEADING = {
  opens: (lines, at) => /^ {0,3}#{1,6}(?: |$)/.test(lines[at]),
  read(lines, at) {
    const line = lines[at].trim();
    const level = leadingOf(line, "#");
    let text = line.slice(level).trim();
    const closing = text.length - trailingOf(text, "#");
    if (closing < text.length && (closing === 0 || text[closing - 1] === " ")) text = text.slice(0, closing).trim();
    return [el(`h${Math.min(level + 2, 6)}`, {}, inline(text)), at + 1]; // the page has h1 and h2
  },
};

const RULE = {
  opens(lines, at) {
    const marks = lines[at].replaceAll(" ", "");
    return marks.length > 2 && "-*_".includes(marks[0]) && leadingOf(marks, marks[0]) === marks.length;
  },
  read: (lines, at) => [el("hr"), at + 1],
};

const QUOTE = {
  opens: (lines, at, depth) => depth < MOST_DEPTH && /^ {0,3}>/.test(lines[at]),
  read(lines, at, depth) {
    let end = at;
    while (end < lines.length && /^ {0,3}>/.test(lines[end])) end += 1;
    const inner = lines.slice(at, end).map((line) => line.trimStart().slice(1)).map((line) => (line[0] === " " ? line.slice(1) : line));
    return [el("blockquote", {}, blocks(inner, depth + 1)), end];
  },
};

const LIST = {
  opens: (lines, at, depth) => depth < MOST_DEPTH && ITEM.test(lines[at]),
  read(lines, at, depth) {
    const [, , sign] = ITEM.exec(lines[at]);
    const ordered = sign.length > 1;
    const items = [];
    let next = at;
    while (next < lines.length) {
      const match = ITEM.exec(lines[next]);
      if (!match || match[2].length > 1 !== ordered || RULE.opens(lines, next)) break;
      const [inner, end] = itemLines(lines, next, match);
      items.push(el("li", {}, tightened(blocks(inner, depth + 1))));
      next = end;
    }
    const start = ordered ? parseInt(sign, 10) : 1;
    return [el(ordered ? "ol" : "ul", { start: ordered && start !== 1 ? start : null }, items), next];
  },
};

/** The lines of one item, without its indent, and where the next begins. */
function itemLines(lines, at, match) {
  const outer = match[1].length;
  const width = Math.min(match[0].length, outer + match[2].length + 4);
  const inner = [lines[at].slice(width)];
  let next = at + 1;
  let blank = false;
  let fence = fenceOf(withoutSigns(inner[0]))?.fence || "";
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    const indent = leading(line);
    if (fence) {
      if (line.trim() && indent <= outer && !closes(fence, line)) break; // its end is missing, or it was none of this item
      if (closes(fence, line)) fence = "";
    } else if (line.trim()) {
      if (indent < outer + 2 && (blank || ITEM.test(line) || READERS.some((each) => each.opens(lines, next, 0)))) break;
      fence = fenceOf(withoutSigns(line))?.fence || "";
    }
    blank = !line.trim();
    inner.push(line.slice(Math.min(indent, width)));
  }
  while (inner.length > 1 && !inner[inner.length - 1].trim()) inner.pop();
  return [inner, next];
}

/** An item's first paragraph needs no element of its own. */
function tightened(elements) {
  if (elements[0]?.tagName === "P") return [...elements[0].childNodes, ...elements.slice(1)];
  return elements;
}

const TABLE = {
  opens: (lines, at) => lines[at].includes("|") && at + 1 < lines.length && isDivider(lines[at], lines[at + 1]),
  read(lines, at) {
    const heads = cells(lines[at]);
    const sides = cells(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : ""));
    let end = at + 2;
    while (end < lines.length && lines[end].includes("|")) end += 1;
    const row = (tag, line) => el("tr", {}, heads.map((_, column) => el(tag, { class: sides[column] || null, scope: tag === "th" ? "col" : null }, inline(line[column] || ""))));
    const body = lines.slice(at + 2, end).map((line) => row("td", cells(line)));
    return [el("div.scroll-x", {}, el("table", {}, el("thead", {}, row("th", heads)), el("tbody", {}, body))), end];
  },
};

function isDivider(head, line) {
  if (!line.includes("-") || !/^[\s|:-]+$/.test(line)) return false;
  const parts = cells(line);
  return parts.length <= MOST_COLUMNS && parts.length === cells(head).length && parts.every((part) => /^:?-+:?$/.test(part));
}

function cells(line) {
  let text = line.trim();
  if (text.startsWith("|")) text = text.slice(1);
  if (text.endsWith("|") && !text.endsWith("\\|")) text = text.slice(0, -1);
  return text.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

const READERS = [CODE, HEADING, RULE, QUOTE, LIST, TABLE];

const PARAGRAPH = {
  read(lines, at) {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && !READERS.some((each) => opensInside(each, lines, end))) end += 1;
    return [el("p", {}, inline(lines.slice(at, end).map((line) => line.trim()).join("\n"))), end];
  },
};

/** What may end a paragraph. A number begins a list there only if it is 1: a sentence may end with a year. */
function opensInside(reader, lines, at) {
  if (reader === LIST && /^ *\d/.test(lines[at]) && !/^ *1[.)]/.test(lines[at])) return false;
  return reader.opens(lines, at, 0);
}

function leadingOf(text, sign) {
  let count = 0;
  while (text[count] === sign) count += 1;
  return count;
}

function trailingOf(text, sign) {
  let count = 0;
  while (count < text.length && text[text.length - 1 - count] === sign) count += 1;
  return count;
}

// --- inside a block -------------------------------------------------------------------------------------------------

/** The nodes of a line or paragraph. */
function inline(text) {
  return emphasized(tokens(text), 0);
}

/** Text, elements, and marks that may emphasize: {mark, count, opens, closes}. */
function tokens(text) {
  const found = [];
  const brackets = []; // indices in `found` of open ones
  const ticks = codeSpans(text);
  let at = 0;
  let plain = "";
  const flush = () => {
    if (plain) found.push(plain);
    plain = "";
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const special = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(at, special);
    at = special;
    if (at >= text.length) break;
    const sign = text[at];
    if (sign === "\\" && ESCAPED.test(text[at + 1] || "")) {
      plain += text[at + 1];
      at += 2;
    } else if (sign === "`") {
      const length = leadingOf(text.slice(at, at + 64), "`");
      const end = ticks(at, length);
      if (end < 0) {
        plain += text.slice(at, at + length);
        at += length;
      } else {
        flush();
        found.push(el("code", {}, text.slice(at + length, end).replaceAll("\n", " ").trim() || " "));
        at = end + length;
      }
    } else if (sign === "*" || sign === "_" || (sign === "~" && text[at + 1] === "~")) {
      flush();
      const mark = flanking(text, at, sign);
      found.push(mark);
      at += mark.count;
    } else if (sign === "[" || (sign === "!" && text[at + 1] === "[")) {
      flush();
      brackets.push(found.length);
      found.push({ bracket: text.startsWith("![", at) ? "![" : "[" });
      at += sign === "!" ? 2 : 1;
    } else if (sign === "]" && brackets.length) {
      flush();
      const open = brackets.pop();
      const target = addressAfter(text, at + 1);
      if (target) {
        const inside = found.splice(open);
        brackets.length = 0; // no links in links
        found.push(linked(inside[0].bracket, emphasized(inside.slice(1).map(withoutLink), MOST_DEPTH - 2), target.address));
        at = target.end;
      } else {
        found.push("]");
        at += 1;
      }
    } else if (sign === "<" || (sign === "h" && !/\w/.test(text[at - 1] || ""))) {
      const bare = bareAddress(text, at);
      if (bare) {
        flush();
        found.push(linked("[", [bare.address], bare.address));
        at = bare.end;
      } else {
        plain += sign;
        at += 1;
      }
    } else if (sign === "\n") {
      flush();
      found.push(el("br"));
      at += 1;
    } else {
      plain += sign;
      at += 1;
    }
  }
  flush();
  return found;
}

/** No links in links. */
function withoutLink(item) {
  return item instanceof Element && item.querySelector("a") ? item.textContent : item;
}

/** Where a run of backticks finds its like: each run is looked at once. */
function codeSpans(text) {
  const places = new Map(); // length -> positions, in order
  for (const match of text.matchAll(/`+/g)) {
    if (!places.has(match[0].length)) places.set(match[0].length, []);
    places.get(match[0].length).push(match.index);
  }
  const next = new Map();
  return (at, length) => {
    const list = places.get(length) || [];
    let index = next.get(length) || 0;
    while (index < list.length && list[index] <= at) index += 1;
    next.set(length, index);
    return index < list.length ? list[index] : -1;
  };
}

function flanking(text, at, sign) {
  let count = 0;
  while (text[at + count] === sign) count += 1;
  const before = text[at - 1] || " ";
  const after = text[at + count] || " ";
  const [wordBefore, wordAfter] = [/[\p{L}\p{N}]/u.test(before), /[\p{L}\p{N}]/u.test(after)];
  const left = !/\s/.test(after) && (wordAfter || !wordBefore);
  const right = !/\s/.test(before) && (wordBefore || !wordAfter);
  const inWord = sign === "_" && wordBefore && wordAfter; // snake_case is no emphasis
  return { mark: sign, count, opens: left && !inWord, closes: right && !inWord };
}

/** "(address)" or "(address "title")" behind a link's text. */
function addressAfter(text, at) {
  if (text[at] !== "(") return null;
  const limit = Math.min(text.length, at + MOST_ADDRESS);
  let depth = 1;
  let end = at + 1;
  for (; end < limit; end += 1) {
    if (text[end] === "(") depth += 1;
    if (text[end] === ")") depth -= 1;
    if (depth === 0 || depth > 3 || text[end] === "\n") break;
  }
  if (depth !== 0 || end >= limit) return null;
  const address = text.slice(at + 1, end).trim().split(/\s/)[0].replace(/^<|>$/g, "");
  return { address, end: end + 1 };
}

/** An address that stands by itself, in <> or not. */
function bareAddress(text, at) {
  const framed = text[at] === "<";
  const match = /^(?:https?:\/\/|mailto:)[^\s<>"`[\]]{1,2000}/.exec(text.slice(at + framed, at + framed + MOST_ADDRESS));
  if (!match) return null;
  if (framed) return text[at + 1 + match[0].length] === ">" ? { address: match[0], end: at + match[0].length + 2 } : null;
  let length = match[0].length;
  const framing = match[0].includes("(") ? ")" : "";
  while (length > 0 && TRAILING.includes(match[0][length - 1]) && match[0][length - 1] !== framing) length -= 1;
  return { address: match[0].slice(0, length), end: at + length };
}

/** A link that shows where it goes; only its text if it goes nowhere that is safe. */
function linked(bracket, content, address) {
  const picture = bracket === "![";
  const shown = picture ? ["🖼 ", ...(content.length ? content : ["picture"])] : content;
  let url = null;
  try {
    url = new URL(address);
  } catch {
    // relative or broken: a model's answer has no place of its own that it could be relative to
  }
  if (!url || !SAFE.has(url.protocol)) return el("span", {}, shown);
  const where = url.protocol === "mailto:" ? url.pathname : url.host;
  const text = shown.map((each) => (typeof each === "string" ? each : each.textContent)).join("");
  const said = text.includes(where) && text === address ? null : el("span.where", {}, ` (${where})`);
  return el("span", {}, el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, shown), said);
}

/** Pair the marks. Each closing one looks back only to where the last of its kind in vain stopped, so that all is linear. */
function emphasized(found, depth) {
  const list = found.map((item) => ({ item, nodes: null, depth: 0 }));
  const openers = []; // indices of marks that may still open
  const bottom = {}; // by kind: below this index in `openers` there is none
  for (let at = 0; at < list.length; at += 1) {
    const closer = list[at].item;
    if (!closer.mark) continue;
    while (closer.closes && closer.count > 0) {
      const kind = `${closer.mark}${closer.opens}${closer.count % 3}`;
      const place = openerFor(openers, list, closer, bottom[kind] || 0);
      if (place < 0) {
        bottom[kind] = openers.length;
        break;
      }
      const start = openers[place];
      const wrapped = wrap(list, start, at, depth);
      openers.length = wrapped ? place + (list[start].item.count > 0) : 0; // too deep here is too deep for all around it
      for (const each of Object.keys(bottom)) bottom[each] = Math.min(bottom[each], openers.length);
      if (!wrapped) break;
    }
    if (closer.opens && closer.count > 0) openers.push(at);
  }
  return joined(list);
}

/** The nodes of a list, with texts in a row as one. */
function joined(list) {
  const made = [];
  for (const { item, nodes } of list) {
    for (const node of nodes || [shownAsText(item)]) {
      if (typeof node === "string" && typeof made[made.length - 1] === "string") made[made.length - 1] += node;
      else if (node !== "") made.push(node);
    }
  }
  return made;
}

function openerFor(openers, list, closer, bottom) {
  for (let place = openers.length - 1; place >= bottom; place -= 1) {
    const opener = list[openers[place]].item;
    if (opener.mark !== closer.mark || opener.count === 0) continue;
    if (closer.mark === "~" && opener.count !== closer.count) continue;
    if ((opener.closes || closer.opens) && (opener.count + closer.count) % 3 === 0 && (opener.count % 3 || closer.count % 3)) continue;
    return place;
  }
  return -1;
}

/** Put what stands between two marks into an element, which takes the place of the first thing behind the opener. */
function wrap(list, start, end, depth) {
  const [opener, closer] = [list[start].item, list[end].item];
  let deepest = 0;
  for (let at = start + 1; at < end; at += 1) deepest = Math.max(deepest, list[at].depth);
  if (deepest + depth >= MOST_DEPTH) return false;
  const size = opener.mark === "~" ? opener.count : Math.min(opener.count, closer.count, 2);
  const inside = joined(list.slice(start + 1, end));
  const tag = opener.mark === "~" ? "del" : size === 2 ? "strong" : "em";
  opener.count -= size;
  closer.count -= size;
  for (let at = start + 1; at < end; at += 1) Object.assign(list[at], { nodes: [], depth: 0, item: "" });
  Object.assign(list[end - 1], { nodes: [el(tag, {}, inside)], depth: deepest + 1 });
  return true;
}

function shownAsText(item) {
  if (item.mark) return item.mark.repeat(item.count);
  return item.bracket || item;
}
