// OpenAI's client for Node against a gateway: one JSON object on standard output, for the test beside this file.
// Usage: node clients.mjs URL
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0, timeout: 45_000 });
const messages = [{ role: "user", content: "hello" }];

async function collect(stream, text) {
  let collected = "";
  for await (const each of stream) collected += text(each);
  return collected;
}

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
  return null;
}

const told = {};
told.models = (await client.models.list()).data.map((model) => model.id);
const whole = await client.chat.completions.create({ model: "auto", messages });
told.chat = [whole.choices[0].message.content, whole.usage.total_tokens];
told.stream = await collect(
  await client.chat.completions.create({ model: "auto", messages, stream: true, stream_options: { include_usage: true } }),
  (chunk) => chunk.choices[0]?.delta?.content ?? `|${chunk.usage?.total_tokens ?? ""}`,
);
told.helper = await client.chat.completions.stream({ model: "auto", messages }).finalContent();
told.completion = (await client.completions.create({ model: "auto", prompt: "hello" })).choices[0].text;
told.response = (await client.responses.create({ model: "auto", input: "hello" })).output_text;
const events = [];
const streamed = client.responses.stream({ model: "auto", input: "hello" });
for await (const event of streamed) events.push(event.type);
told.events = events;
told.final = (await streamed.finalResponse()).output_text;
const spoken = await client.audio.speech.create({ model: "auto", voice: "anna", input: "Hello." });
told.speech = [spoken.headers.get("content-type"), (await spoken.arrayBuffer()).byteLength > 100];
const sound = await toFile(Buffer.from("RIFFsound"), "sound.wav");
told.transcript = (await client.audio.transcriptions.create({ model: "auto", file: sound })).text;
told.image = (await client.images.generate({ model: "auto", prompt: "a red apple" })).data[0].b64_json;
told.embedding = await failure(client.embeddings.create({ model: "auto", input: "hello" }));
told.wrong = await failure(client.chat.completions.create({ model: "auto", messages, temperature: 3 }));
told.missing = await failure(client.models.retrieve("gpt-9"));
console.log(JSON.stringify(told));
