"""Whom a ledger can ask, as a type.

Rule: an answer is the peer's own word, still to be checked; no answer in time is `PeerUnreachable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from protocol.ids import NodeId
from protocol.messages import Message, Rejected

Answer = TypeVar("Answer", bound=Message)


class PeerUnreachable(Exception):
    """No answer from a peer. The message says which and why."""


class LedgerPeers(Protocol):
    """Other nodes' ledgers. Every call ends within the implementation's own time-out."""

    async def ask(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer | Rejected:
        """One question. Raises `PeerUnreachable`, also for an answer of another kind."""

    def connected(self) -> Sequence[NodeId]:
        """The peers that are connected now."""
