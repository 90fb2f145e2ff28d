"""Whatever transformers can load, one answer after another.

Rule: an answer's memory is the cache that transformers makes for its architecture, so that sliding windows, states and
whatever comes next are right.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache


class Memory:
    """One answer's cache."""

    def __init__(self) -> None:
        self.cache: Any = None


class PlainNetwork:
    """Any causal language model of transformers, on any device."""

    token_bytes = 0
    together = False

    def __init__(self, model: Any) -> None:
        self._model = model
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = next(name for name in ("past_key_values", "cache_params") if name in parameters)
        self._has_state = bool(getattr(model, "_is_stateful", False))  # such as Mamba's

    def new_memory(self) -> Memory:
        """See `Network`."""
        return Memory()

    def free(self, memory: Memory) -> None:
        """See `Network`."""
        memory.cache = None

    @torch.inference_mode()
    def read(self, ids: Sequence[int], memory: Memory) -> torch.Tensor:
        """See `Network`. A state goes on by one token at a time alone: several would begin afresh."""
        if memory.cache is None:
            memory.cache = DynamicCache(config=self._model.config)
            return self._logits(ids, memory.cache)
        parts = [[token] for token in ids] if self._has_state else [ids]
        return [self._logits(part, memory.cache) for part in parts][-1]

    def _logits(self, ids: Sequence[int], cache: Any) -> torch.Tensor:
        inputs = torch.tensor([list(ids)], device=self._model.device)  # (1, len(ids))
        known = {self._cache_name: cache}
        output = self._model(input_ids=inputs, use_cache=True, logits_to_keep=1, **known)
        logits: torch.Tensor = output.logits[0, -1]
        return logits

    def write(self, tokens: Sequence[int], memories: Sequence[Memory]) -> torch.Tensor:
        """See `Network`."""
        return torch.stack([self.read([token], memory) for token, memory in zip(tokens, memories, strict=True)])

    def save(self, memory: Memory, start: int, end: int) -> Any:
        """See `Network`."""
        raise NotImplementedError("token_bytes is 0")

    def restore(self, memory: Memory, parts: Sequence[Any]) -> None:
        """See `Network`."""
        raise NotImplementedError("token_bytes is 0")
