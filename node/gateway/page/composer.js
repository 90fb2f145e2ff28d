// Where the next message is written: text, pictures, and the settings of the conversation.
// Rule: Enter sends, and never loses what was written; what cannot be sent says why and stays.

import { button, dialog, el, field, fill, svg } from "./dom.js";
import { picturesIn, pictureTray, webcam } from "./pictures.js";

const TOKEN_LETTERS = 4; // of English text, about
const PICTURE_TOKENS = 256;
const TALLEST = 220; // pixels
const DRAWN = { width: 20, height: 20, viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true" };
const SHAPES = {
  picture: ["M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4", "M15.5 9.5h.01"],
  camera: ["M4 8h3l2-3h6l2 3h3v11H4z", "M12 16.5a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7Z"],
  microphone: ["M12 15a3 3 0 0 0 3-3V6a3 3 0 0 0-6 0v6a3 3 0 0 0 3 3Z", "M6 11.5a6 6 0 0 0 12 0M12 17.5V21"],
  send: ["M5 12h13M12 5.5l6.5 6.5L12 18.5"],
  stop: ["M7 7h10v10H7z"],
};

function icon(name) {
  return svg("svg", DRAWN, SHAPES[name].map((d) => svg("path", { d })));
}

/** `chosen` is a choice(); `editLast()` begins to edit the last message. */
export function composer(context, conversations, chosen, { editLast }) {
  const text = el("textarea.compose-text", { rows: "1", "aria-label": "Your message", placeholder: "Ask anything", "aria-describedby": "compose-keys" });
  const files = el("input", { type: "file", accept: "image/*", multiple: true, hidden: true, "aria-label": "Pictures", onchange: () => {
    tray.add([...files.files]);
    files.value = "";
  } });
  const tray = pictureTray(() => changed());
  const go = button("", () => (running() ? stop() : send()), { kind: "primary round" });
  const attach = button(icon("picture"), () => files.click(), { kind: "bare round", label: "Add pictures" });
  const camera = button(icon("camera"), () => webcam(tray.addUrl), { kind: "bare round", label: "Take a picture with the camera" });
  const listen = dictationButton();
  const keys = el("p.hint.keys", { id: "compose-keys" }, [["Enter", "sends"], ["Shift+Enter", "new line"], ["Esc", "stops"], ["↑", "edits your last"], ["/", "to here"]].map(([key, does]) => el("span", {}, el("kbd", {}, key), ` ${does} `)));
  const element = el("form.composer", { "aria-label": "New message", onsubmit: (event) => {
    event.preventDefault();
    send();
  } }, chosen.element, el("div.compose-box", {}, tray.element, el("div.compose-row", {}, attach, camera, files, text, listen, go)), keys);

  function running() {
    return conversations.current.value.messages.find((message) => conversations.isRunning(message));
  }

  function stop() {
    conversations.stop(running());
    text.focus();
  }

  function send() {
    const said = text.value.trim();
    if (running() || (!said && !tray.urls.length)) return;
    conversations.say(said, tray.urls, chosen.value());
    text.value = "";
    tray.clear();
    text.focus();
  }

  function changed() {
    text.style.height = "auto";
    text.style.height = `${Math.min(text.scrollHeight + 2, TALLEST)}px`;
    const conversation = conversations.current.value;
    const pictures = tray.urls.length + conversation.messages.reduce((sum, message) => sum + (message.pictures?.length || 0), 0);
    const letters = text.value.length + conversation.system.length + conversation.messages.reduce((sum, message) => sum + message.text.length, 0);
    chosen.realm(pictures ? "$VISION" : "$CHAT");
    const units = { in: Math.ceil(letters / TOKEN_LETTERS) + 20 + Math.min(pictures, 8) * PICTURE_TOKENS, out: conversation.settings.max_tokens || 300 };
    chosen.expect(text.value || tray.urls.length || conversation.messages.length ? units : null);
    showGo();
  }

  let wasRunning = null;
  function showGo() {
    const stops = Boolean(running());
    const label = stops ? "Stop the answer (Escape)" : "Send (Enter)";
    if (wasRunning !== stops) fill(go, icon(stops ? "stop" : "send"));
    wasRunning = stops;
    go.title = label;
    go.setAttribute("aria-label", label);
    go.disabled = !stops && !text.value.trim() && !tray.urls.length;
  }

  function dictationButton() {
    if (!context.dictation) return null;
    const heard = context.dictation({
      onText: (words) => {
        text.value = `${text.value}${text.value && !text.value.endsWith(" ") ? " " : ""}${words}`;
        changed();
      },
      onState: (state) => made.setAttribute("aria-pressed", String(state === "listening" || state === "thinking")),
    });
    if (!heard.supported) return null;
    const made = button(icon("microphone"), () => heard.toggle(), { kind: "bare round", label: "Speak instead of writing", "aria-pressed": "false" });
    return made;
  }

  // --- keys, paste, drop -------------------------------------------------------------------------------------------

  text.addEventListener("input", changed);
  text.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const touch = matchMedia("(pointer: coarse)").matches; // there Enter is the only way to a new line
    if (event.key === "Enter" && !event.shiftKey && !touch) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && !text.value && editLast()) {
      event.preventDefault();
    }
  });
  text.addEventListener("paste", (event) => {
    const pictures = picturesIn(event.clipboardData);
    if (!pictures.length) return;
    event.preventDefault();
    tray.add(pictures);
  });

  function onKey(event) {
    if (document.querySelector("dialog[open]")) return;
    const writing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName || "");
    if (event.key === "Escape" && running()) {
      event.preventDefault();
      stop();
    } else if ((event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey)) || (event.key === "/" && !writing)) {
      event.preventDefault();
      text.focus();
    }
  }
  document.addEventListener("keydown", onKey);

  function acceptDrops(target) {
    target.addEventListener("dragover", (event) => {
      if (![...event.dataTransfer.items].some((item) => item.kind === "file")) return;
      event.preventDefault();
      target.classList.add("dropping");
    });
    target.addEventListener("dragleave", (event) => !target.contains(event.relatedTarget) && target.classList.remove("dropping"));
    target.addEventListener("drop", (event) => {
      target.classList.remove("dropping");
      const pictures = picturesIn(event.dataTransfer);
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      tray.add(pictures.length ? pictures : [...event.dataTransfer.files]);
    });
  }

  const leaves = [conversations.listen(({ type }) => type !== "event" && changed()), conversations.current.watch(() => changed())];
  text.value = conversations.draft || "";
  showGo();
  requestAnimationFrame(changed);
  return {
    element,
    acceptDrops,
    focus: () => text.focus(),
    write(words) {
      text.value = words;
      changed();
      text.focus();
      text.setSelectionRange(words.length, words.length);
    },
    leave() {
      conversations.draft = text.value;
      document.removeEventListener("keydown", onKey);
      leaves.forEach((each) => each());
      chosen.leave();
    },
  };
}

/** The settings of one conversation: what goes before it, and how answers are drawn. */
export function conversationSettings(conversation, changed) {
  const system = el("textarea", { rows: "4", placeholder: "You answer in one sentence." });
  system.value = conversation.system;
  const { settings } = conversation;
  const number = (key, step, min, max, placeholder) => {
    const input = el("input", { type: "number", step, min, max, placeholder, inputmode: "decimal" });
    input.value = settings[key] ?? "";
    return input;
  };
  const inputs = {
    temperature: number("temperature", "0.1", "0", "2", "0.6"),
    max_tokens: number("max_tokens", "1", "1", "1000000", "as many as it takes"),
    seed: number("seed", "1", "0", "9007199254740991", "chosen by the worker"),
  };
  const form = el("form.stack", { onsubmit: (event) => {
    event.preventDefault();
    conversation.system = system.value;
    for (const [key, input] of Object.entries(inputs)) {
      if (input.value === "") delete settings[key];
      else settings[key] = Number(input.value);
    }
    changed();
    close();
  } },
  field("Instructions that go before the conversation", system, "Also called a system prompt. Small models follow it loosely."),
  el("div.fields", {},
    field("Temperature", inputs.temperature, "0 is the likeliest word each time; 2 is wild."),
    field("Tokens at most", inputs.max_tokens),
    field("Seed", inputs.seed, "The same seed gives the same answer on the same worker.")),
  el("div.row.end", {}, el("button.button.primary", {}, "Keep")));
  const close = dialog("This conversation", form);
}
