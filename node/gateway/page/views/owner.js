export const id = "owner";
export const title = "My node";
export const icon = "⚙";

export function mount(root) {
  root.append("not built yet");
}
