// Runs beside the page, where sound arrives: hands it on in blocks of an eighth of a second or less.

const BLOCK = 2_048;

class Recording extends AudioWorkletProcessor {
  #samples = new Float32Array(BLOCK);
  #filled = 0;

  process(inputs) {
    const channel = inputs[0][0];
    if (!channel) return true;
    for (const sample of channel) {
      this.#samples[this.#filled++] = sample;
      if (this.#filled === BLOCK) {
        this.port.postMessage(this.#samples.slice());
        this.#filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("recording", Recording);
