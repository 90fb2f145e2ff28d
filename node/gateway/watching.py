"""How the node is, for those who watch.

Rule: worked out once for all watchers, when something may have changed and at most once a second; not at all while
nobody watches. Whoever is slow misses what was in between, and never the newest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import asdict, replace

from node.gateway.asking import Asker
from node.gateway.bridge import Bridge, NodeStopping
from node.gateway.frames import encoded
from node.gateway.ongoing import Bell
from node.gateway.ports import GatewayFacts, NodeSnapshot

log = logging.getLogger("mtor.gateway")

LOOK_SECONDS = 1.0


class Watching:
    """The node's state as frames."""

    def __init__(self, bridge: Bridge, facts: GatewayFacts, asker: Asker, *, discreet: bool) -> None:
        """`discreet`: watchers may be strangers, and why the owner needs his machine is not their business."""
        self._bridge = bridge
        self._facts = facts
        self._asker = asker
        self._discreet = discreet
        self._watchers = 0
        self._looking: asyncio.Task[None] | None = None
        self._known: tuple[NodeSnapshot, int] | None = None
        self._frame = b""
        self._looked_at = -LOOK_SECONDS
        self._changed = Bell()

    async def follow(self) -> AsyncGenerator[bytes, None]:
        """Frames: now, and whenever something changed."""
        self._watchers += 1
        if self._looking is None:
            self._begin()
        seen = b""
        try:
            while True:
                if self._frame is not seen and self._frame:
                    seen = self._frame
                    yield seen
                else:
                    await self._changed.wait()
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._end()

    def _begin(self) -> None:
        """Look again. What was seen a moment ago still holds, or who came and went would make us look each time."""
        loop = asyncio.get_running_loop()
        age = loop.time() - self._looked_at
        if age > LOOK_SECONDS:
            self._frame, self._known = b"", None
        self._looking = loop.create_task(self._look(LOOK_SECONDS - age))

    def _end(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def _look(self, pause: float) -> None:
        await asyncio.sleep(max(0.0, pause))
        while True:
            self._looked_at = asyncio.get_running_loop().time()
            try:
                self._take(await self._bridge.call(self._facts.snapshot), self._asker.running)
            except NodeStopping:
                return
            except Exception:
                log.exception("the node's state cannot be told")
            await asyncio.sleep(LOOK_SECONDS)

    def _take(self, snapshot: NodeSnapshot, running: int) -> None:
        """Tell it if it says something new; that time goes by is nothing new."""
        timeless = (replace(snapshot, uptime_seconds=0), running)
        if timeless == self._known:
            return
        self._known = timeless
        shown = replace(snapshot, pause_reason="") if self._discreet else snapshot
        self._frame = encoded({"type": "node"} | asdict(shown) | {"running": running})
        self._changed.ring()
