// Speech: a talk without hands, words from sound, and sound from words.
// Rule: the microphone is open only while a button shows it; leaving the view closes it.

import { answered, choice } from "../choice.js";
import { button, el, field, fill, problem, select, spinner } from "../dom.js";
import { bytes } from "../format.js";
import { recall, remember } from "../settings.js";
import { base64, Player, recorder, wavOfPcm } from "../sound.js";
import { afterWakeWord, dictation, speak, spoken, wakeWord, WAKE_WORD, WAYS } from "../voice.js";

const MOST_FILE_BYTES = 16 * 1024 * 1024; // of one sound: what the node takes
const REMEMBERED_TURNS = 12; // of a talk, sent along with the next question

export function mount(root, context) {
  const [talking, how, heard, said] = [talk(context), settings(), listening(context), speaking(context)];
  fill(root, el("div.speech", {}, el("div.stack", {}, talking.element, how.element), el("div.stack", {}, heard.element, said.element)));
  return () => [talking, heard, said].forEach((part) => part.leave());
}

// --- a talk ---------------------------------------------------------------------------------------------

/** Wake word or button -> words -> an answer -> said aloud. */
function talk(context) {
  const turns = [];
  const log = el("div.talk", { role: "log", "aria-label": "The talk" });
  const said = el("p.soft", { role: "status" }, "Press the button and speak.");
  const word = () => recall("speech.wake", WAKE_WORD);
  let running = null; // a query or a voice, to be stopped
  let waking = null;

  const listen = dictation(context, { onText: heard, onState: (state, trouble) => fill(said, trouble ? problem(trouble) : told(state)) });
  const press = button("🎙 Talk", () => { running?.stop(); listen.toggle(); }, { kind: "primary" });
  const wake = button(`Wait for “${word()}”`, toggleWake, { "aria-pressed": "false" });
  const stop = button("Stop", () => { running?.stop(); listen.stop(); });
  const again = button("Begin anew", () => { turns.length = 0; fill(log); });

  function told(state) {
    if (state === "listening") return spinner("listening: speak now; silence ends it");
    if (state === "thinking") return spinner("understanding what was said");
    if (state === "starting") return spinner("opening the microphone");
    return waking ? `waiting for “${word()}”` : "Press the button and speak.";
  }

  function heard(text, final) {
    if (!final) return fill(said, text);
    const question = afterWakeWord(text, word()) ?? text;
    return question && ask(question);
  }

  async function toggleWake() {
    if (waking) {
      await waking.stop();
      waking = null;
    } else {
      waking = wakeWord(context, {
        word: word(),
        onWake: (rest) => { running?.stop(); if (rest) ask(rest); else listen.toggle(); },
        onState: (state, trouble) => trouble && fill(said, problem(trouble)),
      });
      try {
        await waking.start();
      } catch (error) {
        waking = null;
        fill(said, problem(error));
        return;
      }
    }
    wake.setAttribute("aria-pressed", String(Boolean(waking)));
    fill(said, told("off"));
  }

  async function ask(question) {
    log.append(el("p.turn.mine", {}, question));
    const answer = log.appendChild(el("p.turn", {}, spinner("thinking")));
    turns.push({ role: "user", content: question });
    const query = context.socket.ask("chat", { model: "$CHAT", messages: turns.slice(-REMEMBERED_TURNS), max_tokens: 300 });
    running = { stop: () => query.cancel() };
    let text = "";
    query.on("delta", (event) => fill(answer, (text += event.text)));
    const last = await query.ended;
    if (last.type === "failed") return fill(answer, problem(last.error, () => { answer.remove(); turns.pop(); ask(question); }));
    turns.push({ role: "assistant", content: text });
    answer.after(last.type === "completed" ? answered(last, context) : "");
    if (last.type === "cancelled") return undefined;
    const voice = speak(context, text);
    running = voice;
    fill(said, spinner("speaking"));
    const trouble = await voice.ended;
    fill(said, trouble ? problem(trouble) : told("off"));
    return undefined;
  }

  const element = el("section.card.stack", { "aria-labelledby": "talk-title" }, el("h2", { id: "talk-title" }, "Talk"),
    el("p.soft", {}, "Ask aloud and hear the answer. While it waits for the word, each thing said near the microphone is turned into text to look for it."),
    el("div.row", {}, press, wake, stop, again), said, log);
  return { element, leave: () => { waking?.stop(); listen.stop(); running?.stop(); } };
}

// --- words from sound -----------------------------------------------------------------------------------

function listening(context) {
  const chosen = choice(context, { realm: "$SPEECH", remember: "transcribe" });
  const result = el("div.stack", { "aria-live": "polite" });
  const sound = recorder();
  const meter = el("meter", { min: 0, max: 0.3, value: 0, "aria-label": "Loudness" });
  const unwatch = sound.level.watch((level) => { meter.value = level; });
  const translate = el("input", { type: "checkbox" });
  const record = button("Record", toggle, { "aria-pressed": "false" });
  const file = el("input", { type: "file", accept: "audio/*", onchange: () => file.files[0] && take(file.files[0]) });
  let recording = false;

  async function toggle() {
    try {
      if (recording) {
        recording = false;
        const recorded = await sound.stop();
        if (recorded) transcribe(recorded.base64, recorded.wav);
      } else {
        await sound.start();
        recording = true;
      }
    } catch (error) {
      fill(result, problem(error));
    }
    fill(record, recording ? "Stop and write down" : "Record");
    record.setAttribute("aria-pressed", String(recording));
  }

  async function take(blob) {
    if (blob.size > MOST_FILE_BYTES) return fill(result, problem(`a sound has at most ${bytes(MOST_FILE_BYTES)}, this one ${bytes(blob.size)}; send a part of it`));
    return transcribe(await base64(blob), blob);
  }

  async function transcribe(encoded, blob) {
    const text = el("p.transcript", { tabindex: 0 });
    const state = el("div", {}, spinner("waiting for a worker"));
    const query = context.socket.ask(translate.checked ? "translation" : "transcription", { ...chosen.value(), file: encoded });
    const stop = button("Stop", () => query.cancel(), { kind: "small" });
    const listen = el("audio", { controls: true, src: URL.createObjectURL(blob), "aria-label": "The sound" });
    fill(result, listen, state, text, stop);
    query.on("routed", (event) => fill(state, spinner(event.queue_position ? `${event.queue_position} before it` : `${event.model} listens`)));
    query.on("delta", (event) => text.append(event.text));
    const last = await query.ended;
    stop.remove();
    URL.revokeObjectURL(listen.src);
    if (last.type === "failed") return fill(state, problem(last.error, () => transcribe(encoded, blob)));
    if (last.type === "cancelled") return fill(state, "stopped");
    fill(state, answered(last, context));
    return result.append(el("div.row", {}, button("Copy", () => navigator.clipboard.writeText(text.textContent)), download(() => new Blob([text.textContent], { type: "text/plain" }), "transcript.txt")));
  }

  const element = el("section.card.stack", { "aria-labelledby": "listen-title",
    ondragover: (event) => event.preventDefault(),
    ondrop: (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]); } },
  el("h2", { id: "listen-title" }, "Words from sound"),
  el("div.row", {}, record, meter), field("Or a file (WAV, MP3, OGG, FLAC)", file),
  el("label.row", {}, translate, "translate into English"), chosen.element, result);
  return { element, leave: () => { unwatch(); chosen.leave?.(); if (recording) sound.stop(); } };
}

// --- sound from words -----------------------------------------------------------------------------------

function speaking(context) {
  const chosen = choice(context, { realm: "$SPEECH", remember: "speak" });
  const text = el("textarea", { rows: 4, maxlength: 4_000, placeholder: "What should be said?" });
  const voice = el("input", { value: recall("speech.voice", ""), placeholder: "the model's own", onchange: () => remember("speech.voice", voice.value.trim() || undefined) });
  const speed = el("input", { type: "range", min: 0.5, max: 2, step: 0.1, value: 1 });
  const result = el("div.stack", { "aria-live": "polite" });
  let current = null;

  async function say(event) {
    event.preventDefault();
    if (!text.value.trim()) return text.focus();
    current?.stop();
    const player = new Player();
    const heard = [];
    let rate = 24_000;
    const state = el("div", {}, spinner("waiting for a worker"));
    const query = spoken(context, { ...chosen.value(), input: text.value.trim(), speed: Number(speed.value) }, (piece, hertz) => {
      rate = hertz;
      heard.push(piece);
      player.add(piece, hertz);
    });
    current = { stop: () => { query.cancel(); player.stop(); } };
    query.on("routed", (routed) => fill(state, spinner(routed.queue_position ? `${routed.queue_position} before it` : `${routed.model} speaks`)));
    fill(result, state, el("div.row", {}, button("Stop", () => current.stop(), { kind: "small" })));
    const last = await query.ended;
    player.close();
    if (last.type === "failed") return fill(state, problem(last.error));
    if (last.type === "cancelled") return fill(state, "stopped");
    fill(state, answered(last, context));
    return result.append(el("div.row", {}, download(() => wavOfPcm(heard, rate), "speech.wav")));
  }

  const element = el("section.card.stack", { "aria-labelledby": "say-title" }, el("h2", { id: "say-title" }, "Sound from words"),
    el("form.stack", { onsubmit: say }, field("Text", text), el("div.fields", {}, field("Voice", voice), field("Speed", speed)), el("div.row", {}, el("button.button.primary", {}, "Say it"))),
    chosen.element, result);
  return { element, leave: () => { chosen.leave?.(); current?.stop(); } };
}

function download(make, name) {
  return button("Download", () => {
    const address = URL.createObjectURL(make());
    el("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1_000);
  });
}

// --- settings -------------------------------------------------------------------------------------------

function settings() {
  const listen = select(WAYS, recall("speech.listen", "auto"), (value) => remember("speech.listen", value));
  const say = select(WAYS, recall("speech.speak", "auto"), (value) => remember("speech.speak", value));
  const word = el("input", { value: recall("speech.wake", WAKE_WORD), maxlength: 40, onchange: () => remember("speech.wake", word.value.trim() || undefined) });
  const language = el("input", { value: recall("speech.language", ""), placeholder: navigator.language, maxlength: 16, onchange: () => remember("speech.language", language.value.trim() || undefined) });
  const hint = "Some browsers send what they hear to their maker. The first choice uses this browser where it listens on this device, then $SPEECH, and the browser's service only where there is nothing else.";
  const element = el("section.card.stack", { "aria-labelledby": "speech-settings-title" }, el("h2", { id: "speech-settings-title" }, "How"),
    el("div.fields", {}, field("Listen with", listen), field("Speak with", say), field("Wake word", word, "Takes effect when the view is opened again."), field("Language", language)),
    el("p.hint", {}, hint));
  return { element };
}
