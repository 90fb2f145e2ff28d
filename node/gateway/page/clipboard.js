// Text to the clipboard, by a button that says whether it worked.
// Rule: a browser may refuse the clipboard (a page that is not on this machine and not encrypted); then the text is selected by hand
// in a field that is taken away again.

import { button } from "./dom.js";

const SAID_MS = 1_600;

/** Copy; false where the browser does not allow it. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelecting(text);
  }
}

function copyBySelecting(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  const focused = document.activeElement;
  (document.querySelector("dialog[open]") || document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus?.();
  return done;
}

/** A button that copies what `text()` gives. */
export function copyButton(text, { kind = "bare small", label = "Copy", words = "Copy" } = {}) {
  const made = button(words, async () => {
    made.textContent = (await copy(text())) ? "Copied" : "Not allowed here";
    setTimeout(() => { made.textContent = words; }, SAID_MS);
  }, { kind, label });
  return made;
}
