export const id = "speech";
export const title = "Speech";
export const icon = "🎙";

export function mount(root) {
  root.append("not built yet");
}
