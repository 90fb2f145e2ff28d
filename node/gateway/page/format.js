// Numbers and names as people read them.
// Rule: pure; each takes a value and gives text.

/** µcredits as credits: 1234567 -> "1.23". */
export function credits(micro) {
  if (micro === null || micro === undefined) return "";
  const value = micro / 1e6;
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 1 ? 2 : 4;
  return value.toLocaleString("en", { maximumFractionDigits: digits }).replace(/^-/, "−");
}

/** "1.2 GB" of bytes. */
export function bytes(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 1000 || unit === "GB") return `${unit === "B" ? count : count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
  return "";
}

/** "3.2 s", "2 min", "4 h", "3 days" of seconds. */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5_400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3_600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

/** A date and time of Unix seconds or milliseconds, in the reader's own form. */
export function when(time) {
  return new Date(time < 1e12 ? time * 1_000 : time).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

/** The same of a time as text (2026-11-30T12:00:00Z), too; "" of none. */
export function moment(time) {
  if (!time) return "";
  const found = typeof time === "string" ? Date.parse(time) : time;
  return Number.isNaN(found) ? "" : when(found);
}

/** The end of a peer id, which is the part that differs. */
export function shortPeer(id) {
  return id && id.length > 14 ? `…${id.slice(-8)}` : id || "";
}

/** "1 peer", "3 peers". */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** µcredits exactly, as the node writes them: 1234567 -> "1.234567 cr". Integers only, so that sums stay true. */
export function exact(micro) {
  if (micro === null || micro === undefined) return "";
  const value = BigInt(micro);
  const size = value < 0n ? -value : value;
  const rest = (size % 1_000_000n).toString().padStart(6, "0").replace(/0+$/, "");
  return `${value < 0n ? "−" : ""}${(size / 1_000_000n).toLocaleString("en")}${rest && `.${rest}`} cr`;
}

/** A price (µcredits for 1,000 units): "free" or "0.003 cr". */
export function price(micro) {
  return micro ? exact(micro) : "free";
}

/** "512 MB", "11.9 GB" of MiB. */
export function memory(mib) {
  return mib < 1_000 ? `${Math.round(mib)} MiB` : `${(mib / 1_024).toFixed(mib < 10_240 ? 1 : 0)} GiB`;
}

/** What a stranger wrote, on one line: without marks that hide, reverse or stack text, and cut. */
export function tidy(text, most = 80) {
  const plain = String(text ?? "").normalize("NFC").replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu, "").replace(/(\p{M}{2})\p{M}+/gu, "$1").trim();
  const signs = [...plain];
  return signs.length > most ? `${signs.slice(0, most - 1).join("")}…` : plain;
}
