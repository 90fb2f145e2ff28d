// A model on its way in: what is fetched, how fast, how long still; and what is agreed to first.
// Rule: nothing of a hub is fetched before its licence was shown and agreed to, for exactly that commit.

import { button, el, fill, problem, spinner, toast } from "../../dom.js";
import { bytes, count, duration, tidy } from "../../format.js";
import { bar, facts } from "../../pieces.js";

const STEPS = { fetch: "Fetching", verify: "Comparing digests", convert: "Converting", unpack: "Unpacking", copy: "Copying", wait: "Waiting", "fetch again": "Fetching again" };

/** One pull. `ended("done" | "stopped" | "failed")`; `away()` when its row is closed. */
export class Pull {
  #operator;
  #model;
  #more;
  #ended;
  #stopping = new AbortController();
  #says = el("span", {}, "Asking");
  #figures = el("span.soft.small-text");
  #place = el("div");
  #stop;

  constructor(operator, model, more, ended, away) {
    this.#operator = operator;
    this.#model = model;
    this.#more = more;
    this.#ended = ended;
    this.#stop = button("Stop", () => this.stop(), { kind: "small", label: `Stop pulling ${tidy(model)}` });
    this.close = () => { this.element.remove(); away(); };
    this.element = el("div.pull", { role: "group", "aria-label": `Pulling ${tidy(model)}` },
      el("div.row.between", {}, el("span", {}, this.#says, " ", el("strong.long", {}, tidy(model))), this.#stop), this.#place, this.#figures);
    fill(this.#place, bar(null, "progress"));
    this.#run();
  }

  /** Stop it; what was fetched is kept by the node, and gone on with next time. */
  stop() {
    this.#stopping.abort();
  }

  async #run() {
    try {
      const last = await this.#operator.stream("models.pull", { model: this.#model, ...this.#more }, (line) => this.#show(line), this.#stopping.signal);
      this.element.remove();
      toast(`${tidy(last.model)} is in the store`, "good");
      this.#ended("done");
    } catch (error) {
      this.#failed(error);
    }
  }

  #failed(error) {
    if (error.name === "AbortError") {
      this.element.remove();
      this.#ended("stopped");
      return;
    }
    fill(this.#says, "Could not pull");
    fill(this.#figures);
    fill(this.#place, problem(error, () => {
      fill(this.#place, bar(null, "progress"));
      this.#stopping = new AbortController();
      this.#stop.replaceWith(this.#stop = button("Stop", () => this.stop(), { kind: "small", label: `Stop pulling ${tidy(this.#model)}` }));
      this.#run();
    }));
    this.#stop.replaceWith(this.#stop = button("Close", () => this.close(), { kind: "small" }));
    this.#ended("failed");
  }

  #show(line) {
    if (line.done) return;
    fill(this.#says, STEPS[line.step] || tidy(line.step, 40));
    fill(this.#place, bar(line.total_bytes ? line.done_bytes / line.total_bytes : null, "progress"));
    const parts = [line.total_bytes ? `${bytes(line.done_bytes)} of ${bytes(line.total_bytes)}` : "", line.bytes_per_second ? `${bytes(line.bytes_per_second)}/s` : "", line.seconds_left ? `${duration(line.seconds_left)} left` : "", tidy(line.message, 200)];
    fill(this.#figures, parts.filter(Boolean).join(" · "));
  }
}

/** Show a hub's model with its licence; `agree(commit)` when somebody agrees. */
export async function lookAndPull(operator, model, agree) {
  const place = el("div.stack", {}, spinner("Looking at the hub"));
  const box = el("dialog.dialog.wide", { "aria-label": "A model of a hub", onclose: () => box.remove() }, place);
  document.body.append(box);
  box.showModal();
  try {
    fill(place, offered(await operator.call("models.look", { model }), box, agree));
  } catch (error) {
    box.close();
    throw error;
  }
}

function offered(found, box, agree) {
  const licence = tidy(found.licence, 80);
  return [
    el("h2.long", {}, tidy(found.source, 120)),
    facts([
      ["Licence", licence ? el("strong", {}, licence) : el("span.bad-text", {}, "not named: ask its author before you use it")],
      ["Its text", found.licence_text && el("span.long", {}, tidy(found.licence_text, 400))],
      ["Size", `${bytes(found.bytes)}, ${count(found.files.length, "file")}`],
      ["Commit", el("code", {}, tidy(found.commit, 64))],
      found.gated && ["Gated", "its owner wants an account of the hub that agreed to terms there (HF_TOKEN)"],
    ]),
    found.card && el("details", { open: true }, el("summary", {}, "What its author says"), el("pre.wrap", { tabindex: "0" }, found.card)),
    el("p.soft", {}, "You agree for exactly this commit. Only weights and texts are fetched; programs of the model are refused."),
    el("div.row.end", {}, button("Cancel", () => box.close()), button(licence ? `Agree to ${licence} and pull` : "Pull it anyway", () => { box.close(); agree(found.commit); }, { kind: "primary" })),
  ];
}
