"""Tokens to logits: what the engine asks of a model's arithmetic, and which arithmetic is fast on this machine.

Rule: every network gives the same logits up to rounding, alone or together with others, and a test holds them to it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional

from node.engines.products import in_eight_bits, in_half_precision

PROMPT_TOKENS = 64  # for which the arithmetic of prompts is measured
FOR_PROMPTS = 4_096  # rows of the matrix that prompts are multiplied with
BEYOND_CACHES = 16_384  # rows of the one for single tokens, 64 MiB in fp32: a model's weights come from memory
PACKING_PAYS = 1.25  # times fp32's step, in 8 bits: there the two are near each other, and 4 bits take half as long
NEARLY = 1.1  # of the fastest step


class Network(Protocol):
    """A loaded model's arithmetic. A memory is what one answer remembers of its tokens."""

    @property
    def token_bytes(self) -> int:
        """Bytes of a memory for each token; 0 if parts of a memory cannot be saved."""

    @property
    def together(self) -> bool:
        """True if `write` computes several answers at once, and changes all memories or none."""

    def new_memory(self) -> Any:
        """An empty memory."""

    def free(self, memory: Any) -> None:
        """Give a memory's storage back; again changes nothing."""

    def read(self, ids: Sequence[int], memory: Any) -> torch.Tensor:
        """Logits after the last of `ids`, which follow those in `memory`: (vocabulary,)."""

    def write(self, tokens: Sequence[int], memories: Sequence[Any]) -> torch.Tensor:
        """Logits after one more token in each of several memories, none of them empty: (answers, vocabulary)."""

    def save(self, memory: Any, start: int, end: int) -> Any:
        """A copy of what is remembered of the tokens from `start` to `end`."""

    def restore(self, memory: Any, parts: Sequence[Any]) -> None:
        """Remember tokens from copies of parts that follow each other."""


def fastest_arithmetic() -> str:
    """ "packed", "packed-fp32", "bf16" or "fp32": measured, because a CPU without the instructions is ten times slower
    with some. Prompts and attention decide between bf16 and fp32, single tokens whether the weights are packed."""
    single, prompt = torch.ones(BEYOND_CACHES, 1_024), torch.ones(PROMPT_TOKENS, 1_024)
    part = single[:FOR_PROMPTS]
    half_part = in_half_precision(part)
    half_wins = fastest({"half": lambda: half_part(prompt.bfloat16()), "full": lambda: functional.linear(prompt, part)})
    state, eight, halved = torch.ones(1, 1_024), in_eight_bits(single), in_half_precision(single)
    if half_wins == "half":
        half = state.bfloat16()
        return fastest({"packed": lambda: eight(half), "bf16": lambda: halved(half)})
    full = min(seconds(lambda: functional.linear(state, single)))
    return "packed-fp32" if min(seconds(lambda: eight(state.bfloat16()).float())) < PACKING_PAYS * full else "fp32"


def fastest_unpacked() -> str:
    """ "bf16" or "fp32", for networks that have no packed weights: what surrounds them where they would pay."""
    return {"packed": "bf16", "packed-fp32": "fp32"}.get(found := fastest_arithmetic(), found)


def fastest(candidates: Mapping[str, Callable[[], torch.Tensor]]) -> str:
    """The name of what takes least, each at its best."""
    return min(candidates, key=lambda name: min(seconds(candidates[name])))


def fewest_threads(network: Network, most: int, answers: int) -> int:
    """The fewest threads that produce tokens nearly as fast as any number: a thread that waits for another which the
    machine does not run right now costs far more than a small model gains by it."""
    memories = [network.new_memory() for _ in range(answers)]
    for memory in memories:
        network.read([0], memory)
    counts = [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]
    taken: dict[int, float] = {}
    for count in counts:
        torch.set_num_threads(count)
        taken[count] = _median_seconds(lambda: network.write([0] * answers, memories), min(taken.values(), default=0))
    torch.set_num_threads(most)
    for memory in memories:
        network.free(memory)
    return next(count for count in counts if taken[count] <= NEARLY * min(taken.values()))


def _median_seconds(work: Callable[[], object], best: float) -> float:
    """Of a few runs; of fewer where it is hopeless, so that a busy machine does not spend a minute on this."""
    first = statistics.median(seconds(work, runs=3))
    return first if best and first > 3 * best else statistics.median(seconds(work, runs=5))


def seconds(work: Callable[[], object], runs: int = 8) -> list[float]:
    """Of a few runs."""
    taken = []
    with torch.inference_mode():
        for _ in range(runs):
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
    return taken
