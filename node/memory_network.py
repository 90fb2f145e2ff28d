"""The `Network` port inside one process: a hub, and a network for each node on it.

Rule: it keeps the promises of `node/network.py`, no more: streams are bounded, a reset is seen by both ends, gossip is
checked at each node before it goes on, the DHT keeps only valid records. Its knobs break it the way machines break:
`kill` (a crash), `stall` (a halted process), `partition` (a cut cable).
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Container, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from node.network import GossipCheck, NetworkError, PeerStatus, RecordRules, Stream, StreamHandler, StreamReset
from protocol.errors import ProtocolError
from protocol.gossip import Verdict
from protocol.ids import NodeId, parse_peer_id, peer_id

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.memory_network")

BUFFERED_WRITES = 16  # then a writer waits for its reader
BUFFERED_GOSSIP = 256  # then the newest message is dropped, as a real queue does
DEFAULT_TIMEOUT = 5.0  # seconds that any call waits for a silent peer
ANY_RECORD = RecordRules(valid=lambda key, value: True, newest=lambda key, values: 0)


class MemoryHub:
    """The wire between networks of one process. With `connected`, nodes meet without dialling."""

    def __init__(self, *, connected: bool = True, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.timeout = timeout
        self.connected = connected
        self.running: dict[NodeId, MemoryNetwork] = {}
        self.records: dict[str, bytes] = {}
        self.providers: dict[str, list[NodeId]] = {}
        self.rejected: list[tuple[NodeId, str]] = []  # (who forwarded it, topic) of each rejected message
        self._links: dict[frozenset[NodeId], _Link] = {}
        self._cut: set[frozenset[NodeId]] = set()
        self._stalled: dict[NodeId, trio.Event] = {}

    # --- knobs for tests -----------------------------------------------------------------------------

    def kill(self, node: NodeId) -> None:
        """End `node` at once: its streams are reset, its `run` returns, nobody can dial it."""
        network = self.running.pop(node, None)
        for pair in [pair for pair in self._links if node in pair]:
            self._drop(pair)
        self.resume(node)
        if network is not None:
            network.stop()

    def stall(self, node: NodeId) -> None:
        """Halt `node`: it neither sends nor receives, and nothing tells the others."""
        self._stalled.setdefault(node, trio.Event())

    def resume(self, node: NodeId) -> None:
        """Let a stalled node go on."""
        if (event := self._stalled.pop(node, None)) is not None:
            event.set()

    def partition(self, one: NodeId, other: NodeId) -> None:
        """Cut all ways between two nodes; streams between them are reset."""
        pair = frozenset((one, other))
        self._cut.add(pair)
        self._drop(pair)

    def heal(self, one: NodeId, other: NodeId) -> None:
        """Undo `partition`; a hub with `connected` joins them again."""
        self._cut.discard(frozenset((one, other)))
        if self.connected:
            self._meet(one, other)

    # --- for networks --------------------------------------------------------------------------------

    def join(self, network: MemoryNetwork) -> None:
        """A network begins to run."""
        self.running[network.node] = network
        if self.connected:
            for other in list(self.running):
                self._meet(network.node, other)

    async def awake(self, node: NodeId) -> None:
        """Return when `node` is not stalled."""
        while (event := self._stalled.get(node)) is not None:
            await event.wait()

    async def dial(self, dialler: NodeId, target: NodeId) -> MemoryNetwork:
        """Connect two nodes and return the target. Raises `NetworkError`."""
        pair = frozenset((dialler, target))
        with trio.move_on_after(self.timeout) as scope:
            await self.awake(dialler)
            await self.awake(target)
        if scope.cancelled_caught:
            raise NetworkError(f"{peer_id(target)} did not answer within {self.timeout:g} s")
        if dialler not in self.running:
            raise NetworkError("this node's network does not run")
        network = self.running.get(target)
        if network is None or pair in self._cut or not self._welcome(dialler, target):
            raise NetworkError(f"{peer_id(target)} cannot be reached")
        self._link(dialler, target)
        return network

    def links(self, node: NodeId) -> tuple[_Link, ...]:
        """The connections of one node."""
        return tuple(link for pair, link in self._links.items() if node in pair)

    def link(self, one: NodeId, other: NodeId) -> _Link | None:
        """The connection between two nodes."""
        return self._links.get(frozenset((one, other)))

    def part(self, one: NodeId, other: NodeId) -> None:
        """End the connection between two nodes; they may meet again."""
        self._drop(frozenset((one, other)))

    def neighbours(self, node: NodeId) -> tuple[MemoryNetwork, ...]:
        """Connected nodes that are not stalled."""
        ids = [link.other(node) for link in self.links(node)]
        return tuple(self.running[other] for other in ids if other in self.running and other not in self._stalled)

    def spread(self, origin: NodeId, topic: str, data: bytes) -> None:
        """Flood a message: each node that accepts it passes it on to its neighbours."""
        seen = {origin}
        senders = deque([origin])
        while senders:
            sender = senders.popleft()
            for network in self.neighbours(sender):
                if network.node in seen or origin in network.blocked:
                    continue
                verdict = network.judge(topic, data)
                if verdict is Verdict.REJECT:
                    self.rejected.append((sender, topic))
                if verdict is not None:
                    seen.add(network.node)
                if verdict is Verdict.ACCEPT:
                    senders.append(network.node)

    def _meet(self, one: NodeId, other: NodeId) -> None:
        both_run = one in self.running and other in self.running and one != other
        if both_run and frozenset((one, other)) not in self._cut and self._welcome(one, other):
            self._link(one, other)

    def _welcome(self, one: NodeId, other: NodeId) -> bool:
        return other not in self.running[one].blocked and one not in self.running[other].blocked

    def _link(self, dialler: NodeId, target: NodeId) -> None:
        self._links.setdefault(frozenset((dialler, target)), _Link(dialler, target, trio.current_time()))

    def _drop(self, pair: frozenset[NodeId]) -> None:
        if link := self._links.pop(pair, None):
            for pipe in list(link.pipes):
                pipe.break_()


@dataclass(eq=False)
class _Link:
    """A connection between two nodes, and the streams on it."""

    dialler: NodeId
    target: NodeId
    since: float
    pipes: set[_Pipe] = field(default_factory=set)

    def other(self, node: NodeId) -> NodeId:
        return self.target if node == self.dialler else self.dialler


class _Pipe:
    """What both ends of a stream share: two bounded channels and whether it was reset."""

    def __init__(self, link: _Link) -> None:
        self.broken = False
        self._link = link
        first, second = (trio.open_memory_channel[bytes](BUFFERED_WRITES) for _ in range(2))
        self.ends = ((first[0], second[1]), (second[0], first[1]))
        link.pipes.add(self)

    def break_(self) -> None:
        """Reset: every waiting call at either end wakes up."""
        self.broken = True
        self._link.pipes.discard(self)
        for send, receive in self.ends:
            send.close()
            receive.close()


class MemoryStream:
    """One end of a stream."""

    def __init__(self, hub: MemoryHub, pipe: _Pipe, side: int, own: NodeId, peer: NodeId) -> None:
        self._hub = hub
        self._pipe = pipe
        self._send, self._receive = pipe.ends[side]
        self._own = own
        self._peer = peer

    @property
    def peer(self) -> NodeId:
        """The node at the other end."""
        return self._peer

    async def send(self, data: bytes) -> None:
        """Write all of `data`. Raises `StreamReset`."""
        await self._hub.awake(self._own)
        try:
            await self._send.send(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise StreamReset(f"the stream to {peer_id(self._peer)} is closed or was reset") from None

    async def receive(self) -> bytes:
        """Some bytes, b"" at the end of the peer's half. Raises `StreamReset`."""
        try:
            data = await self._receive.receive()
        except trio.EndOfChannel:
            data = b""
        except trio.ClosedResourceError:
            raise StreamReset(f"the stream to {peer_id(self._peer)} was reset") from None
        await self._hub.awake(self._own)
        if self._pipe.broken:
            raise StreamReset(f"the stream to {peer_id(self._peer)} was reset")
        return data

    async def close(self) -> None:
        """Nothing more will be sent."""
        self._send.close()

    async def reset(self) -> None:
        """Drop both halves."""
        self._pipe.break_()


class MemoryNetwork:
    """The `Network` of one node on a hub. Enter it with `nursery.start(network.run)`."""

    def __init__(
        self,
        hub: MemoryHub,
        node: NodeId,
        rules: RecordRules = ANY_RECORD,
        *,
        blocked: Container[NodeId] = frozenset(),
    ) -> None:
        self.blocked = blocked
        self._hub = hub
        self._node = node
        self._rules = rules
        self._handlers: dict[str, StreamHandler] = {}
        self._topics: dict[str, list[_Subscription]] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be on the hub until cancelled or killed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._hub.join(self)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self._hub.kill(self._node)

    def stop(self) -> None:
        """End `run`, with every handler in it."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    @property
    def node(self) -> NodeId:
        """This node."""
        return self._node

    def addresses(self) -> tuple[str, ...]:
        """One address, good on this hub."""
        return (f"/memory/{peer_id(self._node)}/p2p/{peer_id(self._node)}",)

    def peers(self) -> tuple[PeerStatus, ...]:
        """Connected nodes. A stalled one still counts, as long as nobody noticed."""
        return tuple(self._status(link) for link in self._hub.links(self._node))

    def _status(self, link: _Link) -> PeerStatus:
        other = link.other(self._node)
        address = f"/memory/{peer_id(other)}/p2p/{peer_id(other)}"
        return PeerStatus(other, (address,), link.target == self._node, trio.current_time() - link.since)

    # --- streams -------------------------------------------------------------------------------------

    async def connect(self, address: str) -> NodeId:
        """Connect to a node of the hub. Raises `NetworkError`."""
        try:
            target = parse_peer_id(address.rpartition("/p2p/")[2])
        except ProtocolError as error:
            raise NetworkError(f"{address} does not end in /p2p/<peer id>") from error
        await self._hub.dial(self._node, target)
        return target

    async def disconnect(self, node: NodeId) -> None:
        """Close the connection to a node; streams on it are reset."""
        await self._hub.awake(self._node)
        self._hub.part(self._node, node)

    async def open_stream(self, peer: NodeId, protocol: str, addresses: Sequence[str] = ()) -> Stream:
        """A new stream. Raises `NetworkError` if the peer is gone, silent, or does not serve `protocol`."""
        target = await self._hub.dial(self._node, peer)
        link = self._hub.link(self._node, peer)
        if link is None:
            raise NetworkError(f"{peer_id(peer)} is this node itself")
        pipe = _Pipe(link)
        if not target.take(protocol, MemoryStream(self._hub, pipe, 1, peer, self._node)):
            pipe.break_()
            raise NetworkError(f"{peer_id(peer)} does not serve {protocol}")
        return MemoryStream(self._hub, pipe, 0, self._node, peer)

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Run `handler` for each inbound stream of `protocol`."""
        self._handlers[protocol] = handler

    def take(self, protocol: str, stream: MemoryStream) -> bool:
        """An inbound stream; False if nobody here serves it."""
        handler = self._handlers.get(protocol)
        if handler is None or self._nursery is None:
            return False
        self._nursery.start_soon(self._guarded, handler, stream)
        return True

    async def _guarded(self, handler: StreamHandler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        except Exception as error:
            log.warning("a stream handler failed, its stream is reset: %r", error)
            await stream.reset()
        finally:
            await stream.close()

    # --- gossip --------------------------------------------------------------------------------------

    async def publish(self, topic: str, data: bytes) -> None:
        """Hand a message to every node that can hear it. It does not come back to this node."""
        await self._hub.awake(self._node)
        self._hub.spread(self._node, topic, bytes(data))

    def subscribe(self, topic: str, check: GossipCheck) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Join a topic; accepted messages come out."""
        return self._subscribed(topic, check)

    @asynccontextmanager
    async def _subscribed(self, topic: str, check: GossipCheck) -> AsyncGenerator[AsyncIterator[bytes], None]:
        send, receive = trio.open_memory_channel[bytes](BUFFERED_GOSSIP)
        subscription = _Subscription(check, send)
        self._topics.setdefault(topic, []).append(subscription)
        try:
            async with receive:
                yield receive
        finally:
            self._topics[topic].remove(subscription)

    def judge(self, topic: str, data: bytes) -> Verdict | None:
        """The verdict of this node's subscribers (the strictest), None if it is not in the topic."""
        subscriptions = self._topics.get(topic)
        if not subscriptions:
            return None
        return strictest([subscription.offer(data) for subscription in subscriptions])

    # --- the DHT -------------------------------------------------------------------------------------

    async def put_record(self, key: str, value: bytes) -> None:
        """Keep `value` if it is valid and newer. Raises `NetworkError`."""
        await self._hub.awake(self._node)
        if not self._rules.valid(key, value):
            raise NetworkError(f"the record for {key} is not valid")
        known = self._hub.records.get(key)
        values = [value] if known is None else [known, value]
        self._hub.records[key] = values[self._rules.newest(key, values)] if known is not None else value

    async def get_record(self, key: str) -> bytes | None:
        """The record under `key`, unless it is not valid."""
        await self._hub.awake(self._node)
        value = self._hub.records.get(key)
        return value if value is not None and self._rules.valid(key, value) else None

    async def provide(self, name: str) -> None:
        """Add this node to the providers of `name`."""
        await self._hub.awake(self._node)
        known = self._hub.providers.setdefault(provider_key(name).hex(), [])
        if self._node not in known:
            known.append(self._node)

    async def find_providers(self, name: str, limit: int = 20) -> tuple[tuple[NodeId, tuple[str, ...]], ...]:
        """Nodes that provide `name`, dead ones among them: a hint."""
        await self._hub.awake(self._node)
        found = self._hub.providers.get(provider_key(name).hex(), [])
        return tuple((node, (f"/memory/{peer_id(node)}/p2p/{peer_id(node)}",)) for node in found[:limit])


@dataclass(frozen=True, slots=True, eq=False)
class _Subscription:
    """One reader of a topic."""

    check: GossipCheck
    send: trio.MemorySendChannel[bytes]

    def offer(self, data: bytes) -> Verdict:
        verdict = self.check(data)
        if verdict is Verdict.ACCEPT:
            try:
                self.send.send_nowait(data)
            except (trio.WouldBlock, trio.BrokenResourceError):
                log.debug("a gossip reader is too slow; a message is dropped")
        return verdict


def strictest(verdicts: Sequence[Verdict]) -> Verdict:
    """REJECT before IGNORE before ACCEPT."""
    order = (Verdict.REJECT, Verdict.IGNORE, Verdict.ACCEPT)
    return min(verdicts, key=order.index)


def provider_key(name: str) -> bytes:
    """The multihash (sha2-256) under which providers of `name` are found; other libp2p nodes use the same."""
    return b"\x12\x20" + hashlib.sha256(name.encode()).digest()
