"""Where a query stands while its client waits: who has it, its place in the queue, or why nobody works on it.

Rule: a client is told what changed and nothing twice. A query that starts at once opens no stream for it, so that a
failure before the first word still has its HTTP status.
"""

from __future__ import annotations

from typing import Any

from node.answers import AnswerEvent, Routed, Waiting
from protocol.ids import peer_id


class Standing:
    """What one streamed answer's client knows, and what it should know."""

    def __init__(self) -> None:
        self._now: Routed | Waiting | None = None
        self._told: Routed | Waiting | None = None

    def note(self, item: AnswerEvent | None, *, begun: bool) -> bool:
        """Take an event; True if the client should be told at once. `begun`: its stream is open already."""
        if not isinstance(item, Routed | Waiting):
            return False
        self._now = item
        waits = isinstance(item, Waiting) or item.queue_position > 0
        return (waits or begun) and item != self._told

    def news(self) -> dict[str, Any]:
        """The `mtor` object as a part of a chunk if there is news; nothing otherwise."""
        if self._now is None or self._now == self._told:
            return {}
        self._told = self._now
        return {"mtor": _facts(self._now)}


def _facts(item: Routed | Waiting) -> dict[str, Any]:
    if isinstance(item, Waiting):
        return {"waiting": item.reason, "retry_ms": item.retry_ms}
    worker = {"worker": peer_id(item.worker), "attempt": item.attempt}
    return worker | {"queue_position": item.queue_position, "wait_ms": item.wait_ms}
