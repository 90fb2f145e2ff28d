export const id = "network";
export const title = "Network";
export const icon = "🌐";

export function mount(root) {
  root.append("not built yet");
}
