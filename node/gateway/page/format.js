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

/** The end of a peer id, which is the part that differs. */
export function shortPeer(id) {
  return id && id.length > 14 ? `…${id.slice(-8)}` : id || "";
}

/** "1 peer", "3 peers". */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
