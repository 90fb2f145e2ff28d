"""Which arithmetic suits this processor, what a long wait of threads costs, and what answers at once gain.

Rule: one run, the same weights, medians; nothing is compared over runs. For the tables of docs/performance.md.

    python bench/arithmetic.py [--models STORE] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM

from node.engines.batched_network import BatchedNetwork
from node.engines.chat_model import ChatModel
from node.engines.networks import Network, fastest_arithmetic
from node.engines.plain_network import PlainNetwork
from node.models import ModelStore

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
ARITHMETICS = ("packed-fp32", "packed", "fp32")
PROMPTS = (40, 256)  # tokens
TOKENS = 20  # written for a median
PRODUCTS = 400
BESIDE_SECONDS = 90.0  # of work beside the products, at most
SPINS = ("300000", "3000", "0")  # libgomp's own number, the engines', none
BUSY = f"""
import time, torch
torch.set_num_threads(1)
matrix = torch.randn(800, 800)
end = time.monotonic() + {BESIDE_SECONDS}
while time.monotonic() < end:
    matrix @ matrix
"""


def milliseconds(work: Callable[[], object], runs: int) -> float:
    """The median of some runs."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return 1_000 * statistics.median(taken)


def read_milliseconds(network: Network, tokens: int) -> float:
    """To read a prompt that nobody asked before."""

    def read() -> None:
        memory = network.new_memory()
        network.read(list(range(100, 100 + tokens)), memory)
        network.free(memory)

    return milliseconds(read, 3)


def write_milliseconds(network: Network, answers: int, known: int) -> float:
    """To write a token in each of some answers of `known` tokens."""
    memories = [network.new_memory() for _ in range(answers)]
    for memory in memories:
        network.read(list(range(100, 100 + known)), memory)
    taken = milliseconds(lambda: network.write([5] * answers, memories), TOKENS)
    for memory in memories:
        network.free(memory)
    return taken


def arithmetics(folder: Path, threads: int) -> None:
    """One model in each arithmetic."""
    print(f"auto takes {fastest_arithmetic()} here")
    for name in ARITHMETICS:
        network = ChatModel(folder, "cpu", threads, name).network
        prompts = ", ".join(f"{count} tokens {read_milliseconds(network, count):.0f} ms" for count in PROMPTS)
        one, many = write_milliseconds(network, 1, 256), write_milliseconds(network, 16, 16)
        print(
            f"{name:12} prompt of {prompts}; a token of one answer {one:.0f} ms, of sixteen {many:.0f} ms", flush=True
        )


def together() -> None:
    """Eight answers of a random Qwen 2 by transformers' modules, one after another and at once."""
    config = Qwen2Config(vocab_size=8_192, hidden_size=768, intermediate_size=3_072, num_hidden_layers=10)
    make: Any = Qwen2ForCausalLM
    torch.manual_seed(1)
    model = make(config).eval()
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        plain, batched = (write_milliseconds(made, 8, 100) for made in (PlainNetwork(model), BatchedNetwork(model)))
        print(
            f"{dtype}: 8 answers, one by one {8_000 / plain:.1f} tokens/s, together {8_000 / batched:.1f}", flush=True
        )


def products(threads: int) -> None:
    """Seconds for some products; see `waits`."""
    torch.set_num_threads(threads)
    weight = torch.randn(1_536, 576)
    for rows in (1, 16):
        state = torch.randn(rows, 576)
        began = time.perf_counter()
        for _ in range(PRODUCTS):
            functional.linear(state, weight)
            torch.softmax(weight, -1)
        print(f"  {rows} rows: {time.perf_counter() - began:.2f} s", flush=True)


def waits(threads: int) -> None:
    """The same products with threads that turn in loops for longer or shorter, alone and beside a busy process."""
    for beside in (False, True):
        other = subprocess.Popen([sys.executable, "-c", BUSY]) if beside else None
        for spins in SPINS:
            print(f"GOMP_SPINCOUNT={spins}, {'beside a busy process' if beside else 'alone'}:", flush=True)
            command = [sys.executable, __file__, "--products", "--threads", str(threads)]
            subprocess.run(command, env={**os.environ, "GOMP_SPINCOUNT": spins}, check=True)
        if other is not None:
            other.kill()
            other.wait()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    store = Path(os.environ.get("MTOR_MODELS", HERE.parent / ".models"))
    parser.add_argument("--models", type=Path, default=store, help="the model store")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--products", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.products:
        products(options.threads)
        return
    waits(options.threads)
    arithmetics(ModelStore(options.models).find(MODEL).path, options.threads)
    together()


if __name__ == "__main__":
    main()
