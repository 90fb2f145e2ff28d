"""What the node needs of a network, as types.

Rule: nothing above this file knows libp2p. `libp2p_host.py` is the real thing, `memory_network.py` the one
inside a process; `tests/contracts/` holds both to the same promises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from protocol.gossip import Verdict as Verdict
from protocol.ids import NodeId


class NetworkError(Exception):
    """The network could not do it: unreachable peer, reset stream, time-out. Never a programming error."""


class StreamReset(NetworkError):
    """The stream was reset by either side, or its connection was lost."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A connected peer, as `mtor peers` shows it."""

    node: NodeId
    addresses: tuple[str, ...]
    inbound: bool
    connected_seconds: float


class Stream(Protocol):
    """A reliable byte stream to one authenticated peer."""

    @property
    def peer(self) -> NodeId:
        """Who is at the other end, proven by the secure channel."""

    async def send(self, data: bytes) -> None:
        """Write all of `data`. Raises `StreamReset`."""

    async def receive(self) -> bytes:
        """Some bytes, or b"" at the end of the peer's half. Raises `StreamReset`.
        An end says nothing about completeness: protocols have their own last frame."""

    async def close(self) -> None:
        """Say that nothing more will be sent; the other half stays open. Never raises."""

    async def reset(self) -> None:
        """Drop both halves at once. Never raises."""


StreamHandler = Callable[[Stream], Awaitable[None]]
GossipCheck = Callable[[bytes], Verdict]


class Network(Protocol):
    """The five things a node does on a network. Every call is bounded by the implementation's own time-out."""

    @property
    def node(self) -> NodeId:
        """This node."""

    def addresses(self) -> tuple[str, ...]:
        """Multiaddresses under which others may dial this node, each ending in /p2p/<peer id>."""

    def peers(self) -> tuple[PeerStatus, ...]:
        """The peers connected now."""

    async def connect(self, address: str) -> NodeId:
        """Dial a multiaddress that ends in /p2p/<peer id>. Raises `NetworkError`."""

    async def disconnect(self, node: NodeId) -> None:
        """Close all connections to a node; streams on them are reset. Never raises."""

    async def open_stream(self, peer: NodeId, protocol: str, addresses: Sequence[str] = ()) -> Stream:
        """Open a stream, dialling `addresses` first if not connected. Raises `NetworkError`."""

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Run `handler` for each inbound stream of `protocol`. An exception in it resets that stream alone."""

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip `data`. Returns when it was handed over, which promises nothing about its arrival."""

    def subscribe(self, topic: str, check: GossipCheck) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Join a topic: messages that `check` accepts come out. `check` runs before forwarding, and is quick."""

    async def put_record(self, key: str, value: bytes) -> None:
        """Store a signed record in the DHT. Raises `NetworkError`."""

    async def get_record(self, key: str) -> bytes | None:
        """The newest valid record under `key`, None if there is none. Raises `NetworkError`."""

    async def provide(self, name: str) -> None:
        """Announce in the DHT that this node provides `name`. Raises `NetworkError`."""

    async def find_providers(self, name: str, limit: int = 20) -> tuple[tuple[NodeId, tuple[str, ...]], ...]:
        """(node, addresses) of nodes that provide `name`: a hint, partial and perhaps stale."""


@dataclass(frozen=True, slots=True)
class RecordRules:
    """What a DHT may store under `/mtor/…`: pure functions of protocol/offers.py, given by the composition root."""

    valid: Callable[[str, bytes], bool]  # (key, value)
    newest: Callable[[str, Sequence[bytes]], int]  # index of the value to keep
