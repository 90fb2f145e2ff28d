// llama.cpp's side of bench/engine.py: one JSON line in (token ids, how many to produce), one JSON line out (seconds).
import { createInterface } from "node:readline";
import { getLlama } from "node-llama-cpp";

const [modelPath, threads] = process.argv.slice(2);
const llama = await getLlama({ build: "never", gpu: false, logLevel: "error", maxThreads: Number(threads) });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({ contextSize: 2048, threads: Number(threads) });
const sequence = context.getSequence();
console.log(JSON.stringify({ ready: true }));

for await (const line of createInterface({ input: process.stdin })) {
  const { ids, tokens } = JSON.parse(line);
  await sequence.clearHistory();
  const began = performance.now();
  const times = [];
  const produced = [];
  for await (const token of sequence.evaluate(ids, { temperature: 0 })) {
    times.push((performance.now() - began) / 1000);
    produced.push(token);
    if (times.length === tokens) break;
  }
  console.log(JSON.stringify({ times, text: model.detokenize(produced) }));
}
process.exit(0);
