// How the node stands: what is wrong and how to mend it, the game guard, pause, stop.

import { button, confirmed, el, toast } from "../../dom.js";
import { count, duration, exact, tidy, when } from "../../format.js";
import { action, facts, identity, live, redraw } from "../../pieces.js";

export const id = "overview";
export const title = "Overview";

const HOUR = 3_600;
const SAYS = { pause: ["busy", "wants the machine"], quiet: ["good", "quiet"], unknown: ["", "cannot tell"] };

export function mount(panel, context) {
  const asking = live(panel, () => context.operator.call("status"), (status, place) => redraw(place, drawn(status, context, asking)), { seconds: 3 });
  return () => asking.stop();
}

function drawn(status, context, asking) {
  return [
    status.problems.length > 0 && el("section.problem.stack", { role: "alert" }, el("h2", {}, status.problems.length === 1 ? "One thing is wrong" : `${status.problems.length} things are wrong`), el("ul", {}, status.problems.map((each) => el("li", {}, tidy(each, 600))))),
    el("div.cards.two", {}, guard(status.guard, context.operator, asking), served(status, context)),
    el("section.card.stack", {}, el("div.row.between", {}, el("h2", { dir: "auto" }, tidy(status.name) || "This node"), el("div.row", {}, button("Lock this page", () => context.operator.lock(), { kind: "small", "data-key": "lock" }), stopper(context.operator, asking))), about(status)),
  ];
}

// --- pause and the game guard -------------------------------------------------------------------------

function guard(state, operator, asking) {
  const pause = (text, seconds, key) => action(text, async () => {
    await operator.call("pause", seconds ? { seconds } : {});
    toast("Paused: the cards are free", "good");
  }, { live: asking, key });
  const resume = (text, anyway, key) => action(text, async () => {
    const after = await operator.call("resume", anyway ? { anyway } : {});
    if (after.paused) toast(`Still paused: ${after.why}`);
    else toast("The node serves again", "good");
  }, { live: asking, key, kind: "primary" });
  const byHand = state.senses.some((sense) => sense.name === "by hand" && sense.says === "pause");
  const others = state.senses.some((sense) => sense.name !== "by hand" && sense.says === "pause");
  return el("section.card.stack", {}, el("h2", {}, "You come first"),
    el("p.state", {}, el("span.dot", { class: state.paused ? "busy" : "good", "aria-hidden": "true" }), state.paused ? el("strong", {}, `Paused: ${tidy(state.why, 200)}`) : el("strong", {}, "Serving"), el("span.soft", {}, ` for ${duration(state.seconds)}`)),
    state.until_ms ? el("p.soft", {}, `Until ${when(state.until_ms)}.`) : null,
    state.resumes_in_seconds ? el("p.soft", {}, `Quiet again; it serves in ${duration(state.resumes_in_seconds)}.`) : null,
    el("div.row", {},
      state.paused && (byHand || !others) && resume("Resume", false, "resume"),
      state.paused && others && resume("Serve anyway", true, "anyway"),
      pause("Pause for an hour", HOUR, "hour"), pause("Pause until I resume", 0, "pause")),
    el("details", { "data-key": "senses" }, el("summary", {}, "What the game guard sees"),
      el("ul.plain", {}, state.senses.map((sense) => el("li", {}, el("span.dot", { class: SAYS[sense.says]?.[0] || "", "aria-hidden": "true" }), el("span.grow", {}, el("strong", {}, tidy(sense.name, 40)), `: ${state.overruled.includes(sense.name) ? "overruled by you; " : ""}${tidy(sense.why, 200) || SAYS[sense.says]?.[1] || sense.says}`))))));
}

// --- what it does ---------------------------------------------------------------------------------------

function served(status, context) {
  const busy = status.serving.reduce((sum, each) => sum + each.busy, 0);
  const queued = status.serving.reduce((sum, each) => sum + each.queued, 0);
  const loading = context.node.value?.loading || [];
  return el("section.card.stack", {}, el("div.row.between", {}, el("h2", {}, "Serving"), button("Models", () => context.go("owner/models"), { kind: "small", "data-key": "models" })),
    status.serving.length
      ? [el("p.soft", {}, `${count(busy, "query", "queries")} being answered${queued ? `, ${queued} waiting` : ""}.`), el("ul.plain", {}, status.serving.map((each) => el("li", {}, el("span.dot", { class: each.ready ? "good" : each.unloaded ? "" : "busy", "aria-hidden": "true" }), el("span.grow.long", {}, `${tidy(each.realm, 40)}: `, el("strong", {}, tidy(each.model)), el("span.soft", {}, ` ${each.busy} of ${each.slots} busy${each.ready ? "" : each.unloaded ? ", asleep until somebody asks" : ", not ready"}`)))))]
      : !loading.length && el("p.soft", {}, "Nothing. The node asks others; under Models it gets something to offer."),
    loading.length > 0 && el("p", {}, el("span.spinner.inline", { "aria-hidden": "true" }), ` Loading ${loading.map((each) => tidy(each)).join(", ")}`));
}

function about(status) {
  const reached = status.bootstrap;
  return facts([
    ["Peer id", identity(status.node)],
    ["Version", `${status.version}, Python ${status.python}`],
    ["Runs for", duration(status.uptime_seconds)],
    ["Federation", `${tidy(status.federation.name)}, epoch ${status.federation.epoch}, ${count(status.federation.witnesses, "witness", "witnesses")}`],
    ["Peers", `${count(status.peers, "connection")}; ${reached.reachable ?? 0} of ${count(reached.known, "bootstrap peer")} reached${reached.last_error ? ` (${tidy(reached.last_error, 160)})` : ""}`],
    ["Credits", `${exact(status.balance.balance)} to spend, ${exact(status.balance.held)} held`],
    ["Addresses", el("div.stack.tight", {}, status.addresses.map((each) => identity(each)))],
  ]);
}

function stopper(operator, asking) {
  return action("Stop the node", async () => {
    if (!(await confirmed("Stop the node? Running answers end, and this page stops working until somebody starts the node again (mtor up).", "Stop it", { danger: true }))) return;
    await operator.call("stop");
    toast("The node is stopping. Start it again with: mtor up");
  }, { live: asking, key: "stop", kind: "small" });
}
