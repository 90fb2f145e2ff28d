// Elements without HTML text.
// Rule: what others wrote (answers, names of models and peers, errors) enters the page as text nodes alone. No file of this
// page uses innerHTML or its kin; the policy of the server (require-trusted-types-for) would refuse it.

/** An element. `properties`: class, dataset, aria-*, on… handlers, attributes. Children: nodes, text, or arrays; null is left out. */
export function el(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.classList.add(...classes);
  apply(element, properties);
  append(element, children);
  return element;
}

/** An SVG element. */
export function svg(tag, properties = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  apply(element, properties);
  append(element, children);
  return element;
}

function apply(element, properties) {
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") element.classList.add(...String(value).split(" ").filter(Boolean));
    else if (key === "dataset") Object.assign(element.dataset, value);
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked" || key === "indeterminate" || key === "disabled" || key === "hidden") element[key] = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** Put children in place of what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

/** A button. `label` is read out where the text is only a sign. */
export function button(text, onclick, { kind = "", label = "", ...more } = {}) {
  return el("button", { type: "button", class: `button ${kind}`, "aria-label": label || null, title: label || null, onclick, ...more }, text);
}

/** A labelled field around an input, with an optional hint. */
export function field(label, input, hint = "") {
  input.id ||= `f${++fields}`;
  const described = hint ? el("p.hint", { id: `${input.id}-hint` }, hint) : null;
  if (described) input.setAttribute("aria-describedby", described.id);
  return el("div.field", {}, el("label", { for: input.id }, label), input, described);
}
let fields = 0;

/** A drop-down list; options: [value, text] pairs. */
export function select(options, value, onchange, more = {}) {
  const list = el("select", { onchange: () => onchange?.(list.value), ...more });
  fill(list, options.map(([key, text]) => el("option", { value: key }, text)));
  list.value = value;
  return list;
}

/** Something turns while one waits. */
export function spinner(text = "") {
  return el("span.waiting", { role: "status" }, el("span.spinner", { "aria-hidden": "true" }), text && el("span", {}, text));
}

/** What went wrong, and what to do. */
export function problem(error, retry = null) {
  const text = typeof error === "string" ? error : error?.message || "something went wrong and gave no reason";
  return el("div.problem", { role: "alert" }, el("p", {}, text), retry && button("Try again", retry, { kind: "small" }));
}

/** An empty place that says what would fill it. */
export function empty(title, text, ...actions) {
  return el("div.empty", {}, el("h2", {}, title), el("p", {}, text), actions.length ? el("div.row", {}, actions) : null);
}

/** A message that goes away by itself. kind: "", "good" or "bad". */
export function toast(text, kind = "") {
  const shown = el("div.toast", { class: kind }, el("span", {}, text), button("×", () => shown.remove(), { kind: "bare", label: "Close this message" }));
  document.getElementById("toasts").append(shown);
  setTimeout(() => shown.remove(), kind === "bad" ? 12_000 : 6_000);
}

/** Ask yes or no in a dialog; a promise of true or false. */
export function confirmed(question, yes = "Yes", { danger = false } = {}) {
  return new Promise((resolve) => {
    const dialog = el("dialog.dialog", { onclose: () => { dialog.remove(); resolve(dialog.returnValue === "yes"); } },
      el("p", {}, question),
      el("form.row.end", { method: "dialog" },
        el("button.button", { value: "no" }, "Cancel"),
        el("button.button", { value: "yes", class: danger ? "danger" : "primary" }, yes)));
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A dialog with any content; closes by Escape, its button, or the returned function. */
export function dialog(title, ...content) {
  const box = el("dialog.dialog", { "aria-label": title, onclose: () => box.remove() },
    el("div.row.between", {}, el("h2", {}, title), button("×", () => box.close(), { kind: "bare", label: "Close" })), content);
  document.body.append(box);
  box.showModal();
  return () => box.close();
}
