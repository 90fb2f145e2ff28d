"""Several answers at once with transformers' own modules, for any model that remembers keys and values only.

Rule: the arithmetic is the model's own, called once for all answers; this file only arranges what they remember. Rows
are padded on the left, so that masks, windows and distances come out as transformers computes them, and each row is
told its own position. A model is computed this way only after it has been shown right at load, see `chat_model`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from node.engines.tables import Layers, Memory, Table, Tables

STATIC_TURNS = {"default", "linear", "llama3", "yarn", "proportional"}  # of rotary embeddings: the others' depend on
# the longest of all rows
BY_THE_MASK = {"bloom", "mpt"}  # take no positions: they count what the mask shows, or distances between columns
BY_THE_CACHE = {"llama4", "llama4_text"}  # scale the queries of long answers by the length of the cache, not of a row
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")  # a config's names for what a layer looks back to
LONGEST_TRIED = 64  # tokens of a window: to look past a longer one takes too long at load

_make_layer: Any = DynamicLayer  # transformers' own word for its arguments is not typed


class _Rows(DynamicLayer):  # type: ignore[misc]
    """One layer of a table's rows: the new tokens' keys and values go to the last column that is seen."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._all = keys, values
        self.keys, self.values = keys[:, :, :-1], values[:, :, :-1]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `DynamicLayer`."""
        for part, new in zip(self._all, (key_states, value_states), strict=True):
            part[:, :, -1:] = new
        self.keys, self.values = self._all
        return self._all


def _own(keys: torch.Tensor, values: torch.Tensor) -> Any:
    """One layer of one answer: what it remembers, which grows by a part of a prompt."""
    layer: Any = _make_layer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


class BatchedNetwork:
    """A causal language model of transformers on any device."""

    together = True

    @staticmethod
    def suits(model: Any) -> bool:
        """True if nothing that is known of the model speaks against it."""
        takes = inspect.signature(model.forward).parameters
        config = model.config.get_text_config(decoder=True)
        stateful = getattr(model, "_is_stateful", False) or getattr(config, "is_encoder_decoder", False)
        if stateful or not {"past_key_values", "attention_mask"} <= takes.keys() or config.model_type in BY_THE_CACHE:
            return False
        if "position_ids" not in takes and config.model_type not in BY_THE_MASK:
            return False
        return set(_turns(config)) <= STATIC_TURNS and _remembers_keys_and_values_only(config)

    def __init__(self, model: Any) -> None:
        self._model = model
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._tables = Tables()
        tried = self.new_memory()
        self.read([0], tried)
        if not all(part.dim() == 4 and part.shape[2] == 1 for layer in tried.own for part in layer):
            raise ValueError("this model does not remember each token by its own keys and values")
        self.token_bytes = sum(part.nbytes for layer in tried.own for part in layer)

    # --- memory --------------------------------------------------------------------------------------

    def new_memory(self) -> Memory:
        """See `Network`."""
        return Memory()

    @torch.inference_mode()  # tables are made in it, so they can only be written to there
    def free(self, memory: Memory) -> None:
        """See `Network`."""
        if memory.table is not None:
            memory.table.remove(memory)
        memory.length, memory.own = 0, []

    @torch.inference_mode()
    def save(self, memory: Memory, start: int, end: int) -> Layers:
        """See `Network`."""
        if memory.table is not None:
            return memory.table.copied(memory, start, end)
        return [(keys[:, :, start:end].clone(), values[:, :, start:end].clone()) for keys, values in memory.own]

    @torch.inference_mode()
    def restore(self, memory: Memory, parts: Sequence[Layers]) -> None:
        """See `Network`."""
        self._take_out(memory)
        pieces = [memory.own, *parts] if memory.own else list(parts)
        memory.own = [
            (torch.cat([keys for keys, _ in layer], dim=2), torch.cat([values for _, values in layer], dim=2))
            for layer in zip(*pieces, strict=True)
        ]
        memory.length = memory.own[0][0].shape[2]

    @property
    def memories(self) -> int:
        """How many lie in a table."""
        return self._tables.rows

    @property
    def bytes_held(self) -> int:
        """Bytes of the tables."""
        return self._tables.bytes_held

    def _take_out(self, memory: Memory) -> None:
        if memory.table is not None:
            memory.table.take_out(memory)

    # --- arithmetic ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def read(self, ids: Sequence[int], memory: Memory) -> torch.Tensor:
        """See `Network`."""
        self._take_out(memory)
        cache: Any = DynamicCache()  # without the config every layer keeps every token: a window is the mask's matter
        cache.layers = [_own(keys, values) for keys, values in memory.own]
        positions = torch.arange(memory.length, memory.length + len(ids))[None]
        logits = self._logits(torch.tensor([list(ids)]), positions, torch.ones(1, memory.length + len(ids)), cache)
        memory.own = [(layer.keys, layer.values) for layer in cache.layers]
        memory.length += len(ids)
        return logits[0]

    @torch.inference_mode()
    def write(self, tokens: Sequence[int], memories: Sequence[Memory]) -> torch.Tensor:
        """See `Network`. A table's rows grow only after all tables have been computed."""
        given = dict(zip(memories, tokens, strict=True))
        tables = self._tables.arranged(memories)
        logits = torch.cat([self._step(table, [given[row] for row in table.rows]) for table in tables])
        ordered = [row for table in tables for row in table.rows]
        for table in tables:
            table.advance()
        if ordered == list(memories):
            return logits
        at = {row: index for index, row in enumerate(ordered)}
        return logits[[at[row] for row in memories]]

    def _step(self, table: Table, tokens: list[int]) -> torch.Tensor:
        """(rows, vocabulary) after one more token in each row of a table, whose lengths stay as they are."""
        lengths = torch.tensor([row.length for row in table.rows])[:, None]
        longest = table.longest
        mask = torch.arange(longest + 1) >= longest - lengths  # (rows, longest + 1): padded on the left
        cache = Cache(layers=[_Rows(keys, values) for keys, values in table.seen()])
        return self._logits(torch.tensor(tokens)[:, None], lengths, mask, cache)

    def _logits(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        """(rows, vocabulary) after the last of `ids` (rows, tokens)."""
        device = self._model.device
        told = {"position_ids": positions.to(device)} if self._takes_positions else {}
        output = self._model(
            input_ids=ids.to(device),
            attention_mask=mask.long().to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **told,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def short_window(model: Any) -> int:
    """Tokens of the model's shortest window, 0 if it has none that is short enough to be looked past at load."""
    config = model.config.get_text_config(decoder=True)
    found = [getattr(config, name, None) for name in WINDOWS]
    return min((size for size in found if isinstance(size, int) and 0 < size <= LONGEST_TRIED), default=0)


def _remembers_keys_and_values_only(config: Any) -> bool:
    """What transformers itself would make for the model: no states, no indices, no layers that share."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers)


def _turns(config: Any) -> Iterator[str]:
    """The kinds of rotary embedding: one for all layers, or one for each type of layer."""
    facts = getattr(config, "rope_parameters", None) or {}
    kinds = [facts] if "rope_type" in facts else [each for each in facts.values() if isinstance(each, dict)]
    yield from (kind.get("rope_type", "default") for kind in kinds)
