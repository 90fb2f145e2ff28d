// llama.cpp's side of bench/engine.py: one JSON line in (token ids, how many to produce, how many answers at once), one
// JSON line out (for each answer the seconds from the question to each token).
import { createInterface } from "node:readline";
import { getLlama } from "node-llama-cpp";

const [modelPath, threads, most] = process.argv.slice(2);
const llama = await getLlama({ build: "never", gpu: false, logLevel: "error", maxThreads: Number(threads) });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({ contextSize: 512, sequences: Number(most), threads: Number(threads) });
const sequences = Array.from({ length: Number(most) }, () => context.getSequence());
console.log(JSON.stringify({ ready: true }));

async function answer(sequence, ids, tokens) {
  await sequence.clearHistory();
  const began = performance.now();
  const times = [];
  for await (const _ of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
    times.push((performance.now() - began) / 1000);
    if (times.length === tokens) break;
  }
  return times;
}

for await (const line of createInterface({ input: process.stdin })) {
  const { prompts, tokens } = JSON.parse(line);
  const times = await Promise.all(prompts.map((ids, index) => answer(sequences[index], ids, tokens)));
  console.log(JSON.stringify({ times }));
}
process.exit(0);
