// What this browser remembers: choices, in localStorage; nothing of it leaves the browser.
// Rule: a broken or full store costs the memory of a choice, never the page.

const PREFIX = "mtor.";

/** A remembered value, or `otherwise`. */
export function recall(name, otherwise) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/** Remember a value; undefined forgets it. False where it could not be kept. */
export function remember(name, value) {
  try {
    if (value === undefined) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
