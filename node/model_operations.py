"""What an operator may ask of the model store, each name of `OPERATIONS` as one method.

Rule: the same answers from a running node and from the command line without one; nothing here blocks the node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

import trio

from node.models import Checked, ModelStore, PullWish
from node.models.errors import step
from node.models.report import show
from node.operations import Emit, Json, Method, OperationFailed, Streaming

MODEL_METHODS = ("models.list", "models.show", "models.look", "models.rm")


class ModelOperations:
    """See the module. `in_use` tells whether this node serves a model."""

    def __init__(self, store: ModelStore, in_use: Callable[[str], bool]) -> None:
        self._store = store
        self._in_use = in_use
        self.methods: Mapping[str, Method] = dict(
            zip(MODEL_METHODS, (self.list, self.show, self.look, self.remove), strict=True)
        )
        self.streams: Mapping[str, Streaming] = {"models.pull": self.pull, "models.verify": self.verify}

    async def list(self) -> Json:
        """What is in the store and what can be pulled."""
        rows = await trio.to_thread.run_sync(self._store.list)
        use = await trio.to_thread.run_sync(self._store.disk_use)
        return {"models": [asdict(row) for row in rows], **use}

    async def show(self, model: str) -> Json:
        """All that is known of one model."""
        return await trio.to_thread.run_sync(show, self._store, model)

    async def look(self, model: str) -> Json:
        """What a hub has, for somebody to agree to."""
        offer = await self._store.look(model)
        return {
            "source": offer.source,
            "commit": offer.commit,
            "licence": offer.licence,
            "licence_text": offer.licence_text,
            "gated": offer.gated,
            "card": offer.card,
            "bytes": offer.bytes,
            "files": [file.name for file in offer.files],
        }

    async def remove(self, model: str) -> Json:
        """Remove a model that is not being served."""
        if self._in_use(model):
            raise OperationFailed(f"{model} is being served; stop that first: `mtor unserve {model}`")
        await trio.to_thread.run_sync(self._store.remove, model)
        return {"removed": model}

    async def pull(self, emit: Emit, model: str, name: str = "", sha256: str = "", agreed: str = "") -> None:
        """Fetch, verify and convert a model."""
        stored = await self._store.pull(model, emit, PullWish(name, sha256, agreed))
        await emit({"step": "done", "model": stored, "done": True})

    async def verify(self, emit: Emit, model: str = "") -> None:
        """Compare all digests, of one model or of all."""
        names = [model] if model else await trio.to_thread.run_sync(self._store.names)
        checked: list[Checked] = []
        for name in names:
            await emit(step("verify", message=name))
            checked.append(await trio.to_thread.run_sync(self._store.check, name))
        await emit({"step": "done", "checked": [asdict(each) for each in checked], "done": True})
