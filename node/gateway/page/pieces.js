// Pieces that several views are made of: buttons that work for a while, facts, text to copy, what is asked again and again.
// Rule: nothing is asked while nobody looks; a failure keeps what was shown, and says what went wrong.

import { copyButton } from "./clipboard.js";
import { button, el, fill, problem, spinner, toast } from "./dom.js";

/** A button that works for a while: it turns meanwhile, cannot be pressed twice, and says what failed. */
export function action(text, run, { live = null, key = "", ...more } = {}) {
  const made = button(text, async () => {
    if (made.getAttribute("aria-busy")) return;
    made.setAttribute("aria-busy", "true"); // and not `disabled`, which would lose the keyboard's place
    made.prepend(el("span.spinner", { "aria-hidden": "true" }));
    const done = live?.hold();
    try {
      await run();
    } catch (error) {
      if (error.name !== "AbortError") toast(error.message, "bad");
    } finally {
      made.querySelector(".spinner")?.remove();
      made.removeAttribute("aria-busy");
      done?.();
    }
  }, { ...more, "data-key": key || null });
  return made;
}

/** Names and values, two columns. A row whose value is null is left out. */
export function facts(rows) {
  return el("dl.facts", {}, rows.filter((row) => row && row[1] !== null && row[1] !== undefined && row[1] !== "").map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

/** A small button that copies. */
function copier(text, label) {
  return copyButton(() => text, { kind: "small", label });
}

/** Code with a button that copies it. */
export function snippet(code, label) {
  return el("div.snippet", {}, el("pre", { tabindex: "0", "aria-label": label }, el("code", {}, code)), copier(code, `Copy: ${label}`));
}

/** An id that is long: its end, the whole of it in the title, and a button that copies it. */
export function identity(id) {
  return el("span.identity", {}, el("code", { title: id }, id), copier(id, `Copy ${id}`));
}

/** A bar from 0 to 1 with words; `value` null: nobody knows how far. */
export function bar(value, label) {
  return el("progress", { max: "1", value: value === null ? undefined : Math.min(1, Math.max(0, value)), "aria-label": label });
}

/** Put `children` in place of what an element holds; what had the keyboard keeps it, if it has a `data-key`. */
export function redraw(place, ...children) {
  const key = place.contains(document.activeElement) ? document.activeElement.dataset.key : "";
  const open = new Set([...place.querySelectorAll("details[open][data-key]")].map((each) => each.dataset.key));
  fill(place, ...children);
  for (const each of place.querySelectorAll("details[data-key]")) each.open ||= open.has(each.dataset.key);
  if (key) place.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

/**
 * Ask again and again while somebody looks. `load()` gives a value, `show(value, place)` draws it, also again.
 * Returns {refresh, stop, hold}: hold() keeps everything still until the function that it returns is called.
 */
export function live(root, load, show, { seconds = 5, waiting = "Asking the node" } = {}) {
  const trouble = el("div");
  const place = el("div.stack", {}, spinner(waiting));
  let timer = 0;
  let shown = null;
  let holds = 0;
  let asking = false;
  let again = false;
  let stopped = false;

  async function refresh() {
    clearTimeout(timer);
    if (stopped || holds || document.hidden) return;
    if (asking) {
      again = true;
      return;
    }
    asking = true;
    try {
      draw(await load());
    } catch (error) {
      failed(error);
    }
    asking = false;
    if (again) {
      again = false;
      refresh();
    } else if (!stopped) timer = setTimeout(refresh, seconds * 1_000);
  }

  function draw(value) {
    if (stopped || holds) return;
    fill(trouble);
    const stamp = JSON.stringify(value);
    if (stamp === shown) return;
    if (shown === null) fill(place);
    shown = stamp;
    show(value, place);
  }

  function failed(error) {
    if (stopped) return;
    if (error.status === undefined) console.error(error); // not the node's answer but a fault of this page
    fill(trouble, problem(shown === null ? error : `This may be old: ${error.message}`, refresh));
    if (shown === null) fill(place);
  }

  function hold() {
    holds += 1;
    let held = true;
    return () => {
      if (held) holds -= 1;
      held = false;
      refresh();
    };
  }

  function stop() {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", refresh);
  }

  fill(root, trouble, place);
  document.addEventListener("visibilitychange", refresh);
  refresh();
  return { refresh, stop, hold };
}

/** A form: fields, a button, and what is wrong. `submit()` may throw; its message is shown beside the button. */
export function form(submit, text, children, { kind = "primary" } = {}) {
  const said = el("div", {});
  const send = el("button.button", { class: kind }, text);
  let working = false;
  return el("form.stack", {
    onsubmit: async (event) => {
      event.preventDefault();
      if (working) return;
      working = true;
      fill(said, spinner());
      try {
        await submit();
        fill(said);
      } catch (error) {
        fill(said, problem(error));
      }
      working = false;
    },
  }, children, el("div.row", {}, send, said));
}

/** What the owner's views show while the page is locked. */
export function locked(context, what) {
  return el("div.empty", {}, el("h2", {}, what), el("p", {}, "Only the owner of this node may look here. On the machine where it runs, type ",
    el("code", {}, "mtor open"), " in a terminal."), el("div.row", {}, button("Unlock", () => context.unlock(), { kind: "primary" })));
}

/** Mount `inside` while the page is unlocked, an explanation while it is locked. Returns a function that ends it. */
export function ownersOnly(root, context, what, inside) {
  let leave = null;
  const end = context.operator.unlocked.watch((unlocked) => {
    leave?.();
    leave = null;
    fill(root);
    if (unlocked) leave = inside(root);
    else fill(root, locked(context, what));
  });
  return () => {
    end();
    leave?.();
  };
}
