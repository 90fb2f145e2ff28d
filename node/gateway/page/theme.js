// Light, dark, or as the system has it.
// Rule: the choice is an attribute of the document that the style's tokens follow; "auto" takes it away.

import { fill, svg } from "./dom.js";
import { recall, remember } from "./settings.js";

const ORDER = ["auto", "light", "dark"];
const NAMES = { auto: "as the system", light: "light", dark: "dark" };
const SHAPES = {
  auto: [["path", { d: "M12 3a9 9 0 1 0 0 18Z", fill: "currentColor" }], ["circle", { cx: 12, cy: 12, r: 9 }]],
  light: [["circle", { cx: 12, cy: 12, r: 4.5 }], ["path", { d: "M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M19 5l-1.4 1.4M6.4 17.6 5 19" }]],
  dark: [["path", { d: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5Z" }]],
};

/** Take the remembered choice, and make `button` go on to the next. */
export function themeSwitch(button) {
  let theme = ORDER.includes(recall("theme", "auto")) ? recall("theme", "auto") : "auto";
  const show = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const label = `Colours: ${NAMES[theme]}. Change.`;
    button.setAttribute("aria-label", label);
    button.title = label;
    fill(button, svg("svg", { viewBox: "0 0 24 24", width: 20, height: 20, fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round", "aria-hidden": "true" },
      SHAPES[theme].map(([tag, properties]) => svg(tag, properties))));
  };
  button.addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    remember("theme", theme === "auto" ? undefined : theme);
    show();
  });
  show();
}
