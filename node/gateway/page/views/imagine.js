// Pictures from words: a form, pictures in the making, and a gallery that this browser keeps.
// Rule: each picture is a query of its own, so that one can be stopped or fail without the others.

import { answered, choice } from "../choice.js";
import { Store } from "../database.js";
import { button, confirmed, dialog, el, empty, field, fill, problem, select, spinner, toast } from "../dom.js";
import { when } from "../format.js";
import { recall, remember } from "../settings.js";
import { bytesOf } from "../sound.js";

const SIZES = ["auto", "64x64", "256x256", "512x512", "768x768", "1024x1024", "1024x768", "768x1024"];
const MOST_AT_ONCE = 4;
const IDEAS = ["a red apple", "a grinning cat", "a rocket", "a house with a garden"];
const pictures = new Store("mtor-pictures");

export function mount(root, context) {
  const chosen = choice(context, { realm: "$IMAGINE", remember: "imagine" });
  const making = el("div.cards.making", { "aria-live": "polite", "aria-label": "Pictures in the making" });
  const gallery = el("div.gallery", { role: "list", "aria-label": "Pictures made before" });
  const form = wishes((wish) => begin(context, chosen, wish, making, gallery));
  fill(root,
    el("section.card.stack", { "aria-label": "What to draw" }, form.element, chosen.element),
    making,
    el("section", { "aria-label": "Gallery" }, gallery));
  showGallery(gallery, form);
  return () => chosen.leave?.();
}

/** The form. `submit` gets what is wished; `use` fills it again from a picture. */
function wishes(submit) {
  const last = recall("imagine.wish", {});
  const prompt = el("textarea", { rows: 3, maxlength: 4_000, placeholder: `For example: ${IDEAS.join(", ")}`, value: last.prompt || "" });
  const negative = el("input", { value: last.negative || "", maxlength: 1_000, placeholder: "blurry, text" });
  const size = select(SIZES.map((each) => [each, each === "auto" ? "what the model likes" : each.replace("x", " × ")]), last.size || "auto");
  const count = select([1, 2, 3, 4].slice(0, MOST_AT_ONCE).map((each) => [String(each), String(each)]), last.count || "1");
  const steps = el("input", { type: "number", min: 0, max: 200, value: last.steps || "", placeholder: "auto" });
  const guidance = el("input", { type: "number", min: 0, max: 50, step: 0.5, value: last.guidance || "", placeholder: "auto" });
  const seed = el("input", { type: "number", min: 0, step: 1, value: last.seed || "", placeholder: "random" });
  const read = () => ({ prompt: prompt.value.trim(), negative: negative.value.trim(), size: size.value, count: count.value, steps: steps.value, guidance: guidance.value, seed: seed.value });

  function send(event) {
    event?.preventDefault();
    const wish = read();
    if (!wish.prompt) return prompt.focus();
    remember("imagine.wish", wish);
    return submit(wish);
  }

  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
  });
  const element = el("form.stack", { onsubmit: send },
    field("What should the picture show?", prompt, "Enter draws it; Shift and Enter begin a new line."),
    el("details", {}, el("summary", {}, "More wishes"),
      el("div.fields", {}, field("Not in the picture", negative), field("Size", size), field("Pictures", count),
        field("Steps", steps, "More take longer."), field("Guidance", guidance, "How closely to follow the words."), field("Seed", seed, "The same seed gives the same picture."))),
    el("div.row", {}, el("button.button.primary", {}, "Draw")));

  function use(wish) {
    for (const [input, value] of [[prompt, wish.prompt], [negative, wish.negative], [size, wish.size], [steps, wish.steps], [guidance, wish.guidance], [seed, wish.seed]]) input.value = value || "";
    if (!size.value) size.value = "auto";
    prompt.focus();
    prompt.scrollIntoView({ block: "center" });
  }

  return { element, use };
}

function begin(context, chosen, wish, making, gallery) {
  for (let index = 0; index < Number(wish.count); index++) {
    const seed = wish.seed === "" ? "" : String(Number(wish.seed) + index);
    draw(context, chosen.value(), { ...wish, seed }, making, gallery);
  }
}

/** Ask for one picture and show it in the making. */
function draw(context, asked, wish, making, gallery) {
  const frame = el("div.frame", {}, spinner("waiting for a worker"));
  const said = el("p.small-text.soft", {});
  const bar = el("progress", { "aria-label": "Progress", hidden: true });
  const stop = button("Stop", () => query.cancel(), { kind: "small" });
  const card = el("article.card.stack", { "aria-label": wish.prompt }, frame, bar, el("p.prompt", {}, wish.prompt), said, el("div.row", {}, stop));
  making.prepend(card);
  const parts = [];
  let type = "image/png";
  const query = context.socket.ask("images", body(asked, wish));
  query.on("routed", (event) => {
    const place = event.queue_position ? `${event.queue_position} before it at ${event.model}` : `being drawn by ${event.model}`;
    fill(said, place, event.wait_ms > 1_000 && `, about ${Math.round(event.wait_ms / 1_000)} s`);
    if (!frame.querySelector("img")) fill(frame, spinner(event.queue_position ? "in line" : "drawing"));
  });
  query.on("waiting", (event) => fill(said, `waiting: ${event.reason}`));
  query.on("progress", (event) => {
    bar.hidden = false;
    if (event.total) [bar.max, bar.value] = [event.total, event.done];
    if (event.preview) show(frame, `data:${event.media_type || "image/png"};base64,${event.preview}`, `unfinished: ${wish.prompt}`);
  });
  query.on("bytes", (event) => {
    type = event.media_type;
    parts.push(bytesOf(event.data));
  });
  query.ended.then(async (last) => {
    bar.remove();
    stop.remove();
    if (last.type === "cancelled") return card.remove();
    if (last.type === "failed") return fill(frame, problem(last.error, () => { card.remove(); draw(context, asked, wish, making, gallery); }));
    const picture = { id: crypto.randomUUID(), made: Date.now(), wish, blob: new Blob(parts, { type }), completed: last };
    showObject(frame, picture);
    fill(said, answered(last, context));
    card.append(el("div.row", {}, actions(picture)));
    return keep(picture);
  });
}

function body(asked, wish) {
  return {
    ...asked, // model and mtor
    prompt: wish.prompt,
    stream: true,
    partial_images: 3,
    ...(wish.negative && { negative_prompt: wish.negative }),
    ...(wish.size !== "auto" && { size: wish.size }),
    ...(wish.steps && { steps: Number(wish.steps) }),
    ...(wish.guidance && { guidance: Number(wish.guidance) }),
    ...(wish.seed !== "" && { seed: Number(wish.seed) }),
  };
}

function show(frame, source, text) {
  const image = frame.querySelector("img") || fill(frame, el("img", {})).firstChild;
  image.alt = text;
  image.src = source;
}

/** Show a blob; its address is given back once the browser has the picture. */
function showObject(frame, picture) {
  const address = URL.createObjectURL(picture.blob);
  show(frame, address, picture.wish.prompt);
  const image = frame.querySelector("img");
  image.onload = image.onerror = () => URL.revokeObjectURL(address);
}

async function keep(picture) {
  try {
    await pictures.put(picture);
  } catch (error) {
    toast(`${error.message}. The picture is shown, but not kept: download it, or delete others.`, "bad");
  }
}

async function showGallery(gallery, form) {
  const known = (await pictures.all()).sort((one, other) => other.made - one.made);
  if (!known.length) return fill(gallery, empty("No pictures yet", "What you draw is kept here, in this browser alone."));
  const lasting = await pictures.lasting();
  return fill(gallery, el("div.row.between", {}, el("h2", {}, "Drawn before"), button("Delete all", () => deleteAll(gallery, form), { kind: "small" })),
    !lasting && el("p.hint", {}, "This browser keeps nothing here (a private window?): download what you like."),
    el("div.thumbnails", {}, known.map((picture) => thumbnail(picture, gallery, form))));
}

function thumbnail(picture, gallery, form) {
  const frame = el("button.thumbnail", { type: "button", role: "listitem", "aria-label": `Show: ${picture.wish.prompt}`, onclick: () => enlarge(picture, gallery, form) });
  showObject(frame, picture);
  return frame;
}

function enlarge(picture, gallery, form) {
  const frame = el("div.frame.large", {});
  showObject(frame, picture);
  const reuse = button("Use these wishes", () => { close(); form.use(picture.wish); });
  const remove = button("Delete", async () => {
    if (!(await confirmed("Delete this picture from this browser?", "Delete", { danger: true }))) return;
    await pictures.delete(picture.id);
    close();
    showGallery(gallery, form);
  });
  const facts = [when(picture.made), picture.completed.model, picture.wish.size !== "auto" && picture.wish.size, picture.wish.seed && `seed ${picture.wish.seed}`];
  const close = dialog("Picture", frame, el("p", {}, picture.wish.prompt), el("p.soft.small-text", {}, facts.filter(Boolean).join(" · ")), el("div.row", {}, actions(picture), reuse, remove));
}

function actions(picture) {
  const name = `${picture.wish.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "picture"}.${picture.blob.type === "image/jpeg" ? "jpg" : "png"}`;
  return button("Download", () => {
    const address = URL.createObjectURL(picture.blob);
    el("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1_000);
  });
}

async function deleteAll(gallery, form) {
  if (!(await confirmed("Delete all pictures that this browser keeps?", "Delete all", { danger: true }))) return;
  await pictures.clear();
  showGallery(gallery, form);
}
