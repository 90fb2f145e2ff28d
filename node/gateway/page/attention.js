// The page's title, while nobody looks at it.
// Rule: a title says that something is ready until the page is seen again, and then is what it was.

let usual = null;

/** Say it in the title, if the page is not seen. */
export function attention(text) {
  if (!document.hidden) return;
  usual ??= document.title;
  document.title = `● ${text} · ${usual}`;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden || usual === null) return;
  document.title = usual;
  usual = null;
});
