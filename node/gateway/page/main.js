// The page's composition root: one socket, one operator, one view at a time.
// Rule: a view is a module with `mount(root, context)`, which returns a function that takes it away again. It is loaded
// when it is shown. Views know the context and their own files, not each other.

import { button, dialog, el, field, fill, problem, spinner, toast } from "./dom.js";
import { count } from "./format.js";
import { Operator, OperationFailed } from "./operator.js";
import { recall, remember } from "./settings.js";
import { NodeSocket } from "./socket.js";
import { themeSwitch } from "./theme.js";
import { views } from "./views.js";

const operator = new Operator();
const socket = new NodeSocket();
const context = {
  socket, node: socket.node, connection: socket.connection, operator, go, unlock: askForCode,
  dictation, speak,
};
const content = document.getElementById("content");
let leave = null;

function go(id) {
  if (location.hash === `#/${id}`) show();
  else location.hash = `#/${id}`;
}

function show() {
  if (location.hash === "#content") return; // the link that skips to the content
  const path = location.hash.replace(/^#\/?/, "").split("/")[0];
  const view = views.find((each) => each.id === path) || views[0];
  leave?.();
  leave = null;
  document.title = `${view.title} · MTOR`;
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.id === view.id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const root = el("div.view", { id: `view-${view.id}`, "aria-label": view.title, "aria-busy": "true" },
    el("div.empty", {}, spinner(`opening ${view.title}`)));
  fill(content, root);
  view.load().then((module) => mount(module, root), (error) => missing(view, root, error));
}

function mount(module, root) {
  if (!root.isConnected) return; // somebody went on to another view meanwhile
  root.removeAttribute("aria-busy");
  try {
    leave = module.mount(root, context);
  } catch (error) {
    fill(root, problem(`this view failed: ${error.message}`, show));
    console.error(error);
  }
}

/** A view's files did not come. Browsers keep a module that failed, and a node that was updated has other files: only the whole page can be tried again. */
function missing(view, root, error) {
  root.removeAttribute("aria-busy");
  fill(root, problem(`${view.title} could not be loaded: ${error.message}`, async () => {
    try {
      await fetch("/", { cache: "no-store" });
      location.reload();
    } catch {
      missing(view, root, new Error("the node does not answer; is it running?"));
    }
  }));
}

// --- the voice, whose files come when somebody speaks or listens -------------------------------------------------------

/** Words from the microphone: `onText(text)` once they are whole, `onState(state)` as in voice.js. */
function dictation({ onText, onState }) {
  const told = (state, trouble) => {
    onState(state);
    if (trouble) toast(trouble, "bad");
  };
  let loading = null;
  const toggle = async () => {
    loading ??= import("./voice.js").then((voice) => voice.dictation(context, { onText: (text, final) => final && onText(text), onState: told }));
    try {
      await (await loading).toggle();
    } catch (error) {
      loading = null;
      told("off", error.message);
    }
  };
  return { toggle, supported: Boolean(navigator.mediaDevices || globalThis.SpeechRecognition || globalThis.webkitSpeechRecognition) };
}

/** Say a text: `stop()`, and `ended`, a promise of "" or of what went wrong. */
function speak(text) {
  let stopped = false;
  let saying = null;
  const ended = import("./voice.js").then((voice) => {
    if (stopped) return "";
    saying = voice.speak(context, text);
    return saying.ended;
  }).catch((error) => error.message);
  const stop = () => {
    stopped = true;
    saying?.stop();
  };
  return { stop, ended };
}

function showViews() {
  fill(document.getElementById("views"), views.map((view) =>
    el("a", { href: `#/${view.id}`, dataset: { id: view.id } }, el("span.icon", { "aria-hidden": "true" }, view.icon), el("span.name", {}, view.title))));
}

/** One line about the node, at the top right. */
function showStanding() {
  const place = document.getElementById("standing");
  const connection = context.connection.value;
  const node = context.node.value;
  const [kind, text] = standing(connection, node);
  fill(place, el("span.dot", { class: kind, "aria-hidden": "true" }), el("span.text", {}, text),
    connection.state === "keyless" && button("Enter a key", askForKey, { kind: "small" }));
  place.title = connection.problem || node?.ready_reason || "";
}

function standing(connection, node) {
  if (connection.state === "keyless") return ["bad", "This node wants an API key"];
  if (connection.state === "lost") return ["bad", "Not connected"];
  if (connection.state === "connecting" || !node) return ["busy", "Connecting"];
  if (node.paused) return ["busy", "Paused"];
  const peers = count(node.peers.filter((peer) => peer.connected).length, "peer");
  return node.ready ? ["good", peers] : ["busy", `${peers}, nothing to ask yet`];
}

/** Ask for an API key, where the node wants one. */
function askForKey() {
  const input = el("input", { type: "password", autocomplete: "off", value: recall("key", "") });
  const close = dialog("API key", el("form", { onsubmit: (event) => {
    event.preventDefault();
    remember("key", input.value.trim() || undefined);
    close();
    socket.connection.set({ state: "connecting", problem: "" });
    socket.useKey();
  } }, field("Key", input, "The node's owner makes one with: mtor keys create NAME. It stays in this browser."), el("div.row.end", {}, el("button.button.primary", {}, "Use it"))));
}

/** Ask the owner to unlock the panel; a promise of whether it is unlocked now. */
function askForCode() {
  if (operator.unlocked.value) return Promise.resolve(true);
  return new Promise((resolve) => {
    const input = el("input", { autocomplete: "off", spellcheck: "false", placeholder: "code" });
    const said = el("div");
    const submit = async (event) => {
      event.preventDefault();
      const code = input.value.trim().replace(/^.*#unlock=/, "");
      try {
        await operator.unlock(code);
        close();
        resolve(true);
      } catch (error) {
        fill(said, problem(error));
      }
    };
    const close = dialog("Only the owner of this node may do this",
      el("p", {}, "On the machine where the node runs, open a terminal and type ", el("code", {}, "mtor open"), ". It opens this page unlocked."),
      el("p", {}, "Or paste here the address or the code that ", el("code", {}, "mtor open --print"), " shows:"),
      el("form.row", { onsubmit: submit }, field("Code", input), el("button.button.primary", {}, "Unlock")), said);
  });
}

async function start() {
  themeSwitch(document.getElementById("theme"));
  showViews();
  context.connection.watch(showStanding);
  context.node.watch(showStanding);
  try {
    await operator.unlockByAddress();
  } catch (error) {
    toast(error instanceof OperationFailed ? error.message : String(error), "bad");
  }
  addEventListener("hashchange", async () => {
    if (location.hash.startsWith("#unlock=")) await operator.unlockByAddress().catch((error) => toast(error.message, "bad"));
    show();
  });
  show();
}

start();
