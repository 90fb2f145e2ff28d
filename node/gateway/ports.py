"""What the HTTP side needs of the node, as types.

Rule: everything behind these ports runs on the trio side and is reached through the bridge.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from node.answers import AnswerEvent, Question
from node.measures import Measured


class Answers(Protocol):
    """Whoever answers queries."""

    async def answer(self, question: Question, emit: Callable[[AnswerEvent], Awaitable[None]]) -> None:
        """Emit events; the last is `Completed` or `Failed`."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model that can be asked now, by whoever serves it. Prices are µcredits for 1,000 units, the cheapest
    worker's."""

    realm: str
    model: str
    workers: int
    context_tokens: int
    features: tuple[str, ...] = ()  # what can be asked of it, by the names of requests
    price_in: int = 0
    price_out: int = 0


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """Another node that is connected, or whose offer is known."""

    node: str  # peer id
    connected: bool


@dataclass(frozen=True, slots=True)
class OfferFacts:
    """A model that a node offers, as it says itself."""

    node: str  # peer id
    own: bool
    realm: str
    model: str
    device: str
    device_name: str
    vram_mib: int
    context_tokens: int
    slots: int
    busy: int
    queued: int
    price_in: int  # µcredits for 1,000 units
    price_out: int
    free: bool
    features: tuple[str, ...]  # kinds of request that it takes


@dataclass(frozen=True, slots=True)
class FederationFacts:
    """Whose members ask each other."""

    name: str
    id: str


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """The node as its clients may see it: no addresses, keys or balances. Names are those of the JSON."""

    node: str  # peer id
    name: str
    version: str
    uptime_seconds: int
    paused: bool
    pause_reason: str
    ready: bool
    ready_reason: str
    federation: FederationFacts
    peers: tuple[PeerFacts, ...]
    offers: tuple[OfferFacts, ...]
    loading: tuple[str, ...]  # models that are being loaded here


class GatewayFacts(Protocol):
    """What the gateway tells without a query."""

    async def models(self) -> list[ModelFacts]:
        """All models on offer."""

    async def readiness(self) -> tuple[bool, str]:
        """Whether a query could be answered now, and why not."""

    async def figures(self) -> Sequence[Measured]:
        """What the node counted, and how things stand, for `/metrics`."""

    async def snapshot(self) -> NodeSnapshot:
        """The node as it is now."""
