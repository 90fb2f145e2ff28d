"""A Llama, Mistral or Qwen, in fewer and, where that helps, smaller products than transformers makes.

Rule: gives the logits of transformers up to rounding, and a test holds it to that. An answer's next token is computed
together with those of the others that run: the products once for all, the attention once for each shelf. On a card a
step that comes again is recorded once and played from then on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from node.engines.networks import seconds
from node.engines.products import Product, as_it_is, in_full, in_half_precision, packed, packed_between_full
from node.engines.recorded_steps import Recorder
from node.engines.shelves import Row, Saved, Shape, Shelf, Shelves

MOST_SECOND_COPY_BYTES = 2 * 2**30  # of the weights, for prompts and for several answers at once
PRODUCTS = {
    "packed": packed,
    "packed-fp32": packed_between_full,
    "bf16": in_half_precision,
    "fp16": as_it_is,
    "fp32": in_full,
}
DTYPES = {  # of everything but the weights
    "packed": torch.bfloat16,
    "packed-fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
SECOND_COPIES = {"packed": in_half_precision, "packed-fp32": in_full}
LIKE_LLAMA = {"llama", "mistral", "qwen2", "qwen3"}  # biases, and norms of each head, are taken where they are
STATIC_TURNS = {"default", "linear", "llama3", "yarn"}  # rotary embeddings that do not depend on the prompt's length
SMALL_TOKENS = 512  # of one answer, for which products in fp32 are faster, the conversion included
BEST_TOKENS = 32  # whose logits are computed in fp32: in bf16 those of the best are often equal
TRIED_ANSWERS = (2, 3, 4, 6, 8, 12, 16)  # numbers of answers for which both kinds of product are measured


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: torch.Tensor
    queries_keys_values: Product
    heads_norm: torch.Tensor | None  # (heads + pairs, head): of queries and keys, before they are turned
    attention_out: Product
    mlp_norm: torch.Tensor
    gate_up: Product
    down: Product


@dataclass(frozen=True, slots=True)
class _Weights:
    """The whole network in one kind of product."""

    layers: list[_Layer]
    logits: Product


class _Place:
    """What the attention of one shelf's rows needs, for all layers."""

    def __init__(self, shelf: Shelf, positions: torch.Tensor, first: int, end: int, mask: torch.Tensor | None) -> None:
        """`positions`: where the new tokens go, one for each of the shelf's first rows. `first`: of these rows among
        all that take part. `end`: what is looked at. `mask`: (rows * pairs, 1, end), None if all are as long."""
        self.first, self.count, self.mask = first, len(positions), mask
        self._rows = torch.arange(self.count, device=shelf.keys.device)
        self._positions = positions
        keys, values = shelf.keys[:, : self.count], shelf.values[:, : self.count]
        self._keys = keys.unbind(0)  # for each layer (rows, pairs, head, capacity)
        self._values = values.unbind(0)  # for each layer (rows, pairs, capacity, head)
        self.seen_keys = keys.flatten(1, 2)[..., :end].unbind(0)  # for each layer (rows * pairs, head, end)
        self.seen_values = values.flatten(1, 2)[:, :, :end].unbind(0)  # for each layer (rows * pairs, end, head)
        # A small product in bf16 takes longer to set up than to compute, on a CPU.
        self.small = self.count == 1 and end <= SMALL_TOKENS and keys.device.type == "cpu"
        self._only: tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]] | None = None
        if self.count == 1 and mask is None:  # the new token is the last one: a plain copy costs less than indices
            self._only = keys[..., end - 1].unbind(0), values[:, :, :, end - 1].unbind(0)

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the new token's keys and values, (rows, pairs, head) each, behind those of the row's other tokens."""
        if self._only is not None:
            self._only[0][layer].copy_(keys)
            self._only[1][layer].copy_(values)
        else:
            self._keys[layer][self._rows, :, :, self._positions] = keys
            self._values[layer][self._rows, :, self._positions] = values


class PackedNetwork:
    """Takes its weights from the model of transformers, which can be dropped afterwards."""

    together = True

    @staticmethod
    def suits(config: Any) -> bool:
        """True for the architecture that is computed here."""
        turns = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        known = config.model_type in LIKE_LLAMA and config.hidden_act == "silu" and turns in STATIC_TURNS
        return bool(known and not _has_window(config))

    def __init__(self, model: Any, arithmetic: str = "packed") -> None:
        """`arithmetic` is "packed", "packed-fp32" or "fp32" on a CPU, "bf16" anywhere, "fp16" on a card."""
        config, inner = model.config, model.model
        self._heads, self._pairs = config.num_attention_heads, config.num_key_value_heads
        self._head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._epsilon = config.rms_norm_eps
        self._embedding = inner.embed_tokens.weight.detach()  # (vocabulary, hidden)
        self._last = _as_it_came(model, arithmetic)
        self._rotary = inner.rotary_emb
        self._norm = inner.norm.weight.detach().float()
        self._dtype, self._device = DTYPES[arithmetic], self._embedding.device
        self._many = self._one = _weights(model, PRODUCTS[arithmetic])
        self.many_from = 1  # so many tokens at once take the second copy; see `measure`
        bytes_of_a_copy = sum(part.numel() for part in model.parameters()) * self._dtype.itemsize
        if arithmetic in SECOND_COPIES and bytes_of_a_copy <= MOST_SECOND_COPY_BYTES:
            self._many, self.many_from = _weights(model, SECOND_COPIES[arithmetic]), TRIED_ANSWERS[-1]
        shape = Shape(len(inner.layers), self._pairs, self._head, self._dtype, self._device)
        self._shelves = Shelves(shape)
        self.token_bytes = shape.token_bytes
        self._turns = self._turn_table(1_024)
        self._recorder: Recorder | None = None

    def record(self, recorder: Recorder | None) -> None:
        """Play recorded steps from now on, or no more."""
        self._recorder = recorder

    # --- memory --------------------------------------------------------------------------------------

    def new_memory(self) -> Row:
        """See `Network`."""
        return Row()

    def free(self, memory: Row) -> None:
        """See `Network`."""
        self._shelves.free(memory)

    def save(self, memory: Row, start: int, end: int) -> Saved:
        """See `Network`."""
        assert memory.shelf is not None
        return memory.shelf.save(memory, start, end)

    def restore(self, memory: Row, parts: Sequence[Saved]) -> None:
        """See `Network`."""
        for part in parts:
            tokens = part.keys.shape[3]
            self._shelves.reserve(memory, tokens).put(memory.index, memory.length, part)
            memory.length += tokens

    @property
    def memories(self) -> int:
        """How many have storage of their own."""
        return self._shelves.rows

    @property
    def bytes_held(self) -> int:
        """Bytes of storage for all memories, and of what is kept for the next ones."""
        return self._shelves.bytes_held

    # --- arithmetic ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def read(self, ids: Sequence[int], memory: Row) -> torch.Tensor:
        """See `Network`."""
        start, end = memory.length, memory.length + len(ids)
        shelf = self._shelves.reserve(memory, len(ids))
        self._reach(end)
        keys = shelf.keys[:, memory.index, :, :, :end].unbind(0)  # each (pairs, head, end)
        values = shelf.values[:, memory.index, :, :end].unbind(0)  # each (pairs, end, head)
        group, scale = self._heads // self._pairs, self._head**-0.5
        mask = self._added(torch.ones(len(ids), end, dtype=torch.bool, device=self._device).triu(start + 1)).repeat(
            group, 1
        )[None]

        def attend(index: int, queries: torch.Tensor, new_keys: torch.Tensor, new_values: torch.Tensor) -> torch.Tensor:
            keys[index][:, :, start:] = new_keys.permute(1, 2, 0)
            values[index][:, start:] = new_values.transpose(0, 1)
            # (pairs, group * tokens, head): three times as fast as torch's own attention with a mask
            grouped = queries.reshape(len(ids), self._pairs, group, -1).permute(1, 2, 0, 3).flatten(1, 2)
            weights = torch.softmax(torch.baddbmm(mask, grouped, keys[index], alpha=scale), -1)
            seen = torch.bmm(weights, values[index]).view(
                self._pairs, group, len(ids), -1
            )  # (pairs, group, tokens, head)
            return seen.permute(2, 0, 1, 3).reshape(len(ids), -1)

        state = self._through_layers(self._whole(ids), self._whole(range(start, end)), attend)
        memory.length = end
        return self._logits(state[-1:], self._one)[0]

    @torch.inference_mode()
    def write(self, tokens: Sequence[int], memories: Sequence[Row]) -> torch.Tensor:
        """See `Network`."""
        # 1. The rows in the order of their shelves.
        arranged = self._shelves.arranged(memories)
        ordered = [row for _, rows in arranged for row in rows]
        shelves, lengths = [(shelf, len(rows)) for shelf, rows in arranged], [row.length for row in ordered]
        given = dict(zip(memories, tokens, strict=True))
        ids, positions = self._whole([given[row] for row in ordered]), self._whole(lengths)
        self._reach(1 + max(lengths))
        # 2. The layers, and the logits.
        logits = self._played(ids, positions, shelves)
        if logits is None:
            logits = self._step(ids, positions, self._places(shelves, positions, lengths))
        for row in memories:
            row.length += 1
        # 3. In the order that was asked for.
        if ordered == list(memories):
            return logits
        at = {row: index for index, row in enumerate(ordered)}
        return logits[[at[row] for row in memories]]

    def _played(
        self, ids: torch.Tensor, positions: torch.Tensor, shelves: list[tuple[Shelf, int]]
    ) -> torch.Tensor | None:
        """Logits from a recorded step, where there is one. A recorded step looks at all that its shelves hold, since
        nothing in it may depend on how long the answers are."""
        if self._recorder is None:
            return None
        kind = tuple((shelf.capacity, count) for shelf, count in shelves)
        storage = [part for shelf, _ in shelves for part in (shelf.keys, shelf.values)] + list(self._turns)

        def step(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return self._step(ids, positions, self._places(shelves, positions, None))

        return self._recorder.play(kind, step, (ids, positions), storage)

    def _step(self, ids: torch.Tensor, positions: torch.Tensor, places: list[_Place]) -> torch.Tensor:
        """(rows, vocabulary) after one more token of each row."""
        scale = self._head**-0.5
        attended = torch.empty(len(ids), self._heads * self._head, dtype=self._dtype, device=self._device)

        def attend(index: int, queries: torch.Tensor, new_keys: torch.Tensor, new_values: torch.Tensor) -> torch.Tensor:
            for place in places:
                part = slice(place.first, place.first + place.count) if place.count < len(ids) else slice(None)
                place.store(index, new_keys[part], new_values[part])
                # (rows * pairs, queries of a pair, head): the queries that share keys are the rows of one product
                grouped = queries[part].reshape(place.count * self._pairs, -1, self._head)
                seen_keys, seen_values = place.seen_keys[index], place.seen_values[index]
                if place.small:
                    grouped, seen_keys, seen_values = grouped.float(), seen_keys.float(), seen_values.float()
                scores = torch.bmm(grouped, seen_keys)
                scores = scores.mul_(scale) if place.mask is None else torch.add(place.mask, scores, alpha=scale)
                seen = torch.bmm(torch.softmax(scores, -1), seen_values).view(place.count, -1).to(self._dtype)
                if place.count == len(ids):
                    return seen
                attended[part] = seen
            return attended

        return self._logits(self._through_layers(ids, positions, attend), self._weights(len(ids)))

    def _through_layers(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        attend: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """(tokens, hidden) after the last layer. `attend` takes a layer's number, queries (tokens, heads, head), keys
        and values (tokens, pairs, head), and gives what the tokens see (tokens, heads * head)."""
        state: torch.Tensor = self._embedding[ids].float()  # sums of many layers round too much in bf16
        cosines, sines = (table[positions, None] for table in self._turns)
        half, turning, heads = self._head // 2, self._heads + self._pairs, self._heads
        for index, layer in enumerate(self._weights(len(ids)).layers):
            normed = self._normed(state, layer.attention_norm)
            split = layer.queries_keys_values(normed).view(len(ids), -1, self._head)  # (tokens, heads + 2 pairs, head)
            to_turn = split[:, :turning]
            if layer.heads_norm is not None:
                to_turn = self._heads_normed(to_turn, layer.heads_norm)
            turned = (to_turn * cosines).addcmul_(to_turn.roll(half, -1), sines)
            seen = attend(index, turned[:, :heads], turned[:, heads:], split[:, turning:])
            state += layer.attention_out(seen)
            gate, up = layer.gate_up(self._normed(state, layer.mlp_norm)).chunk(2, dim=-1)
            state += layer.down(functional.silu(gate) * up)
        return state

    def _logits(self, state: torch.Tensor, weights: _Weights) -> torch.Tensor:
        """(tokens, vocabulary) in fp32 from (tokens, hidden)."""
        normed = functional.rms_norm(state, self._norm.shape, self._norm, self._epsilon)
        logits = weights.logits(normed.to(self._dtype)).float()
        if self._last is None:
            return logits
        best = logits.topk(min(BEST_TOKENS, logits.shape[1])).indices
        return logits.scatter_(1, best, torch.bmm(self._last[best].float(), normed[:, :, None])[..., 0])

    def _places(
        self, shelves: list[tuple[Shelf, int]], positions: torch.Tensor, lengths: Sequence[int] | None
    ) -> list[_Place]:
        """`shelves`: with how many rows of each take part. `lengths` of all these rows; None looks at all that the
        shelves hold."""
        places, first = [], 0
        for shelf, count in shelves:
            here = positions[first : first + count]
            own = None if lengths is None else lengths[first : first + count]
            end = shelf.capacity if own is None else 1 + max(own)
            mask = None if own is not None and min(own) == max(own) else self._mask(here, end)
            places.append(_Place(shelf, here, first, end, mask))
            first += count
        return places

    def _mask(self, positions: torch.Tensor, end: int) -> torch.Tensor:
        """What is added to scores: 0 up to a row's own position, minus infinity behind it."""
        hidden = torch.arange(end, device=self._device) > positions[:, None]  # (rows, end)
        return self._added(hidden).repeat_interleave(self._pairs, 0)[:, None]

    def _added(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, -torch.inf)

    def _whole(self, numbers: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(numbers), device=self._device)

    def _reach(self, tokens: int) -> None:
        """Make the table of the rotary embedding (cosines, sines; (tokens, head) each) long enough."""
        while tokens > len(self._turns[0]):
            self._turns = self._turn_table(2 * len(self._turns[0]))

    def _turn_table(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        cosines, sines = self._rotary(self._embedding[:1], torch.arange(tokens, device=self._device)[None])
        half = self._head // 2
        signed = torch.cat([-sines[..., :half], sines[..., half:]], dim=-1)
        return cosines[0].detach(), signed[0].detach()

    def _normed(self, state: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(state, weight.shape, weight, self._epsilon).to(self._dtype)

    def _heads_normed(self, heads: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Each head (tokens, heads, head) by itself, times a weight of its own."""
        normed = functional.rms_norm(heads.float(), (self._head,), eps=self._epsilon)
        return (normed * weight).to(self._dtype)

    def _weights(self, tokens: int) -> _Weights:
        return self._many if tokens >= self.many_from else self._one

    # --- what this machine is good at ----------------------------------------------------------------

    def measure(self) -> None:
        """Find the number of tokens from which the second copy of the weights is faster."""
        if self._many is self._one:
            return
        most = TRIED_ANSWERS[-1] + 1
        self.many_from = next((count for count in TRIED_ANSWERS if self._many_wins(count)), most)

    def _many_wins(self, count: int) -> bool:
        return self._step_seconds(count, many_from=1) < self._step_seconds(count, many_from=count + 1)

    def _step_seconds(self, count: int, *, many_from: int) -> float:
        self.many_from = many_from
        rows = [self.new_memory() for _ in range(count)]
        taken = statistics.median(seconds(lambda: self.write([0] * count, rows), runs=5))
        for row in rows:
            self.free(row)
        return taken


def _has_window(config: Any) -> bool:
    """True if some tokens do not see all that stand before them."""
    kinds = getattr(config, "layer_types", None) or []
    window = config.sliding_window if config.model_type == "mistral" else None
    return (window or config.max_position_embeddings) < config.max_position_embeddings or any(
        kind != "full_attention" for kind in kinds
    )


def _as_it_came(model: Any, arithmetic: str) -> torch.Tensor | None:
    """The last matrix (vocabulary, hidden) in half precision, where it lies in memory anyway."""
    last: torch.Tensor = model.lm_head.weight.detach()
    tied = last.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    return last if arithmetic in ("bf16", "fp16") or (arithmetic in SECOND_COPIES and tied) else None


def _weights(model: Any, make: Callable[[torch.Tensor], Product]) -> _Weights:
    return _Weights([_layer(layer, make) for layer in model.model.layers], make(model.lm_head.weight.detach()))


def _layer(layer: Any, make: Callable[[torch.Tensor], Product]) -> _Layer:
    """Matrices that read the same input become one."""
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        attention_norm=layer.input_layernorm.weight.detach().float(),
        queries_keys_values=_fused(make, attention.q_proj, attention.k_proj, attention.v_proj),
        heads_norm=_heads_norm(attention),
        attention_out=_fused(make, attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight.detach().float(),
        gate_up=_fused(make, mlp.gate_proj, mlp.up_proj),
        down=_fused(make, mlp.down_proj),
    )


def _heads_norm(attention: Any) -> torch.Tensor | None:
    if getattr(attention, "q_norm", None) is None:
        return None
    head = attention.head_dim
    heads, pairs = attention.q_proj.out_features // head, attention.k_proj.out_features // head
    return torch.cat(
        [
            norm.weight.detach().float().expand(count, head)
            for norm, count in ((attention.q_norm, heads), (attention.k_norm, pairs))
        ]
    )


def _fused(make: Callable[[torch.Tensor], Product], *linears: Any) -> Product:
    """All outputs beside each other. A card's memory is too dear for a second copy of the weights."""
    weights = [linear.weight.detach() for linear in linears]
    if weights[0].device.type != "cpu" and len(weights) > 1:
        apart = [make(weight) for weight in weights]
        return _with_bias(lambda state: torch.cat([one(state) for one in apart], dim=-1), *linears)
    return _with_bias(make(torch.cat(weights) if len(weights) > 1 else weights[0]), *linears)


def _with_bias(product: Product, *linears: Any) -> Product:
    if all(linear.bias is None for linear in linears):
        return product
    bias = torch.cat(
        [
            linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias.detach()
            for linear in linears
        ]
    )
    return lambda state: product(state).add_(bias)
