"""Which arithmetic computes a model: the fastest that is shown to be right.

Rule: what tests can try for every model is trusted. A card's arithmetic, recorded steps, and whatever was made for a
family of models of which this one may be another kind, show at load that they think of some tokens what transformers
thinks of them, and are not used if they do not; the log says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from node.engines.batched_network import BatchedNetwork, short_window
from node.engines.networks import Network
from node.engines.packed_network import PackedNetwork
from node.engines.plain_network import PlainNetwork
from node.engines.recorded_steps import SEEN_BEFORE, CardRecorder, Record, Recorder

# How far apart two networks' logits may be, see `_apart`. Measured with tiny random models: what is right is 0.000002
# apart in fp32 and 0.01 in half precision, its usual rounding; wrong by a position or a token of padding, 0.001 to 1.
APART = 0.14  # products of another kind in half precision: a cosine of 0.99
EXACT = 0.0001  # the same products in fp32
ROUNDED = 0.02  # the same products in half precision, or
TIMES_ROUNDING = 4  # what the model's own rounding makes of the same tokens in other parts, where that is more
FEWEST_TRIED = 8
Made = TypeVar("Made", bound=Network)

STEPS = (2, 3, 3)  # answers in each of the steps that are compared
STEPS_TO_RECORD = (2,) * (SEEN_BEFORE + 2) + (3,) * (SEEN_BEFORE + 2)  # and the same until they are played


def choose_network(model: Any, arithmetic: str) -> Network:
    """`model` is one of transformers; `arithmetic` is a key of `packed_network.PRODUCTS`."""
    plain = PlainNetwork(model)
    if PackedNetwork.suits(model.config):
        network = _packed(model, arithmetic, plain)
        if network is not None:
            return network
    together = proven_together(model, plain)
    if together is not None:
        return together
    print("answers are computed one by one", file=sys.stderr, flush=True)
    return plain


def proven_together(model: Any, plain: Network) -> BatchedNetwork | None:
    """Transformers' own modules for several answers at once, if that suits the model and is right."""
    if not BatchedNetwork.suits(model):
        return None
    most = EXACT if model.dtype == torch.float32 else None
    return _proven(lambda: BatchedNetwork(model), plain, most, short_window(model))


def _packed(model: Any, arithmetic: str, plain: Network) -> PackedNetwork | None:
    on_card = model.device.type != "cpu"
    if not on_card and model.config.model_type == "llama":
        return PackedNetwork(model, arithmetic)
    network = _proven(lambda: PackedNetwork(model, arithmetic), plain, APART)
    if network is not None and on_card:
        record(network, plain, CardRecorder)
    return network


def record(network: PackedNetwork, plain: Network, make: Callable[[], Record]) -> None:
    """Let a network play recorded steps, if what they give is right."""
    try:
        network.record(Recorder(make()))
        right = alike(network, plain, APART, steps=STEPS_TO_RECORD)
        why = "played they would differ"
    except Exception as error:
        right, why = False, type(error).__name__
    if not right:
        network.record(None)
        print(f"steps are not recorded: {why}", file=sys.stderr, flush=True)


def _proven(make: Callable[[], Made], plain: Network, most: float | None, window: int = 0) -> Made | None:
    try:
        made = make()
        if alike(made, plain, most, window):
            return made
        why = "it differs from transformers"
    except Exception as error:
        why = type(error).__name__
    print(f"a faster arithmetic is not used: {why}", file=sys.stderr, flush=True)
    return None


def alike(
    one: Network, other: Network, most: float | None = APART, window: int = 0, steps: Sequence[int] = STEPS
) -> bool:
    """True if two networks have the same opinion of some tokens: of answers of different lengths, one of which joins
    late, some longer than the model's `window`. `most`: how far apart; None for what the other's rounding allows.
    `steps`: how many answers each of the steps computes."""
    (found, _), (expected, rounding) = _opinions(one, window, steps), _opinions(other, window, steps)
    allowed = min(APART, max(ROUNDED, TIMES_ROUNDING * rounding)) if most is None else most
    return _apart(found, expected) <= allowed  # which is False for what is no number, too


def _opinions(network: Network, window: int, steps: Sequence[int]) -> tuple[torch.Tensor, float]:
    """(written tokens, vocabulary), and how far the last ones are from the same answers read at once."""
    told = [[(7 * place + 11 * row) % 29 + 1 for place in range(length)] for row, length in _lengths(window)]
    memories = [network.new_memory() for _ in told]
    for memory, ids in zip(memories, told, strict=True):
        network.read(ids[:-1], memory)
        network.read(ids[-1:], memory)
    opinions = []
    for count in steps:
        for row in range(count):
            told[row].append((5 * len(told[row]) + row) % 29 + 1)
        opinions.append(network.write([ids[-1] for ids in told[:count]], memories[:count]).float())
    at_once = [network.new_memory() for _ in told]
    read = torch.stack([network.read(ids, memory) for ids, memory in zip(told, at_once, strict=True)]).float()
    for memory in memories + at_once:
        network.free(memory)
    return torch.cat(opinions), _apart(read, opinions[-1])


def _lengths(window: int) -> Iterator[tuple[int, int]]:
    """Of short, nearly and more than a window's answers."""
    window = max(window, FEWEST_TRIED)
    return enumerate((3, window - 1, window + 5))


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest distance of two rows of logits, measured by how much the expected ones differ among each other."""
    spread = expected - expected.mean(-1, keepdim=True)
    return float(((found - expected).norm(dim=-1) / spread.norm(dim=-1)).max())
