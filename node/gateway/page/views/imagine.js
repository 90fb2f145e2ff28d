export const id = "imagine";
export const title = "Imagine";
export const icon = "🎨";

export function mount(root) {
  root.append("not built yet");
}
