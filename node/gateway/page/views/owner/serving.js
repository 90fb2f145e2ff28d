// Serve a model: realm, slots, device, prices; then its way into memory.

import { button, el, field, fill, problem, select, toast } from "../../dom.js";
import { duration, exact, tidy } from "../../format.js";
import { bar } from "../../pieces.js";

const DEVICES = [["", "where it fits"], ["cuda", "a graphics card"], ["cpu", "the CPU"]];

/** Ask how to serve a model of the store, and do it. `done()` when it is served. */
export function serveDialog(operator, row, done) {
  const realm = el("input", { autocomplete: "off", spellcheck: "false", placeholder: row.realm, pattern: "\\$[A-Z0-9_\\-]{1,31}" });
  const slots = number("2", 1, 64);
  const device = select(DEVICES, "");
  const priceIn = number("1000", 0);
  const priceOut = number("3000", 0);
  const keep = el("input", { type: "checkbox", checked: true });
  const said = el("div", { "aria-live": "polite" });
  const stopping = new AbortController();
  const send = el("button.button.primary", {}, "Serve it");
  const box = el("dialog.dialog.wide", { "aria-label": `Serve ${tidy(row.name)}`, onclose: () => { stopping.abort(); box.remove(); } });
  fill(box, el("form.stack", { onsubmit: serve },
    el("h2.long", {}, `Serve ${tidy(row.name)}`),
    el("div.fields", {},
      field("Realm", realm, "Left empty: what the model is made for."),
      field("Slots", slots, "Queries answered at once."),
      field("Device", device),
      priced("Price in", priceIn, "prompt"), priced("Price out", priceOut, "answer")),
    el("p.hint", {}, "What is left empty is as realms.yml has it, or as shown."),
    el("label.row", {}, keep, "also after a restart (written to realms.yml)"),
    said, el("div.row.end", {}, button("Cancel", () => box.close()), send)));
  document.body.append(box);
  box.showModal();

  async function serve(event) {
    event.preventDefault();
    if (send.disabled) return;
    send.disabled = true;
    const wish = { model: row.name, keep: keep.checked };
    for (const [name, input] of [["slots", slots], ["price_in", priceIn], ["price_out", priceOut]]) if (input.value) wish[name] = input.valueAsNumber;
    if (realm.value.trim()) wish.realm = realm.value.trim();
    if (device.value) wish.device = device.value;
    fill(said, bar(null, "loading"), el("p.hint", {}, "Asking"));
    try {
      const last = await operator.stream("serving.start", wish, (line) => {
        const whole = line.total_bytes || line.total_count;
        fill(said, bar(whole ? (line.done_bytes || line.done_count) / whole : null, "loading"), el("p.hint", {}, [tidy(line.message || line.step, 300), line.seconds ? duration(line.seconds) : ""].filter(Boolean).join(" · ")));
      }, stopping.signal);
      toast([`${tidy(row.name)} is served`, tidy(last.note, 300)].filter(Boolean).join("; "), "good");
      box.close();
    } catch (error) {
      if (error.name !== "AbortError") fill(said, problem(error));
      send.disabled = false;
    }
    done();
  }
}

/** A whole number; left empty it is what realms.yml says, or the usual one, which is shown. */
function number(usual, min, max = null) {
  return el("input", { type: "number", min, max, step: "1", placeholder: usual });
}

/** A price field that says what it means in credits. */
function priced(label, input, what) {
  const made = field(`${label} (µcredits)`, input, " ");
  const hint = made.querySelector(".hint");
  const say = () => {
    const micro = input.value ? input.valueAsNumber : Number(input.placeholder);
    hint.textContent = `${micro ? (Number.isSafeInteger(micro) ? exact(micro) : "?") : "nothing"} for 1,000 ${what} tokens`;
  };
  input.addEventListener("input", say);
  say();
  return made;
}
