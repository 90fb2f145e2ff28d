// From a node that has just been installed to a first answer, without reading anything: what is missing, and one button that gets it.
// Rule: what can be asked is seen in the node's own state; the way there is never a guess, and goes on by itself wherever it can.

import { button, el, fill, problem, spinner } from "./dom.js";
import { bytes } from "./format.js";
import { Observable } from "./observable.js";

const EXAMPLES = ["What is the capital of France?", "Write a short poem about a cat who codes.", "Explain to a child why the sky is blue."];
const NOT_FOR_CHAT = ["$VISION", "$IMAGINE", "$SPEECH"];
const STEPS = { fetch: "Fetching it", verify: "Checking it", convert: "Converting it, once", looking: "Looking where it fits", loading: "Loading it" };

/** What is being got ready: {title, text, done, total, error, cancel} or null. It goes on while another view is shown. */
const work = new Observable(null);

/** What can be asked now: connecting, ready, paused, loading or nothing. */
export function standingOf(node) {
  if (!node) return "connecting";
  if (node.offers.some((offer) => offer.slots > 0 && !NOT_FOR_CHAT.includes(offer.realm))) return "ready";
  if (node.paused) return "paused";
  return node.loading.length ? "loading" : "nothing";
}

/** The empty conversation. `use(words)` puts an example into the composer, `ready()` is called when asking becomes possible. */
export function welcome(context, { use, ready }) {
  const element = el("div.welcome");
  let shown = "";
  let before = "";

  function show() {
    const node = context.node.value;
    const standing = work.value ? "working" : standingOf(node);
    const key = JSON.stringify([standing, node?.loading, node?.pause_reason, standing === "nothing" && context.operator.unlocked.value, work.value?.error?.message, work.value?.title, Boolean(node?.peers.length)]);
    if (key !== shown) fill(element, VIEWS[standing](node));
    shown = key;
    if (standing === "working") showProgress();
    if (standing === "ready" && ["working", "loading"].includes(before)) ready();
    before = standing;
  }

  // --- nothing can be asked ----------------------------------------------------------------------------------------

  const VIEWS = {
    connecting: () => el("div.empty", {}, spinner("connecting to the node")),
    ready: () => el("div.empty", {}, el("h2", {}, "What would you like to know?"),
      el("p", {}, "Answers come from this node or from those that it is connected with. Who works on a question can read it."),
      el("div.examples", {}, EXAMPLES.map((words) => button(words, () => use(words), { kind: "example" })))),
    paused: (node) => el("div.empty", {}, el("h2", {}, "This node is paused"),
      el("p", {}, `${node.pause_reason || "Its owner needs the machine"}. No peer offers a chat model now, either.`),
      el("div.row", {}, button("Resume now", () => resume(), { kind: "primary" })), el("p.hint", {}, "It goes on by itself when the reason is gone."), said),
    loading: (node) => el("div.empty", {}, el("h2", {}, "Nearly there"),
      el("p", {}, `The node is loading ${node.loading.join(", ")}. This page goes on by itself.`), el("progress", { "aria-label": "Loading" })),
    working: () => el("div.empty", {}, el("h2", {}, work.value.title), bar, words, work.value.error ? problem(work.value.error, work.value.again) : null,
      el("div.row", {}, button(work.value.error ? "Close" : "Stop", () => work.value.cancel(), { kind: "small" }))),
    nothing: (node) => [nothing(node), otherWays(node)],
  };
  const said = el("div");
  const bar = el("progress", { "aria-label": "Progress" });
  const words = el("p.soft", { role: "status" });

  function showProgress() {
    const { done, total, text } = work.value;
    if (total) Object.assign(bar, { max: total, value: done });
    else bar.removeAttribute("value");
    bar.hidden = Boolean(work.value.error);
    const percent = total ? `, ${bytes(done)} of ${bytes(total)}` : "";
    if (words.textContent !== text + percent) words.textContent = text + percent;
  }

  function nothing(node) {
    const offer = el("div", {}, getButton("Get a small chat model", null));
    const card = el("div.empty", {}, el("h2", {}, "Welcome. One thing is missing: a model"),
      el("p", {}, node.peers.length ? `This node is connected, but nobody there offers a chat model, and it serves none itself.` : "This node serves no model yet, and is connected with nobody."),
      offer, el("p.hint", {}, "It runs on this machine, without an account; what you ask it stays here."), said);
    if (context.operator.unlocked.value) fillOffer(offer);
    return card;
  }

  /** With what is known of the model, once the owner is known. */
  async function fillOffer(offer) {
    try {
      const model = await smallest();
      if (model) fill(offer, getButton(model.installed ? `Start ${nameOf(model)}` : ["Get a small chat model ", el("span.small-text", {}, `${nameOf(model)}, ${bytes(model.fetch_bytes)}, licence ${model.licence}`)], model), el("p.hint", {}, model.limits));
    } catch (error) {
      fill(said, problem(error, () => fillOffer(offer)));
    }
  }

  function getButton(text, model) {
    return button(text, async () => {
      if (!(await context.unlock())) return;
      fill(said);
      try {
        const chosen = model || (await smallest());
        if (chosen) getReady(chosen, context);
        else fill(said, problem("This node knows no chat model by name; My node can fetch one from a hub."));
      } catch (error) {
        fill(said, problem(error));
      }
    }, { kind: "primary large" });
  }

  async function smallest() {
    const { models } = await context.operator.call("models.list");
    const chat = models.filter((model) => model.realm === "$CHAT");
    return chat.sort((one, other) => other.installed - one.installed || one.bytes - other.bytes)[0];
  }

  function otherWays(node) {
    const others = el("div");
    const details = el("details.card.other-ways", { ontoggle: () => details.open && !others.childNodes.length && showOthers(others) },
      el("summary", {}, "Other ways"),
      el("h3", {}, "Another model that fits this machine"), others,
      el("h3", {}, "Ask friends' nodes"),
      el("p", {}, "Get the federation's file and an address from somebody who runs a node, and type in a terminal:"),
      el("pre", {}, el("code", {}, "mtor federation join friends.genesis\nmtor up --bootstrap /ip4/…/tcp/9001/p2p/…")),
      el("p.hint", {}, node.peers.length ? "You are connected already: perhaps a friend's node only sleeps." : "Your own address, for others, is shown by mtor status."));
    return details;
  }

  async function showOthers(place) {
    const load = async () => {
      if (!(await context.unlock())) return;
      fill(place, spinner("looking what fits"));
      try {
        const { models } = await context.operator.call("models.list");
        const rows = models.filter((model) => model.realm === "$CHAT");
        fill(place, el("ul.model-list", {}, rows.map((model) => el("li.row.between", {},
          el("span", {}, nameOf(model), el("span.hint", {}, ` ${bytes(model.bytes)}, ${model.licence}${model.installed ? ", is here" : ""}`)),
          button(model.installed ? "Start" : "Get", () => getReady(model, context), { kind: "small", label: `${model.installed ? "Start" : "Get"} ${nameOf(model)}` })))),
        el("p", {}, "Larger ones from a hub, and whether they fit: ", button("My node", () => context.go("owner"), { kind: "small" })));
      } catch (error) {
        fill(place, problem(error, load));
      }
    };
    if (context.operator.unlocked.value) await load();
    else fill(place, el("p", {}, button("Show them", load, { kind: "small" })));
  }

  async function resume() {
    if (!(await context.unlock())) return;
    try {
      await context.operator.call("resume", {});
    } catch (error) {
      fill(said, problem(error, resume));
    }
  }

  const leaves = [context.node.watch(show), context.operator.unlocked.watch(show), work.watch(show)];
  return { element, leave: () => leaves.forEach((each) => each()) };
}

/** "SmolLM2 135M" of "SmolLM2-135M-Instruct: small and quick". */
function nameOf(model) {
  return (model.title || model.name).split(":")[0].replace(/-Instruct$/, "").replaceAll("-", " ");
}

/** Fetch a model if it is not here, and serve it; what happens is told by `work`. */
async function getReady(model, context) {
  const stopped = new AbortController();
  const cancel = () => {
    stopped.abort();
    work.set(null);
  };
  const tell = (more) => !stopped.signal.aborted && work.set({ title: `Getting ${nameOf(model)} ready`, text: "Beginning", done: 0, total: 0, cancel, again: () => getReady(model, context), ...more });
  const progress = (line) => tell({ text: STEPS[line.step] || line.message || line.step, done: line.done_bytes || 0, total: line.total_bytes || 0 });
  tell({});
  try {
    if (!model.installed) await context.operator.stream("models.pull", { model: model.name }, progress, stopped.signal);
    tell({ text: "Starting it" });
    await context.operator.stream("serving.start", { model: model.name }, progress, stopped.signal);
    await offered(context, stopped.signal, () => tell({ text: "Waiting for the node to offer it" }));
    if (!stopped.signal.aborted) work.set(null);
  } catch (error) {
    tell({ text: "", error });
  }
}

/** Until the node's state says that something can be asked. */
function offered(context, signal, waiting) {
  return new Promise((resolve) => {
    let leave = () => {};
    let over = false;
    const look = (node) => {
      if (over || (standingOf(node) !== "ready" && !signal.aborted)) return;
      over = true;
      resolve();
      queueMicrotask(() => leave());
    };
    leave = context.node.watch(look);
    if (!over) waiting();
    signal.addEventListener("abort", () => look(context.node.value));
  });
}
