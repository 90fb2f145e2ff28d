// Speaking and listening: by the browser itself or by $SPEECH of the federation.
// Rule: sound leaves the browser only while the person can see that it listens. Some browsers send what they hear to
// their maker: theirs is used where it recognises on the device, or where the person chose it or nothing else is there.

import { recall } from "./settings.js";
import { bytesOf, joined, loudness, packed, Player, RATE, recorder, resampled } from "./sound.js";

export { recorder } from "./sound.js";

export const WAKE_WORD = "computer";
export const WAYS = [["auto", "Whatever is private and works"], ["node", "$SPEECH of the federation"], ["browser", "This browser"]];
const MOST_SPOKEN = 1_500; // characters asked for at once; more is asked for piece by piece
const LOUD = 0.02; // louder than this is somebody who speaks
const QUIET_SECONDS = 0.8; // after which what was said is whole
const LONGEST_CALL_SECONDS = 8; // of one utterance, while only the wake word is waited for

const Recognition = globalThis.SpeechRecognition || globalThis.webkitSpeechRecognition;

/** True if somebody in the federation does it now; `request` is "speak" or "transcribe". */
export function served(context, request) {
  return Boolean(context.node.value?.offers.some((offer) => offer.realm === "$SPEECH" && offer.slots > 0 && offer.features.includes(request)));
}

async function onDevice() {
  if (!Recognition?.available) return false;
  try {
    return (await Recognition.available({ langs: [language()], processLocally: true })) === "available";
  } catch {
    return false;
  }
}

function language() {
  return recall("speech.language", "") || navigator.language || "en-US";
}

/** How to listen now: "browser", "node", or "" where neither can. */
async function wayToListen(context) {
  const wished = recall("speech.listen", "auto");
  if (wished === "browser" && Recognition) return "browser";
  if (wished === "auto" && (await onDevice())) return "browser";
  if (served(context, "transcribe")) return "node";
  return wished === "auto" && Recognition ? "browser" : "";
}

/** Turn speech into text once. onText(text, final); onState("off" | "starting" | "listening" | "thinking", problem). */
export function dictation(context, { onText, onState }) {
  let active = null;
  let begun = false;

  async function toggle() {
    if (active) return active.stop();
    if (begun) return undefined; // pressed again before the microphone was open
    begun = true;
    onState("starting", "");
    try {
      const way = await wayToListen(context);
      if (!way) throw new Error("nobody here or in the federation turns speech into text now; a node with a speech model would (mtor models pull whisper-tiny.en)");
      active = way === "browser" ? byBrowser(onText, onState) : byNode(context, onText, onState);
      await active.done;
      onState("off", "");
    } catch (error) {
      onState("off", error.message);
    } finally {
      active = null;
      begun = false;
    }
    return undefined;
  }

  return { toggle, stop: () => active?.stop(), supported: Boolean(Recognition || navigator.mediaDevices) };
}

function byBrowser(onText, onState) {
  const recognition = new Recognition();
  recognition.lang = language();
  recognition.interimResults = true;
  const done = new Promise((resolve, reject) => {
    recognition.onstart = () => onState("listening", "");
    recognition.onresult = (event) => {
      const results = [...event.results];
      onText(results.map((result) => result[0].transcript).join(" ").trim(), results.at(-1).isFinal);
    };
    recognition.onerror = (event) => (event.error === "no-speech" || event.error === "aborted" ? resolve() : reject(new Error(`the browser's speech recognition failed: ${event.error}`)));
    recognition.onend = resolve;
  });
  recognition.start();
  return { stop: () => recognition.stop(), done };
}

function byNode(context, onText, onState) {
  const sound = recorder();
  let stop;
  const stopped = new Promise((resolve) => { stop = resolve; });
  const quiet = silence(sound.level, stop);
  const done = (async () => {
    await sound.start();
    onState("listening", "");
    await stopped;
    quiet();
    const recorded = await sound.stop();
    if (!recorded) return;
    onState("thinking", "");
    onText(await transcript(context, recorded, (text) => onText(text, false)), true);
  })();
  return { stop, done };
}

/** Calls `heard` once somebody spoke and then was silent for a while; returns a function that ends it. */
function silence(level, heard) {
  let spoke = false;
  let since = 0;
  return level.watch((value) => {
    if (value > LOUD) {
      spoke = true;
      since = 0;
    } else if (spoke) {
      since ||= performance.now();
      if (performance.now() - since > 2 * QUIET_SECONDS * 1_000) heard();
    }
  });
}

/** The words of a recording, by $SPEECH. Throws with the node's words. */
export async function transcript(context, recorded, onPart = () => {}, more = {}) {
  const language = recall("speech.language", "").slice(0, 2).toLowerCase();
  const query = context.socket.ask("transcription", { model: "auto", file: recorded.base64, ...(language && { language }), ...more });
  let text = "";
  query.on("delta", (event) => onPart((text += event.text)));
  const last = await query.ended;
  if (last.type === "failed") throw new Error(last.error.message);
  return text.trim();
}

/** Say a text. The returned object has `stop()` and `ended`, a promise of "" or of what went wrong. */
export function speak(context, text) {
  const wished = recall("speech.speak", "auto");
  const plain = spokenText(text);
  if (wished === "browser" || (wished === "auto" && hasLocalVoice())) return speakByBrowser(plain);
  return served(context, "speak") ? speakByNode(context, plain) : speakByBrowser(plain);
}

function hasLocalVoice() {
  const spoken = language().slice(0, 2);
  return Boolean(globalThis.speechSynthesis?.getVoices().some((voice) => voice.localService && voice.lang.startsWith(spoken)));
}

function speakByBrowser(text) {
  const synthesis = globalThis.speechSynthesis;
  if (!synthesis) return { stop() {}, ended: Promise.resolve("this browser has no voice, and nobody in the federation speaks now") };
  const utterance = new SpeechSynthesisUtterance(text);
  utterance.lang = language();
  const ended = new Promise((resolve) => {
    utterance.onend = () => resolve("");
    utterance.onerror = (event) => resolve(event.error === "canceled" || event.error === "interrupted" ? "" : `the browser's voice failed: ${event.error}`);
  });
  synthesis.cancel();
  synthesis.speak(utterance);
  return { stop: () => synthesis.cancel(), ended };
}

function speakByNode(context, text) {
  const player = new Player();
  let query = null;
  let stopped = false;
  const ended = (async () => {
    for (const part of pieces(text)) {
      if (stopped) break;
      query = spoken(context, { input: part }, (bytes, rate) => player.add(bytes, rate));
      const last = await query.ended;
      if (last.type === "failed") {
        player.stop();
        return last.error.message;
      }
    }
    player.close();
    await player.ended;
    return "";
  })();
  return { stop: () => { stopped = true; query?.cancel(); player.stop(); }, ended };
}

/** A query for speech whose sound goes to `onSound(bytes, rate)` as it comes. */
export function spoken(context, body, onSound) {
  const query = context.socket.ask("speech", { model: "auto", voice: recall("speech.voice", ""), response_format: "pcm", ...body });
  return query.on("bytes", (event) => onSound(bytesOf(event.data), Number(/rate=(\d+)/.exec(event.media_type)?.[1] || 24_000)));
}

/** A text in pieces that end with sentences where they can. */
export function pieces(text) {
  const parts = [];
  let rest = text.trim();
  while (rest.length > MOST_SPOKEN) {
    const end = Math.max(rest.lastIndexOf(". ", MOST_SPOKEN), rest.lastIndexOf("\n", MOST_SPOKEN));
    const cut = end > 200 ? end + 1 : MOST_SPOKEN;
    parts.push(rest.slice(0, cut));
    rest = rest.slice(cut).trim();
  }
  return rest ? [...parts, rest] : parts;
}

/** What of Markdown is said aloud. */
export function spokenText(markdown) {
  return markdown
    .replace(/```[\s\S]*?(```|$)/g, " (code) ")
    .replace(/!?\[([^\]\n]*)\]\([^)\n]*\)/g, "$1")
    .replace(/[*_`#>|~]+/g, " ")
    .replace(/[ \t]+/g, " ")
    .replace(/ *\n */g, "\n")
    .trim();
}

/** What follows the wake word in a text; null if it was not said. */
export function afterWakeWord(text, word) {
  const place = ` ${text.toLowerCase().replace(/[^\p{L}\p{N}']+/gu, " ")} `.indexOf(` ${word.toLowerCase()} `);
  if (place < 0) return null;
  const found = new RegExp(`(^|[^\\p{L}])${word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}[^\\p{L}\\p{N}]*`, "iu").exec(text);
  return found ? text.slice(found.index + found[0].length).trim() : "";
}

/** Listen for a word. onWake(rest): what was said after it, or "". onState as for dictation. */
export function wakeWord(context, { word, onWake, onState = () => {} }) {
  let listening = null;

  async function start() {
    if (listening) return;
    const way = await wayToListen(context);
    if (!way) throw new Error("nobody turns speech into text now, so nobody would hear the word");
    listening = way === "browser" ? browserCalls(heard, onState) : nodeCalls(context, heard, onState);
    try {
      await listening.started;
      onState("listening", "");
    } catch (error) {
      listening = null;
      throw error;
    }
  }

  function heard(text) {
    const rest = afterWakeWord(text, word);
    if (rest !== null) onWake(rest);
  }

  async function stop() {
    const was = listening;
    listening = null;
    await was?.stop();
    onState("off", "");
  }

  return { start, stop, supported: Boolean(Recognition || navigator.mediaDevices) };
}

function browserCalls(heard, onState) {
  let on = true;
  const recognition = new Recognition();
  recognition.lang = language();
  recognition.continuous = true;
  recognition.onresult = (event) => {
    for (const result of [...event.results].slice(event.resultIndex)) if (result.isFinal) heard(result[0].transcript);
  };
  const started = new Promise((resolve, reject) => {
    recognition.onstart = resolve;
    recognition.onerror = (event) => {
      if (event.error === "no-speech" || event.error === "aborted") return;
      on = false;
      const said = `the browser's speech recognition failed: ${event.error}`;
      reject(new Error(said));
      onState("off", said);
    };
  });
  recognition.onend = () => on && recognition.start(); // browsers end it every minute or so
  recognition.start();
  return { started, stop: () => { on = false; recognition.stop(); } };
}

/** Utterances, cut at silences, go to $SPEECH; nothing is sent while nobody speaks. */
function nodeCalls(context, heard, onState) {
  let blocks = [];
  let spokeAt = 0;
  let asking = false;
  const sound = recorder({ onBlock: take });

  function take(samples, rate) {
    const now = performance.now();
    if (loudness(samples) > LOUD) spokeAt = now;
    const speaking = now - spokeAt < QUIET_SECONDS * 1_000;
    blocks.push(samples);
    if (!speaking && blocks.length > 4 && !blocks.spoken) blocks = blocks.slice(-4); // a little from before the voice
    if (speaking) blocks.spoken = true;
    const seconds = (blocks.length * samples.length) / rate;
    if (blocks.spoken && (!speaking || seconds > LONGEST_CALL_SECONDS)) {
      const said = resampled(joined(blocks), rate, RATE);
      blocks = [];
      if (!asking) understand(said);
    }
  }

  async function understand(samples) {
    asking = true;
    try {
      heard(await transcript(context, await packed(samples)));
    } catch (error) {
      onState("listening", error.message);
    } finally {
      asking = false;
    }
  }

  return { started: sound.start(), stop: () => sound.stop() };
}
