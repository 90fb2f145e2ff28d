// The chat: conversations at the side, one of them in the middle, the next message below.

import { choice } from "../choice.js";
import { composer, conversationSettings } from "../composer.js";
import { Conversations } from "../conversations.js";
import { button, el, fill, spinner } from "../dom.js";
import { History } from "../history.js";
import { sidebar } from "../sidebar.js";
import { thread } from "../thread.js";
import { welcome } from "../welcome.js";

let ready = null; // the conversations, which outlive the view: an answer goes on while another one is shown

function conversationsOf(context) {
  ready ??= (async () => {
    const conversations = new Conversations(context, await new History().open());
    await conversations.begin();
    return conversations;
  })();
  return ready.then(async (conversations) => {
    const wanted = location.hash.split("/")[2];
    if (wanted) await conversations.open(wanted);
    return conversations;
  });
}

export function mount(root, context) {
  let leave = () => {};
  let left = false;
  fill(root, el("div.empty", {}, spinner("opening your conversations")));
  conversationsOf(context).then((conversations) => {
    if (!left) leave = build(root, context, conversations);
  });
  return () => {
    left = true;
    leave();
  };
}

function build(root, context, conversations) {
  const chosen = choice(context, { realm: "$CHAT", remember: "chat" });
  const start = welcome(context, { use: (words) => write.write(words), ready: () => write.focus() });
  const read = thread(context, conversations, { ask: () => chosen.value(), welcome: start.element });
  const write = composer(context, conversations, chosen, { editLast: () => read.editLast() });
  const drawer = el("dialog.drawer", { "aria-label": "Conversations" });
  const narrow = matchMedia("(max-width: 860px)");
  const side = sidebar(conversations, { opened: () => {
    drawer.close();
    if (!narrow.matches) write.focus();
  } });
  const place = el("aside.side", { "aria-label": "Conversations" });
  const heading = el("h1.chat-title");
  const column = el("section.chat-column", { "aria-label": "Chat" },
    el("div.chat-head", {},
      button("☰", () => drawer.showModal(), { kind: "bare only-narrow", label: "Conversations" }),
      heading,
      button("More", () => conversationSettings(conversations.current.value, () => conversations.keep(conversations.current.value)), { kind: "small", label: "Instructions, temperature, length and seed" }),
      button("+", () => {
        conversations.startNew();
        write.focus();
      }, { kind: "small only-narrow", label: "New chat" })),
    read.element, write.element);
  write.acceptDrops(column);
  drawer.addEventListener("click", (event) => event.target === drawer && drawer.close());
  fill(root, place, column, drawer);

  const arrange = () => {
    drawer.close();
    (narrow.matches ? drawer : place).append(side.element);
  };
  narrow.addEventListener("change", arrange);
  arrange();

  const leaves = [
    conversations.current.watch((conversation) => {
      const address = conversation.messages.length ? `#/chat/${conversation.id}` : "#/chat";
      if (location.hash.startsWith("#/chat") || !location.hash) history.replaceState(null, "", address);
    }),
    conversations.list.watch(() => showTitle()),
    conversations.current.watch(() => showTitle()),
    conversations.listen(({ type, conversation }) => {
      if (type === "changed" && conversation === conversations.current.value) history.replaceState(null, "", `#/chat/${conversation.id}`);
      showTitle();
    }),
  ];

  function showTitle() {
    heading.textContent = conversations.current.value.title || "New chat";
  }

  if (matchMedia("(pointer: fine)").matches) write.focus();
  return () => {
    leaves.forEach((each) => each());
    narrow.removeEventListener("change", arrange);
    read.leave();
    write.leave();
    side.leave();
    start.leave();
  };
}
