// How programs and other people reach this node.

import { button, el } from "../../dom.js";
import { facts, identity, live, redraw, snippet } from "../../pieces.js";

export const id = "connect";
export const title = "Connect";

export function mount(panel, context) {
  const asking = live(panel, () => context.operator.call("status"), (status, place) => redraw(place, drawn(status, context)), { seconds: 30 });
  return () => asking.stop();
}

function drawn(status, context) {
  const url = location.origin;
  const here = ["127.0.0.1", "localhost", "[::1]"].includes(location.hostname);
  const model = context.node.value?.offers.find((offer) => offer.realm === "$CHAT" && offer.slots)?.model || "auto";
  return [
    el("section.card.stack", {}, el("h2", {}, "Addresses"),
      facts([["Programs, OpenAI’s API", identity(`${url}/v1`)], ["Ollama’s API", identity(url)], ["Everything described", el("a", { href: "/openapi.json" }, `${url}/openapi.json`)], ["Figures for Prometheus", el("a", { href: "/metrics" }, `${url}/metrics`)], ["Other nodes", status.addresses.length ? el("div.stack.tight", {}, status.addresses.map((each) => identity(each))) : "none: this node listens nowhere"]]),
      here
        ? el("p.soft", {}, "This gateway is reached from this machine alone. For others in your network set ", el("code", {}, "gateway.host"), " to 0.0.0.0 under Limits and make a key for each of them; over the internet put it behind a proxy with HTTPS.")
        : el("p.soft", {}, "Others need a key. Over anything but your own network put HTTPS before it: keys and questions can be read on the way."),
      el("div.row", {}, button("Make a key", () => context.go("owner/keys"), { kind: "small", "data-key": "keys" }))),
    el("section.card.stack", {}, el("h2", {}, "curl"), snippet(curl(url, model, here), "curl")),
    el("section.card.stack", {}, el("h2", {}, "Python, OpenAI’s SDK"), snippet(python(url, model, here), "Python with OpenAI’s SDK")),
    el("section.card.stack", {}, el("h2", {}, "JavaScript, OpenAI’s SDK"), snippet(javascript(url, model, here), "JavaScript with OpenAI’s SDK")),
    el("section.card.stack", {}, el("h2", {}, "Programs made for Ollama"), snippet(`OLLAMA_HOST=${url} ollama run ${shell(model)}`, "Ollama"), el("p.hint", {}, "Editors, chats and agents that know Ollama take the same address as its server.")),
    el("section.card.stack", {}, el("h2", {}, "Another node"), el("p.soft", {}, "On the other machine; then it asks this node as a peer, and pays in credits."), snippet(`mtor up --bootstrap ${status.addresses.find((each) => !each.includes("/127.0.0.1/")) || status.addresses[0] || "/ip4/ADDRESS/tcp/9001/p2p/PEERID"}`, "another node")),
  ];
}

const KEY = "mtor-YOUR-KEY";

function curl(url, model, here) {
  const key = here ? "" : ` \\\n  -H 'Authorization: Bearer ${KEY}'`;
  return `curl -N ${url}/v1/chat/completions \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${shell(JSON.stringify({ model, stream: true, messages: [{ role: "user", content: "Hello!" }] }))}`;
}

function python(url, model, here) {
  return `from openai import OpenAI

client = OpenAI(base_url="${url}/v1", api_key="${here ? "local" : KEY}")
stream = client.chat.completions.create(
    model=${JSON.stringify(model)},
    stream=True,
    messages=[{"role": "user", "content": "Hello!"}],
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)`;
}

function javascript(url, model, here) {
  return `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${url}/v1", apiKey: "${here ? "local" : KEY}" });
const stream = await client.chat.completions.create({
  model: ${JSON.stringify(model)},
  stream: true,
  messages: [{ role: "user", content: "Hello!" }],
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");`;
}

/** A text as one word of a shell. */
function shell(text) {
  return /^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
