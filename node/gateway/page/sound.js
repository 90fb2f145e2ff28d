// Sound as numbers: from the microphone, to WAV, and to the loudspeaker.
// Rule: samples are numbers from -1 to 1, one channel. The microphone is open only between start and stop.

import { Observable } from "./observable.js";

export const RATE = 16_000; // samples a second of what is sent: what speech models hear
export const LONGEST_SECONDS = 300;

/** Records the microphone. `onBlock(samples, rate)` gets what comes, too. */
export function recorder({ onBlock = null } = {}) {
  const level = new Observable(0);
  let audio = null;
  let stream = null;
  let blocks = [];
  let length = 0;

  async function start() {
    if (!navigator.mediaDevices?.getUserMedia) throw new Error("this browser gives no microphone to a page that is not on https or localhost");
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true } });
    } catch (error) {
      throw new Error(refusal(error), { cause: error });
    }
    blocks = [];
    length = 0;
    audio = new AudioContext();
    await audio.audioWorklet.addModule(new URL("./recording.js", import.meta.url));
    const node = new AudioWorkletNode(audio, "recording", { numberOfOutputs: 0 });
    node.port.onmessage = (message) => take(message.data);
    audio.createMediaStreamSource(stream).connect(node);
  }

  function take(samples) {
    if (!audio) return; // it was on its way when the microphone was closed
    level.set(loudness(samples));
    onBlock?.(samples, audio.sampleRate);
    if (length < LONGEST_SECONDS * audio.sampleRate) {
      blocks.push(samples);
      length += samples.length;
    }
  }

  /** Close the microphone; a promise of {wav, base64, seconds}, or null where nothing was recorded. */
  async function stop() {
    if (!audio) return null;
    const [open, rate] = [audio, audio.sampleRate];
    for (const track of stream.getTracks()) track.stop();
    audio = stream = null;
    await open.close();
    level.set(0);
    const samples = resampled(joined(blocks), rate, RATE);
    return samples.length ? packed(samples) : null;
  }

  return { start, stop, level };
}

function refusal(error) {
  if (error.name === "NotAllowedError") return "the browser was not allowed to use the microphone; allow it beside the address above";
  if (error.name === "NotFoundError") return "there is no microphone";
  return `the microphone cannot be used: ${error.message}`;
}

/** {wav, base64, seconds} of samples at `RATE`. */
export async function packed(samples) {
  const wav = new Blob([wavHeader(samples.length), sixteenBit(samples)], { type: "audio/wav" });
  return { wav, base64: await base64(wav), seconds: samples.length / RATE };
}

/** From 0 (silence) to 1. */
export function loudness(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return Math.sqrt(sum / (samples.length || 1));
}

export function joined(blocks) {
  const whole = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let place = 0;
  for (const block of blocks) {
    whole.set(block, place);
    place += block.length;
  }
  return whole;
}

/** Samples at another rate. Each new one is the mean of those that it stands for, which keeps high tones from folding back. */
export function resampled(samples, from, to) {
  if (from === to) return samples;
  const result = new Float32Array(Math.floor((samples.length * to) / from));
  const step = from / to;
  for (let index = 0; index < result.length; index++) {
    const begin = Math.floor(index * step);
    const end = Math.max(begin + 1, Math.min(samples.length, Math.floor((index + 1) * step)));
    let sum = 0;
    for (let each = begin; each < end; each++) sum += samples[each];
    result[index] = sum / (end - begin);
  }
  return result;
}

function sixteenBit(samples) {
  const view = new DataView(new ArrayBuffer(samples.length * 2));
  samples.forEach((sample, index) => view.setInt16(index * 2, Math.max(-1, Math.min(1, sample)) * 32_767, true));
  return view.buffer;
}

function wavHeader(count, rate = RATE) {
  const view = new DataView(new ArrayBuffer(44));
  const text = (place, letters) => [...letters].forEach((letter, index) => view.setUint8(place + index, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + count * 2, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, rate * 2, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, count * 2, true);
  return view.buffer;
}

/** A WAV of 16-bit samples that are bytes already. */
export function wavOfPcm(parts, rate) {
  const bytes = parts.reduce((sum, part) => sum + part.length, 0);
  return new Blob([wavHeader(bytes / 2, rate), ...parts], { type: "audio/wav" });
}

/** A blob's bytes as base64. */
export function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** The bytes of base64. */
export function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Plays 16-bit samples as they come, without gaps. `ended` is a promise: all was heard, or it was stopped. */
export class Player {
  #audio = new AudioContext();
  #at = 0; // when the next piece begins
  #closing = null;
  #sources = new Set();
  #rest = new Uint8Array(0); // half a sample, if a piece ended within one

  constructor() {
    this.ended = new Promise((resolve) => { this.#closing = resolve; });
  }

  add(piece, rate) {
    if (this.#audio.state === "closed") return;
    const bytes = new Uint8Array([...this.#rest, ...piece]);
    const whole = bytes.length - (bytes.length % 2);
    this.#rest = bytes.slice(whole);
    if (!whole) return;
    const view = new DataView(bytes.buffer, 0, whole);
    const buffer = this.#audio.createBuffer(1, whole / 2, rate);
    const channel = buffer.getChannelData(0);
    for (let index = 0; index < channel.length; index++) channel[index] = view.getInt16(index * 2, true) / 32_768;
    const source = this.#audio.createBufferSource();
    source.buffer = buffer;
    source.connect(this.#audio.destination);
    this.#at = Math.max(this.#at, this.#audio.currentTime + 0.05);
    source.start(this.#at);
    this.#at += buffer.duration;
    this.#sources.add(source);
    source.onended = () => {
      this.#sources.delete(source);
      this.#finish();
    };
  }

  /** Nothing more will come. */
  close() {
    this.closed = true;
    this.#finish();
  }

  stop() {
    this.closed = true;
    for (const source of this.#sources) source.stop();
    this.#sources.clear();
    this.#finish();
  }

  #finish() {
    if (!this.closed || this.#sources.size || this.#audio.state === "closed") return;
    this.#audio.close();
    this.#closing();
  }
}
