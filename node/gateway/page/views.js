// The views, in the order of the navigation.
// Rule: here stands what the navigation shows of a view; its module comes when somebody goes there.

export const views = [
  { id: "chat", title: "Chat", icon: "💬", load: () => import("./views/chat.js") },
  { id: "imagine", title: "Imagine", icon: "🎨", load: () => import("./views/imagine.js") },
  { id: "speech", title: "Speech", icon: "🎙", load: () => import("./views/speech.js") },
  { id: "network", title: "Network", icon: "🌐", load: () => import("./views/network.js") },
  { id: "ledger", title: "Credits", icon: "🪙", load: () => import("./views/ledger.js") },
  { id: "owner", title: "My node", icon: "⚙", load: () => import("./views/owner.js") },
];
