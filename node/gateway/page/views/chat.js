export const id = "chat";
export const title = "Chat";
export const icon = "💬";

export function mount(root) {
  root.append("not built yet");
}
