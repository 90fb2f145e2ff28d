"""Tokens to logits: any causal language model through transformers, and Llama-type ones through fewer, packed products.

Rule: both give the same logits up to rounding, and a test holds them to it. On a CPU one answer is bound by reading
the weights, so the packed network reads a quarter or half of the bytes: a matrix whose values lie on a 4-bit grid (as
those that came from a 4-bit file do) is stored in 4 bits again, every other one in 8, with a scale for 32 weights each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers import DynamicCache

GROUP = 32  # weights that share a scale and an offset on the 4-bit grid
TINY = 1e-8  # a scale for groups of zeros
GRID_ERROR = 0.1  # of a 4-bit step: what rounding to bf16 did to a value that was on the grid
NEARLY = 1.4  # of the fastest step
FIRST_CAPACITY = 256  # tokens that a new cache holds; it doubles when it is full


class Network(Protocol):
    """A loaded model's arithmetic."""

    def new_cache(self) -> Any:
        """What one answer remembers of its tokens."""

    def forward(self, ids: list[int], cache: Any) -> torch.Tensor:
        """Logits after the last of `ids`, which follow those in `cache`: (vocabulary,)."""


class PlainNetwork:
    """Whatever transformers can load."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def new_cache(self) -> Any:
        """See `Network`."""
        return DynamicCache(config=self._model.config)

    @torch.inference_mode()
    def forward(self, ids: list[int], cache: Any) -> torch.Tensor:
        """See `Network`."""
        inputs = torch.tensor([ids], device=self._model.device)  # (1, len(ids))
        output = self._model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = output.logits[0, -1]
        return logits


# --- Llama, packed ---------------------------------------------------------------------------------------

Product = Callable[[torch.Tensor], torch.Tensor]  # (tokens, in) -> (tokens, out)


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: torch.Tensor
    queries_keys_values: Product
    attention_out: Product
    mlp_norm: torch.Tensor
    gate_up: Product
    down: Product


class _Cache:
    """Keys and values of one answer: (layers, 2, heads, capacity, head)."""

    def __init__(self, layers: int, heads: int, head: int) -> None:
        self._stored = torch.empty(layers, 2, heads, FIRST_CAPACITY, head, dtype=torch.bfloat16)
        self.length = 0

    def reserve(self, tokens: int) -> torch.Tensor:
        """Storage with room for `tokens` more."""
        capacity = self._stored.shape[3]
        while capacity < self.length + tokens:
            capacity *= 2
        if capacity > self._stored.shape[3]:
            grown = self._stored.new_empty(*self._stored.shape[:3], capacity, self._stored.shape[4])
            grown[:, :, :, : self.length] = self._stored[:, :, :, : self.length]
            self._stored = grown
        return self._stored


class PackedNetwork:
    """A Llama on a CPU. Takes its weights from the model of transformers, which can be dropped afterwards."""

    @staticmethod
    def suits(config: Any) -> bool:
        """True for the architecture that `forward` computes."""
        plain = not (getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False))
        return bool(config.model_type == "llama" and plain and config.hidden_act == "silu")

    def __init__(self, model: Any) -> None:
        config, inner = model.config, model.model
        self._heads, self._pairs, self._head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self._epsilon = config.rms_norm_eps
        self._embedding = inner.embed_tokens.weight.detach()  # (vocabulary, hidden)
        self._rotary = inner.rotary_emb
        self._layers = [_pack_layer(layer) for layer in inner.layers]
        self._norm = inner.norm.weight.detach()
        self._logits = packed(model.lm_head.weight.detach())

    def new_cache(self) -> _Cache:
        """See `Network`."""
        return _Cache(len(self._layers), self._pairs, self._head)

    @torch.inference_mode()
    def forward(self, ids: list[int], cache: _Cache) -> torch.Tensor:
        """See `Network`."""
        # 1. Where these tokens stand, and what they may look at.
        start, end = cache.length, cache.length + len(ids)
        stored = cache.reserve(len(ids))
        state = self._embedding[torch.tensor(ids)]  # (tokens, hidden)
        turn = self._turn(state, start, end)
        mask = torch.ones(len(ids), end, dtype=torch.bool).tril(start) if len(ids) > 1 else None
        # 2. The layers.
        for layer, (keys, values) in zip(self._layers, stored[:, :, :, :end], strict=True):
            normed = self._normed(state, layer.attention_norm)
            state = state + layer.attention_out(self._attend(layer, normed, turn, (keys, values, start), mask))
            gate, up = layer.gate_up(self._normed(state, layer.mlp_norm)).chunk(2, dim=-1)
            state = state + layer.down(functional.silu(gate) * up)
        cache.length = end
        # 3. The last token's logits.
        return self._logits(self._normed(state[-1:], self._norm))[0]

    def _turn(self, state: torch.Tensor, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cosines, sines) of the rotary embedding, (tokens, 1, head) each; the first half of the sines is negated."""
        cosines, sines = self._rotary(state, torch.arange(start, end)[None])
        half = self._head // 2
        signed = torch.cat([-sines[..., :half], sines[..., half:]], dim=-1)
        return cosines[0, :, None], signed[0, :, None]

    def _attend(
        self,
        layer: _Layer,
        normed: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        place: tuple[torch.Tensor, torch.Tensor, int],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """(tokens, hidden) of what the tokens see. Writes their keys and values to their place in the cache."""
        keys, values, start = place  # (pairs, end, head)
        cosines, sines = turn
        split = layer.queries_keys_values(normed).view(len(normed), -1, self._head)  # (tokens, heads + 2 pairs, head)
        to_turn = split[:, : self._heads + self._pairs]
        turned = to_turn * cosines + to_turn.roll(self._head // 2, -1) * sines
        keys[:, start:] = turned[:, self._heads :].transpose(0, 1)
        values[:, start:] = split[:, self._heads + self._pairs :].transpose(0, 1)
        queries = turned[:, : self._heads]
        if mask is None:  # one token: the heads that share keys are the rows of one product
            grouped = queries.view(1, self._pairs, -1, self._head)
            return functional.scaled_dot_product_attention(grouped, keys[None], values[None]).view(1, -1)
        seen = functional.scaled_dot_product_attention(
            queries.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, enable_gqa=True
        )
        return seen[0].transpose(0, 1).reshape(len(normed), -1)

    def _normed(self, state: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(state, weight.shape, weight, self._epsilon)


def _pack_layer(layer: Any) -> _Layer:
    """Matrices that read the same input become one."""
    attention, mlp = layer.self_attn, layer.mlp
    fused = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).detach()
    return _Layer(
        attention_norm=layer.input_layernorm.weight.detach(),
        queries_keys_values=packed(fused),
        attention_out=packed(attention.o_proj.weight.detach()),
        mlp_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=packed(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).detach()),
        down=packed(mlp.down_proj.weight.detach()),
    )


def packed(weight: torch.Tensor) -> Product:
    """The product with `weight` (out, in), in as few bits as keep its values."""
    rows, columns = weight.shape
    if rows % 16 or columns % GROUP:  # what the kernel asks for
        return lambda state: functional.linear(state, weight)
    groups = weight.float().view(rows, -1, GROUP)
    return _in_four_bits(groups) or _in_eight_bits(groups)


def _in_four_bits(groups: torch.Tensor) -> Product | None:
    """weight = (level - 8) * scale + offset, levels 0 … 15, for each group of a row; None if that would change it.
    `groups`: (rows, groups, GROUP)."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = _kept_in_bf16((high - low) / 15)
    exact = 15 * (groups - low) / (high - low).clamp(min=TINY)
    levels = exact.round()
    if float((exact - levels).abs().mean()) > GRID_ERROR:  # values that lie anywhere are 0.25 away on average
        return None
    offset = (groups - (levels - 8) * scale).mean(-1, keepdim=True)  # makes up for the rounded scale
    return _product(levels, scale, offset)


def _in_eight_bits(groups: torch.Tensor) -> Product:
    """weight = (level - 128) * scale, levels 0 … 255, as two products: of the levels' upper and lower four bits."""
    scale = _kept_in_bf16(groups.abs().amax(-1, keepdim=True) / 127)
    levels = (groups / scale).round().clamp(-128, 127) + 128
    upper, lower = (levels / 16).floor(), levels % 16
    first = _product(upper, 16 * scale, torch.zeros_like(scale))
    second = _product(lower, scale, 8 * scale)
    return lambda state: first(state) + second(state)


def _kept_in_bf16(scale: torch.Tensor) -> torch.Tensor:
    """What the kernel will read: levels must be chosen for that, not for the exact value."""
    return scale.clamp(min=TINY).bfloat16().float()


def _product(levels: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> Product:
    """torch's 4-bit kernel: (level - 8) * scale + offset."""
    stored = torch._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32).flatten(1), 1)
    scales = torch.cat([scale, offset], dim=-1).bfloat16().transpose(0, 1).contiguous()  # (groups, rows, 2)
    kernel = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda state: kernel(state, stored, GROUP, scales)


# --- what this machine is good at ----------------------------------------------------------------------


def fastest_arithmetic() -> str:
    """ "packed", "bf16" or "fp32": measured, because a CPU without the instructions is ten times slower with some."""
    state = torch.ones(1, 1_024)
    single = torch.ones(4_096, 1_024)
    half, halved = state.bfloat16(), single.bfloat16()
    eight = _in_eight_bits(single.view(4_096, -1, GROUP))
    candidates: dict[str, Callable[[], torch.Tensor]] = {
        "packed": lambda: eight(half),
        "bf16": lambda: functional.linear(half, halved),
        "fp32": lambda: functional.linear(state, single),
    }
    return min(candidates, key=lambda name: min(_seconds(candidates[name])))


def decode_threads(network: Network, most: int) -> int:
    """The fewest threads that produce tokens nearly as fast as any number: a thread that waits for another which the
    machine does not run right now costs far more than a small model gains by it."""
    cache = network.new_cache()
    counts = [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]
    seconds: dict[int, float] = {}
    for count in counts:
        torch.set_num_threads(count)
        seconds[count] = statistics.median(_seconds(lambda: network.forward([0], cache)))
    torch.set_num_threads(most)
    return next(count for count in counts if seconds[count] <= NEARLY * min(seconds.values()))


def _seconds(work: Callable[[], torch.Tensor]) -> list[float]:
    """Of a few runs."""
    runs = []
    with torch.inference_mode():
        for _ in range(8):
            began = time.perf_counter()
            work()
            runs.append(time.perf_counter() - began)
    return runs
