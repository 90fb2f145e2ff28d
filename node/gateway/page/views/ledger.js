export const id = "ledger";
export const title = "Credits";
export const icon = "🪙";

export function mount(root) {
  root.append("not built yet");
}
