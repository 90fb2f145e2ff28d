"""$CHAT in the child process: a causal language model behind the `Batch` port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from node.engines.backend import BatchEvent, Loaded, process_memory_mib
from node.engines.port import Prompted
from node.engines.torch_chat import PREFIX_CACHE_BYTES, ChatBatch, ChatModel
from protocol.messages import ChatRequest


class ChatBackend:
    """The `Batch` of a `ChatModel`."""

    def __init__(self, model: ChatModel, slots: int, prefix_cache_bytes: int = PREFIX_CACHE_BYTES) -> None:
        self._batch = ChatBatch(model, slots, prefix_cache_bytes)
        memory = model.card_memory_mib() if model.device.type == "cuda" else process_memory_mib()
        self.facts = Loaded(model.context_tokens, model.describe_device(), memory, (ChatRequest,), model.features)

    @property
    def runnable(self) -> bool:
        """See `Batch`."""
        return self._batch.runnable

    def begin(self, key: int, request: ChatRequest, prefix: str, inputs: Sequence[bytes]) -> Prompted:
        """See `Batch`."""
        return self._batch.begin(key, request, prefix)

    def grant(self, key: int, total: int) -> None:
        """See `Batch`."""
        self._batch.grant(key, total)

    def cancel(self, key: int) -> None:
        """See `Batch`."""
        self._batch.cancel(key)

    def step(self) -> list[tuple[int, BatchEvent]]:
        """See `Batch`."""
        return self._batch.step()


def load_batch(folder: Path, device: str, threads: int, slots: int, options: Mapping[str, str]) -> ChatBackend:
    """Load a causal language model. Blocks. Options: `arithmetic`, `context` (tokens at most), and
    `prefix_cache_mib` (0: nothing is kept)."""
    model = ChatModel(folder, device, threads, options.get("arithmetic", "auto"))
    model.context_tokens = min(model.context_tokens, int(options.get("context", model.context_tokens)))
    kept = int(options["prefix_cache_mib"]) * 2**20 if "prefix_cache_mib" in options else PREFIX_CACHE_BYTES
    return ChatBackend(model, slots, kept)
