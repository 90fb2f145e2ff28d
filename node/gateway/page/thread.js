// One conversation as it is read: messages, answers as they grow, where one stands while one waits, what went wrong.
// Rule: a message that is there is not made again; an answer that grows gets its new text alone. What is read out aloud by a screen
// reader is a whole answer, once, and not each word of it.

import { answered, workerName } from "./choice.js";
import { copyButton } from "./clipboard.js";
import { button, el, fill, spinner } from "./dom.js";
import { duration } from "./format.js";
import { MarkdownView, markdown } from "./markdown.js";

const NEAR_END = 80; // pixels, within which the page follows what comes
const MOST_SPOKEN = 1_500; // characters of an answer that a screen reader is handed at once

/** What helps, by the code of what went wrong. */
const ADVICE = {
  no_peer: "Nobody can answer now. See Network for who is there, or let this node serve a model (My node).",
  model_not_found: "Choose another model below, or “Any model”.",
  payment_required: "There are not enough credits; Credits shows where they went. Your own models answer for nothing.",
  insufficient_funds: "There are not enough credits; Credits shows where they went. Your own models answer for nothing.",
  context_length_exceeded: "The conversation is too long for this model: begin a new one, or choose a model with more context.",
  prompt_too_large: "The conversation is too long: begin a new one.",
  overloaded: "All are busy; it usually helps to wait a little.",
  paused: "The owner needs the machine now.",
  invalid_api_key: "Enter a key at the top right.",
  deadline_exceeded: "It took longer than allowed: allow more time under Options, or ask for less.",
  no_such_query: "The rest of it is gone: an unread answer is kept for a minute or two.",
  taken_over: "Another tab shows it.",
};

/** `ask()` gives {model, mtor} for asking again. */
export function thread(context, conversations, { ask, welcome }) {
  const log = el("div.messages", { role: "log", "aria-label": "Conversation", "aria-live": "off", tabindex: "0" });
  const announcer = el("div.unseen", { role: "status" });
  const newest = button("↓ Newest", () => scrollToEnd(), { kind: "small newest", hidden: true });
  const element = el("div.thread", {}, log, newest, announcer);
  let conversation = null;
  let shown = new Map(); // by message id: {element, update(event)}
  let follows = true;
  let lastTop = 0;

  log.addEventListener("scroll", () => {
    const near = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END;
    follows = near || (follows && log.scrollTop >= lastTop); // what grows below is no reason; who goes up wants to read there
    lastTop = log.scrollTop;
    newest.hidden = follows;
  }, { passive: true });
  const grown = new ResizeObserver(() => follows && scrollToEnd());

  function scrollToEnd() {
    log.scrollTop = log.scrollHeight;
  }

  /** Bring the elements in line with the messages. */
  function show() {
    const messages = conversation.messages;
    if (!messages.length) {
      shown = new Map();
      fill(log, welcome);
      return;
    }
    welcome.remove();
    const kept = new Set(messages.map((message) => message.id));
    for (const [id, each] of shown) {
      if (kept.has(id)) continue;
      grown.unobserve(each.element);
      each.element.remove();
      shown.delete(id);
    }
    for (const message of messages) {
      if (shown.has(message.id)) continue;
      const made = message.role === "user" ? ownMessage(message) : answer(message);
      shown.set(message.id, made);
      log.append(made.element);
      grown.observe(made.element);
    }
  }

  function open(next) {
    if (conversation === next) return;
    conversation = next;
    shown.forEach((each) => grown.unobserve(each.element));
    shown = new Map();
    fill(log);
    follows = true;
    show();
    scrollToEnd();
  }

  function takeEvent({ type, conversation: whose, message, event }) {
    if (whose !== conversation) return;
    if (type === "changed") {
      follows = true;
      show();
      scrollToEnd();
      return;
    }
    shown.get(message.id)?.update(event);
    if (type === "ended") announce(message);
  }

  function announce(message) {
    const said = { done: `Answer: ${message.text.slice(0, MOST_SPOKEN)}`, stopped: "The answer was stopped.", failed: `No answer: ${message.error?.message}` };
    announcer.textContent = said[message.state];
  }

  // --- own messages ------------------------------------------------------------------------------------------------

  function ownMessage(message) {
    const root = el("article.message.own", { "aria-label": "You" });
    const showText = () => fill(root,
      message.pictures?.length ? el("div.pictures", {}, message.pictures.map((url, index) => el("img", { src: url, alt: `Picture ${index + 1}`, loading: "lazy" }))) : null,
      message.text ? el("div.bubble", {}, message.text) : null,
      el("div.actions", {}, button("Edit", () => edit(), { kind: "bare small", label: "Edit this message" }), message.text ? copyButton(() => message.text, { label: "Copy this message" }) : null));
    const edit = () => {
      const area = el("textarea", { rows: Math.min(12, message.text.split("\n").length + 1), "aria-label": "Your message" });
      area.value = message.text;
      const send = () => {
        if (area.value.trim() || message.pictures?.length) offerUndo(conversations.edit(message, area.value.trim(), ask()));
      };
      const cancel = () => {
        showText();
        root.querySelector("button")?.focus();
      };
      area.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
          event.preventDefault();
          send();
        } else if (event.key === "Escape") {
          event.stopPropagation();
          cancel();
        }
      });
      fill(root, el("div.editing", {}, area, el("p.hint", {}, "What followed this message is replaced."),
        el("div.row.end", {}, button("Cancel", cancel, { kind: "small" }), button("Ask again", send, { kind: "primary small" }))));
      area.focus();
      area.setSelectionRange(area.value.length, area.value.length);
    };
    showText();
    return { element: root, update: () => {}, edit };
  }

  function offerUndo(bringBack) {
    const note = el("div.toast", {}, el("span", {}, "What followed was replaced."), button("Undo", () => {
      bringBack();
      note.remove();
    }, { kind: "small" }));
    document.getElementById("toasts").append(note);
    setTimeout(() => note.remove(), 10_000);
  }

  // --- answers -----------------------------------------------------------------------------------------------------

  function answer(message) {
    const body = el("div.body");
    const standing = el("div.standing-line");
    const foot = el("div.foot");
    const root = el("article.message.answer", { "aria-label": "Answer", "aria-busy": String(message.state === "running") }, body, standing, foot);
    let growing = null;

    function showWhole() {
      fill(body, message.text ? markdown(message.text) : null, (message.calls || []).map(toolCall));
      fill(standing);
      root.setAttribute("aria-busy", "false");
      fill(foot, foundWrong(), message.facts ? answered(message.facts, context) : null,
        message.facts?.finish === "length" ? el("p.small-text.busy-text", {}, "It stopped at the largest number of tokens that was allowed.") : null,
        message.state === "stopped" ? el("p.small-text.soft", {}, message.text ? "You stopped it here." : "You stopped it before the first word.") : null,
        el("div.actions", {},
          message.text ? copyButton(() => message.text, { label: "Copy this answer" }) : null,
          message.text && context.speak ? speakButton(() => message.text) : null,
          message.state === "failed" ? null : button("Retry", () => conversations.retry(message, ask()), { kind: "bare small", label: "Ask again for another answer" })));
    }

    function showGrowing() {
      growing = new MarkdownView();
      fill(body, growing.element);
      if (message.text) growing.append(message.text);
      fill(standing, spinner(message.text ? "" : context.connection.value.state === "open" ? "Asking" : "Waiting for the node"));
    }

    function update(event) {
      if (message.state !== "running") {
        growing?.finish();
        growing = null;
        showWhole();
        return;
      }
      if (event.type === "delta") {
        growing.append(event.text);
        if (standing.textContent) fill(standing, spinner());
      } else if (event.type === "routed" || event.type === "waiting") {
        fill(standing, spinner(standingWords(event, Boolean(message.text))));
      }
    }

    function foundWrong() {
      if (message.state !== "failed") return null;
      const advice = ADVICE[message.error?.code];
      const wait = message.error?.retry_ms ? ` The node thinks it helps to wait ${duration(message.error.retry_ms / 1_000)}.` : "";
      return el("div.problem", {}, el("p", {}, el("strong", {}, message.text ? "The answer broke off: " : "No answer: "), message.error?.message || "the node gave no reason"),
        advice || wait ? el("p.small-text", {}, advice || "", wait) : null,
        button("Try again", () => conversations.retry(message, ask()), { kind: "small" }));
    }

    if (message.state === "running") showGrowing();
    else showWhole();
    return { element: root, update };
  }

  function standingWords(event, begun) {
    if (event.type === "waiting") return `Waiting: ${event.reason}${event.retry_ms ? `; perhaps ${duration(event.retry_ms / 1_000)} more` : ""}`;
    const who = workerName(context, event.worker);
    if (event.queue_position > 0) return `${ordinal(event.queue_position)} in line at ${who}${event.wait_ms ? `, about ${duration(event.wait_ms / 1_000)}` : ""}`;
    if (event.attempt > 1) return `${who} goes on${begun ? " where the other stopped" : ""}`;
    return `${who} is thinking`;
  }

  function speakButton(text) {
    let speaking = null;
    const made = button("Speak", () => {
      if (speaking) speaking.stop();
      speaking = speaking ? null : context.speak(text());
      made.textContent = speaking ? "Stop speaking" : "Speak";
      speaking?.ended?.then(() => {
        speaking = null;
        made.textContent = "Speak";
      });
    }, { kind: "bare small", label: "Read this answer aloud" });
    return made;
  }

  const leaveList = conversations.listen(takeEvent);
  const leaveCurrent = conversations.current.watch(open);

  return {
    element,
    /** Edit the last own message. False if there is none. */
    editLast() {
      const last = conversation.messages.findLast((message) => message.role === "user");
      if (!last) return false;
      shown.get(last.id).edit();
      return true;
    },
    leave() {
      leaveList();
      leaveCurrent();
      grown.disconnect();
    },
  };
}

function toolCall(call) {
  return el("div.card", {}, el("p", {}, "The model wants to use the tool ", el("code", {}, call.name), "; this page has none."), el("pre", {}, el("code", {}, call.arguments)));
}

/** "1st", "2nd", "3rd", "4th". */
export function ordinal(number) {
  const rest = number % 100;
  const ending = rest > 10 && rest < 14 ? "th" : { 1: "st", 2: "nd", 3: "rd" }[number % 10] || "th";
  return `${number}${ending}`;
}
