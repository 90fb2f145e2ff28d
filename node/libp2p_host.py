"""The `Network` port over libp2p: TCP, noise and yamux; GossipSub; a Kademlia DHT.

Rule: libp2p stays inside this file and `libp2p_fixes.py`. What fails in it is a `NetworkError`, within a time-out.
The host runs under a supervisor: if it dies it starts again with the same identity and port, and handlers and
subscriptions are kept here, outside of it. The DHT and the gossip service start again each for itself.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from libp2p import new_host
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.identity_utils import create_identity_from_seed
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.validators import signature_validator
from libp2p.records.validator import NamespacedValidator, Validator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.tools.anyio_service import background_trio_service
from libp2p.transport.exceptions import SecurityUpgradeFailure
from libp2p.utils.address_validation import get_available_interfaces
from multiaddr import Multiaddr

from node import libp2p_fixes
from node.memory_network import provider_key, strictest
from node.network import GossipCheck, NetworkError, PeerStatus, RecordRules, Stream, StreamHandler, StreamReset
from protocol import params
from protocol.errors import Malformed
from protocol.gossip import Verdict
from protocol.ids import NodeId, parse_peer_id, peer_id
from protocol.signing import Signer

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.network")
Answer = TypeVar("Answer")

OPEN_TIMEOUT = 10.0  # seconds for open_stream and connect, all addresses together
DIAL_TIMEOUT = 4.0  # seconds for one address
UPGRADE_TIMEOUT = 3.0  # seconds for a newcomer to prove who it is
DHT_TIMEOUT = 15.0  # seconds; after a mass failure a lookup left alone takes 40
TABLE_TIMEOUT = 3.0  # seconds to wait for a first peer of the DHT
PUBLISH_TIMEOUT = 5.0  # seconds
CLOSE_TIMEOUT = 3.0  # seconds for saying goodbye
READ_BYTES = 64 * params.KIB
BUFFERED_GOSSIP = 256  # then the newest message is dropped
RESTART_FIRST = 1.0  # seconds before a dead service starts again
RESTART_LONGEST = 30.0  # seconds
ADDRESS_REFRESH = 30.0  # seconds; a laptop changes networks
DHT_WATCH = 0.25  # seconds between looks for peers that the DHT does not know yet
GOSSIP_WATCH = 3.0  # seconds between looks for peers without a gossip stream
GOSSIP_PROTOCOL = TProtocol("/meshsub/1.1.0")
GOSSIP_DEGREE, GOSSIP_DEGREE_LOW, GOSSIP_DEGREE_HIGH = 6, 4, 12  # GossipSub's own recommendation
GOSSIP_WINDOW, GOSSIP_HISTORY = 6, 10  # heartbeats in which peers are told of a message, and it can be asked for
GOSSIP_RATE = 500.0  # messages a second, topic and forwarder; the default of 10 drops honest bursts


class Libp2pNetwork:
    """The `Network` of one node. Enter it with `nursery.start(network.run)`."""

    def __init__(
        self,
        seed: bytes,
        rules: RecordRules,
        *,
        listen: Sequence[str],
        announce: Sequence[str] = (),
        gossip: bool = True,
        dht: bool = True,
        max_connections: int = 200,
        blocked: Container[NodeId] = (),
    ) -> None:
        libp2p_fixes.apply()
        self._seed = seed
        self._node = Signer.from_seed(seed).node
        self._rules = rules
        self._listen = tuple(listen)
        self._announce = tuple(announce)
        self._use_gossip = gossip
        self._use_dht = dht
        self._max_connections = max_connections
        self._blocked = blocked  # asked whenever it matters: who is in it may change
        self._handlers: dict[str, StreamHandler] = {}
        self._topics: dict[str, list[_Reader]] = {}
        self._addresses: tuple[str, ...] = ()
        self._dialling: dict[NodeId, _Dial] = {}
        self._host: Any = None
        self._dht: Any = None
        self._pubsub: Any = None

    # --- life ----------------------------------------------------------------------------------------

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled. Raises `NetworkError` if the first start fails (a port in use…)."""
        await _check_ports(self._listen)
        lives = _Lives(task_status)
        pause = RESTART_FIRST
        while True:
            try:
                await self._live(lives)
            except NetworkError:
                if not lives.started:
                    raise
                log.exception("the libp2p host did not start again; next try in %.0f s", pause)
            except Exception:
                log.exception("the libp2p host died; it starts again in %.0f s", pause)
            await trio.sleep(pause)
            pause = min(2 * pause, RESTART_LONGEST)

    async def _live(self, lives: _Lives) -> None:
        """One life of the host. The host itself is shielded: it ends after its connections were closed in order."""
        host = _new_host(self._seed, self._listen, self._max_connections, self._advertised)
        _guard_upgrades(host, self._blocked)
        for protocol in self._handlers:
            host.set_stream_handler(TProtocol(protocol), self._accept)
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(_run_host, host, self._listen, leave)
            try:
                self._listen = _bound_addresses(host, self._listen)
                self._host = host
                await self._serve(host, lives)
            finally:
                self._host = None
                leave.set()

    async def _serve(self, host: Any, lives: _Lives) -> None:
        self._refresh_addresses()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_addresses)
            if self._use_dht:
                nursery.start_soon(_keep_running, "the DHT", self._run_dht, host)
            if self._use_gossip:
                nursery.start_soon(_keep_running, "gossip", self._run_gossip, host)
            lives.begin()
            await trio.sleep_forever()

    # --- who and where -------------------------------------------------------------------------------

    @property
    def node(self) -> NodeId:
        """This node."""
        return self._node

    def addresses(self) -> tuple[str, ...]:
        """Addresses that others can dial, each ending in /p2p/<peer id>."""
        return self._addresses

    def peers(self) -> tuple[PeerStatus, ...]:
        """The peers connected now, one entry each."""
        if self._host is None:
            return ()
        connections = self._host.get_network().connections
        return tuple(_status(node, live[0]) for node, live in _live_connections(connections))

    async def _keep_addresses(self) -> None:
        while True:
            await trio.sleep(ADDRESS_REFRESH)
            self._refresh_addresses()

    def _advertised(self, _candidates: Any) -> list[Multiaddr]:
        """The same addresses for identify and the DHT; libp2p's own list has unspecified ones in it."""
        return [Multiaddr(address) for address in self._addresses]

    def _refresh_addresses(self) -> None:
        plain = self._announce or tuple(dict.fromkeys(a for listen in self._listen for a in _dialable(listen)))
        suffix = f"/p2p/{peer_id(self._node)}"
        self._addresses = tuple(a if a.endswith(suffix) else a + suffix for a in plain)

    # --- connections ---------------------------------------------------------------------------------

    async def connect(self, address: str) -> NodeId:
        """Dial a multiaddress that ends in /p2p/<peer id>. Raises `NetworkError`."""
        try:
            node = parse_peer_id(address.rpartition("/p2p/")[2])
        except Malformed as error:
            raise NetworkError(f"{address} does not end in /p2p/<peer id>: {error}") from error
        await _bounded(OPEN_TIMEOUT, f"dialling {address}", self._ensure_connection(node, (address,)))
        return node

    async def disconnect(self, node: NodeId) -> None:
        """Close all connections to a node; streams on them are reset. Never raises."""
        if self._host is None:
            return
        async with trio.open_nursery() as nursery:
            for connection in self._host.get_network().get_connections(_libp2p_id(node)):
                nursery.start_soon(_farewell, connection.close)

    async def _ensure_connection(self, node: NodeId, addresses: Sequence[str]) -> Any:
        """A live connection to `node`: the one there is, or a new one. One dial a peer at a time."""
        self._refuse(node)
        async with self._turn(node):
            connection = self._connection(node)
            return connection if connection is not None else await self._dial(node, addresses)

    def _refuse(self, node: NodeId) -> None:
        if self._host is None:
            raise NetworkError("the network is not running")
        if node == self._node:
            raise NetworkError("a node does not dial itself")
        if node in self._blocked:
            raise NetworkError(f"{peer_id(node)} is blocked here; `mtor peers unblock` ends that")

    @asynccontextmanager
    async def _turn(self, node: NodeId) -> AsyncGenerator[None, None]:
        dial = self._dialling.setdefault(node, _Dial())
        dial.waiting += 1
        try:
            async with dial.lock:
                yield
        finally:
            dial.waiting -= 1
            if not dial.waiting:
                self._dialling.pop(node, None)

    def _connection(self, node: NodeId) -> Any:
        live = [c for c in self._host.get_network().get_connections(_libp2p_id(node)) if not _is_closed(c)]
        return live[0] if live else None

    async def _dial(self, node: NodeId, addresses: Sequence[str]) -> Any:
        """Try the given addresses and the peer store's, then the DHT's."""
        near = list(dict.fromkeys([_transport(address) for address in addresses] + self._stored(node)))
        connection = await self._dial_any(node, near)
        if connection is not None:
            return connection
        far = [address for address in await self._looked_up(node) if address not in near]
        connection = await self._dial_any(node, far)
        if connection is not None:
            return connection
        raise NetworkError(f"{peer_id(node)} cannot be reached ({', '.join(near + far) or 'no address is known'})")

    async def _dial_any(self, node: NodeId, addresses: Sequence[str]) -> Any:
        for address in addresses:
            connection = await self._dial_one(node, address)
            if connection is not None:
                return connection
        return None

    async def _dial_one(self, node: NodeId, address: str) -> Any:
        swarm = self._host.get_network()
        with trio.move_on_after(DIAL_TIMEOUT):
            try:
                for resolved in await _resolve(address):
                    return await swarm.dial_addr(Multiaddr(resolved), _libp2p_id(node))
            except Exception as error:
                log.debug("%s not dialled: %r", address, error)
        return None

    def _stored(self, node: NodeId) -> list[str]:
        try:
            return [_transport(str(address)) for address in self._host.get_peerstore().addrs(_libp2p_id(node))]
        except PeerStoreError:  # raised for peers that the store does not know
            return []

    async def _looked_up(self, node: NodeId) -> list[str]:
        try:
            found = await self._dht.find_peer(_libp2p_id(node)) if self._dht is not None else None
        except Exception as error:
            log.debug("%s not found in the DHT: %r", peer_id(node), error)
            return []
        return [_transport(str(address)) for address in found.addrs] if found else []

    # --- streams -------------------------------------------------------------------------------------

    async def open_stream(self, peer: NodeId, protocol: str, addresses: Sequence[str] = ()) -> Stream:
        """Open a stream, dialling `addresses` first if not connected. Raises `NetworkError`."""
        what = f"a stream {protocol} to {peer_id(peer)}"
        return await _bounded(OPEN_TIMEOUT, what, self._open_stream(peer, protocol, addresses))

    async def _open_stream(self, peer: NodeId, protocol: str, addresses: Sequence[str]) -> Stream:
        connection = await self._ensure_connection(peer, addresses)
        try:
            return await self._stream_on(connection, peer, protocol)
        except Exception as error:
            if not _is_closed(connection):
                raise
            log.debug("the connection to %s was dead already (%r); dialling again", peer_id(peer), error)
        connection = await self._ensure_connection(peer, addresses)
        return await self._stream_on(connection, peer, protocol)

    async def _stream_on(self, connection: Any, peer: NodeId, protocol: str) -> Stream:
        try:
            raw = await connection.new_stream()
        except Exception:
            await _farewell(connection.close)
            raise
        connection.remove_stream(raw)  # the connection's list would keep it long after its end
        try:
            wire = MultiselectCommunicator(raw)
            await self._host.multiselect_client.select_one_of([TProtocol(protocol)], wire, int(OPEN_TIMEOUT))
        except BaseException:
            await _farewell(raw.reset)
            raise
        return _Libp2pStream(raw, peer)

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Run `handler` for each inbound stream of `protocol`."""
        self._handlers[protocol] = handler
        if self._host is not None:
            self._host.set_stream_handler(TProtocol(protocol), self._accept)

    async def _accept(self, raw: Any) -> None:
        """An inbound stream. Its end, good or bad, is the end of this stream alone."""
        stream = _Libp2pStream(raw, _node_id(raw.muxed_conn.peer_id))
        if stream.peer in self._blocked:
            await stream.reset()
            return
        protocol = str(raw.get_protocol())
        try:
            await self._handlers[protocol](stream)
        except NetworkError as error:
            log.debug("a stream %s from %s: %s", protocol, peer_id(stream.peer), error)
            await stream.reset()
        except Exception:
            log.exception("the handler of %s failed; the stream is reset", protocol)
            await stream.reset()
        else:
            await stream.close()

    # --- gossip --------------------------------------------------------------------------------------

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip `data`. Raises `NetworkError` if gossip is off or not running."""
        if self._pubsub is None:
            raise NetworkError("gossip is not running" if self._use_gossip else "gossip is off (node.gossip)")
        await _bounded(PUBLISH_TIMEOUT, f"gossip on {topic}", self._pubsub.publish(topic, bytes(data)))

    def subscribe(self, topic: str, check: GossipCheck) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Join a topic; messages of others that `check` accepts come out."""
        return self._subscribed(topic, check)

    @asynccontextmanager
    async def _subscribed(self, topic: str, check: GossipCheck) -> AsyncGenerator[AsyncIterator[bytes], None]:
        send, receive = trio.open_memory_channel[bytes](BUFFERED_GOSSIP)
        reader = _Reader(check, send)
        self._topics.setdefault(topic, []).append(reader)
        try:
            async with receive:
                if self._pubsub is not None:
                    await self._pubsub.subscribe(topic)
                yield receive
        finally:
            self._topics[topic].remove(reader)
            if not self._topics[topic]:
                del self._topics[topic]
                await self._leave(topic)

    async def _leave(self, topic: str) -> None:
        if self._pubsub is None:
            return
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT, shield=True):
            try:
                await self._pubsub.unsubscribe(topic)
            except Exception as error:
                log.debug("left %s: %r", topic, error)

    def _judge(self, topics: Sequence[str], data: bytes) -> Verdict:
        """What this node's readers say to a message; a topic nobody reads is ignored."""
        readers = [reader for topic in topics for reader in self._topics.get(topic, ())]
        return strictest([reader.offer(data) for reader in readers]) if readers else Verdict.IGNORE

    async def _run_gossip(self, host: Any) -> None:
        """One life of the gossip service."""
        swarm = host.get_network()
        notifees = list(swarm.notifees)
        router = GossipSub(
            protocols=[GOSSIP_PROTOCOL],
            degree=GOSSIP_DEGREE,
            degree_low=GOSSIP_DEGREE_LOW,
            degree_high=GOSSIP_DEGREE_HIGH,
            heartbeat_interval=1,
            gossip_window=GOSSIP_WINDOW,
            gossip_history=GOSSIP_HISTORY,
            adaptive_gossip_enabled=False,
            eclipse_protection_enabled=False,  # it wants three IP addresses; a home network has one
            max_messages_per_topic_per_second=GOSSIP_RATE,
        )
        pubsub = _JudgingPubsub(host, router, self._judge, self._blocked)
        try:
            async with background_trio_service(pubsub), background_trio_service(router):
                await pubsub.wait_until_ready()
                for topic in self._topics:
                    await pubsub.subscribe(topic)
                self._pubsub = pubsub
                await self._keep_gossip_streams(swarm, pubsub)
        finally:
            self._pubsub = None
            await pubsub.hang_up()
            for notifee in [n for n in swarm.notifees if n not in notifees and "Pubsub" in type(n).__name__]:
                swarm.remove_notifee(notifee)

    async def _keep_gossip_streams(self, swarm: Any, pubsub: Any) -> None:
        """Peers that were connected before this service, or whose first negotiation failed, get a stream too.
        Subscriptions are told again: after a quick reconnect libp2p forgets the peer's, as if the old connection's
        end came after the new one's begin.
        """
        while True:
            for identity in [identity for identity in swarm.connections if identity not in pubsub.peers]:
                with trio.move_on_after(GOSSIP_WATCH):
                    await pubsub.ensure_peer_stream(identity, GOSSIP_WATCH)
            if self._topics:
                await pubsub.message_all_peers(pubsub.get_hello_packet().SerializeToString())
            await trio.sleep(GOSSIP_WATCH)

    # --- the DHT -------------------------------------------------------------------------------------

    async def put_record(self, key: str, value: bytes) -> None:
        """Store a record at the peers closest to `key`. Raises `NetworkError`."""
        dht = await self._ready_dht()
        await _bounded(DHT_TIMEOUT, f"storing {key}", dht.put_value(key, bytes(value)))

    async def get_record(self, key: str) -> bytes | None:
        """The newest valid record that peers hold under `key`. Raises `NetworkError`."""
        dht = await self._ready_dht()
        value = await _bounded(DHT_TIMEOUT, f"looking up {key}", dht.get_value(key))
        return value if isinstance(value, bytes) and self._rules.valid(key, value) else None

    async def provide(self, name: str) -> None:
        """Announce that this node provides `name`. Raises `NetworkError`."""
        dht = await self._ready_dht()
        store = dht.provider_store
        if not await _bounded(DHT_TIMEOUT, f"providing {name}", store.provide(provider_key(name))):
            raise NetworkError(f"no peer of the DHT took the announcement of {name}")

    async def find_providers(self, name: str, limit: int = 20) -> tuple[tuple[NodeId, tuple[str, ...]], ...]:
        """Nodes that provide `name`. Raises `NetworkError`."""
        dht = await self._ready_dht()
        store = dht.provider_store
        found = await _bounded(DHT_TIMEOUT, f"searching {name}", store.find_providers(provider_key(name), limit))
        return tuple(dict(_provider(info) for info in found if _is_node(info.peer_id)).items())[:limit]

    async def _ready_dht(self) -> Any:
        """The DHT, once it knows a peer. Raises `NetworkError`."""
        if not self._use_dht:
            raise NetworkError("the DHT is off (node.dht)")
        with trio.move_on_after(TABLE_TIMEOUT):
            while self._dht is None or not self._dht.get_routing_table_size():  # noqa: ASYNC110 (it tells no events)
                await trio.sleep(DHT_WATCH)
        if self._dht is None or not self._dht.get_routing_table_size():
            raise NetworkError("no peer of the DHT is known yet")
        return self._dht

    async def _run_dht(self, host: Any) -> None:
        """One life of the DHT."""
        validator = NamespacedValidator({params.DHT_NAMESPACE: _RecordValidator(self._rules)}, strict_validation=True)
        dht = KadDHT(host, DHTMode.SERVER, validator=validator, validator_changed=True, strict_validation=True)
        try:
            async with background_trio_service(dht):
                self._dht = dht
                await self._introduce_peers(host, dht)
        finally:
            self._dht = None

    async def _introduce_peers(self, host: Any, dht: Any) -> None:
        """Connecting fills no routing table: add each new peer once identify told what it speaks, then look around."""
        known: set[Any] = set()
        while True:
            connected = set(host.get_network().connections)
            known &= connected
            added = [identity for identity in connected - known if await _introduce(host, dht, identity)]
            known.update(added)
            if added:
                with trio.move_on_after(DHT_TIMEOUT):
                    await dht.peer_routing.find_closest_peers_network(host.get_id().to_bytes())
            await trio.sleep(DHT_WATCH)


@dataclass(eq=False)
class _Dial:
    """Who waits to dial one peer."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    waiting: int = 0


class _Lives:
    """Tells the starter of `run`, once, that the first life began."""

    def __init__(self, task_status: TaskStatus[None]) -> None:
        self.started = False
        self._task_status = task_status

    def begin(self) -> None:
        if not self.started:
            self.started = True
            self._task_status.started()


@dataclass(frozen=True, slots=True, eq=False)
class _Reader:
    """One subscriber of a topic."""

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


class _Libp2pStream:
    """One stream, with this node's errors."""

    def __init__(self, raw: Any, peer: NodeId) -> None:
        self._raw = raw
        self._peer = peer

    @property
    def peer(self) -> NodeId:
        """The node at the other end."""
        return self._peer

    async def send(self, data: bytes) -> None:
        """Write all of `data`. Raises `StreamReset`; then the peer was told, too."""
        try:
            await self._raw.write(bytes(data))
        except Exception as error:
            await self.reset()
            raise StreamReset(f"the stream to {peer_id(self._peer)} is closed or was reset: {error}") from error

    async def receive(self) -> bytes:
        """Some bytes, b"" at the end of the peer's half. Raises `StreamReset`."""
        try:
            data = await self._raw.read(READ_BYTES)
        except StreamEOF:
            return b""
        except Exception as error:
            raise StreamReset(f"the stream to {peer_id(self._peer)} was reset") from error
        return bytes(data)

    async def close(self) -> None:
        """Nothing more will be sent."""
        await _farewell(self._raw.close_write)

    async def reset(self) -> None:
        """Drop both halves."""
        await _farewell(self._raw.reset)


class _JudgingPubsub(Pubsub):
    """Pubsub whose topics tell IGNORE from REJECT: libp2p's validators return a bool, and False punishes."""

    def __init__(
        self, host: Any, router: Any, judge: Callable[[Sequence[str], bytes], Verdict], blocked: Container[NodeId]
    ) -> None:
        super().__init__(host, router, strict_signing=True, max_inbound_rpc_size=params.MAX_FRAME_BYTES)
        self._judge = judge
        self._blocked = blocked
        self._inbound: set[Any] = set()

    async def stream_handler(self, stream: Any) -> None:
        """Keep hold of inbound streams: they would outlive this service and swallow what peers send to the next."""
        self._inbound.add(stream)
        try:
            await super().stream_handler(stream)
        finally:
            self._inbound.discard(stream)

    async def hang_up(self) -> None:
        """Reset all streams, so that peers open new ones."""
        for stream in [*self._inbound, *self.peers.values()]:
            await _farewell(stream.reset)
        self.seen_messages.stop()  # it has a thread

    async def push_msg(self, msg_forwarder: ID, msg: Any) -> None:
        """Judge a message before it is passed on. An error in here costs the message, not the service."""
        try:
            own = msg_forwarder == self.my_id
            if own or self._accepts(msg_forwarder, msg):
                await super().push_msg(msg_forwarder, msg)
        except Exception as error:
            log.debug("a gossip message from %s is dropped: %r", msg_forwarder, error)

    def _accepts(self, forwarder: ID, msg: Any) -> bool:
        if self._is_msg_seen(msg) or self.is_peer_blacklisted(forwarder) or ID(msg.from_id) == self.my_id:
            return False
        author = ID(msg.from_id)
        if _is_node(author) and _node_id(author) in self._blocked:
            self._mark_msg_seen(msg)
            return False
        signed = signature_validator(msg)
        verdict = self._judge(list(msg.topicIDs), msg.data) if signed else Verdict.REJECT
        if verdict is not Verdict.ACCEPT:
            self._mark_msg_seen(msg)
        if verdict is Verdict.REJECT:
            self._punish(forwarder, msg)
        return verdict is Verdict.ACCEPT

    def _punish(self, forwarder: ID, msg: Any) -> None:
        log.debug("%s forwarded a message that breaks the rules of %s", forwarder, list(msg.topicIDs))
        for topic in msg.topicIDs:
            self.router.scorer.on_invalid_message(forwarder, topic)  # type: ignore[attr-defined]

    def notify_subscriptions(self, publish_message: Any) -> None:
        """Readers got it from `_judge` already."""


class _RecordValidator(Validator):
    """This node's record rules, as libp2p asks for them."""

    def __init__(self, rules: RecordRules) -> None:
        self._rules = rules

    def validate(self, key: str, value: bytes) -> None:
        """Raises ValueError for a record that must not be stored."""
        if not self._rules.valid(key, value):
            raise ValueError(f"not a valid record for {key}")

    def select(self, key: str, values: list[bytes]) -> int:
        """The index of the value to keep."""
        return self._rules.newest(key, values)


# --- building and ending a host -----------------------------------------------------------------------


def _new_host(
    seed: bytes, listen: Sequence[str], max_connections: int, advertised: Callable[[Any], list[Multiaddr]]
) -> Any:
    keys = create_identity_from_seed(seed)
    noise = NoiseTransport(keys, noise_privkey=create_new_x25519_key_pair().private_key)
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE: noise},  # the default also offers SECIO and plaintext
        muxer_preference="YAMUX",
        listen_addrs=[Multiaddr(address) for address in listen],
        addrs_factory=advertised,
        disable_identify_address_discovery=True,
        connection_config=ConnectionConfig(
            max_connections=max_connections,
            min_connections=0,  # no dialling on its own: who is dialled is the router's business
            low_watermark=0,
            high_watermark=max_connections,
            max_connections_per_peer=1,  # more makes every dial wait 250-500 ms
            dial_timeout=DIAL_TIMEOUT,
            inbound_upgrade_timeout=UPGRADE_TIMEOUT,
            outbound_upgrade_timeout=DIAL_TIMEOUT,
        ),
    )
    swarm: Any = host.get_network()
    swarm.set_resource_manager(None)  # its limits wait without end; libp2p_fixes has limits that refuse
    swarm.retry_config = RetryConfig(max_retries=0)
    return host


def _guard_upgrades(host: Any, blocked: Container[NodeId]) -> None:
    """After the handshake, before anything else: no blocked peers, and none whose key is not Ed25519."""
    upgrader = host.get_network().upgrader
    upgrade = upgrader.upgrade_security

    async def upgrade_security(*arguments: Any, **named: Any) -> Any:
        secured = await upgrade(*arguments, **named)
        remote = secured.get_remote_peer()
        if _is_node(remote) and _node_id(remote) not in blocked:
            return secured
        await secured.close()
        raise SecurityUpgradeFailure(f"{remote} is not welcome here")

    upgrader.upgrade_security = upgrade_security


async def _check_ports(listen: Sequence[str]) -> None:
    """libp2p shares a port silently with whoever has it (SO_REUSEPORT). Raises `NetworkError`."""
    for address in listen:
        host, port = _tcp_endpoint(address)
        if not port:
            continue
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise NetworkError(
                    f"cannot listen on {address}: {error.strerror}; end the program that has port {port} "
                    f"(another node?) or choose another under node.listen in realms.yml"
                ) from error


def _tcp_endpoint(address: str) -> tuple[str, int]:
    """(host, port) of a listening address. Raises `NetworkError`."""
    parts = address.split("/")
    if len(parts) == 5 and parts[1] in ("ip4", "ip6") and parts[3] == "tcp" and parts[4].isdecimal():
        with suppress(ValueError):
            return str(ipaddress.ip_address(parts[2])), int(parts[4])
    raise NetworkError(f"{address!r} is not a listening address; write one like /ip4/0.0.0.0/tcp/9001")


def _bound_addresses(host: Any, wanted: Sequence[str]) -> tuple[str, ...]:
    """The listening addresses with their real ports, so that a restart takes the same. Raises `NetworkError`."""
    listeners = host.get_network().listeners
    missing = [address for address in wanted if str(Multiaddr(address)) not in listeners]
    if missing:
        raise NetworkError(f"cannot listen on {', '.join(missing)}; choose another under node.listen in realms.yml")
    return tuple(str(bound) for listener in listeners.values() for bound in listener.get_addrs())


def _dialable(listen: str) -> list[str]:
    """What to tell others about a listening address: an unspecified one stands for each interface."""
    host, port = _tcp_endpoint(listen)
    if not ipaddress.ip_address(host).is_unspecified:
        return [listen]
    kind = listen.split("/")[1]
    found = [str(address) for address in get_available_interfaces(port) if str(address).startswith(f"/{kind}/")]
    outside = [address for address in found if not _is_local(address)]
    return outside or found


def _is_local(address: str) -> bool:
    host = ipaddress.ip_address(_tcp_endpoint(address)[0])
    return host.is_loopback or host.is_link_local


async def _run_host(
    host: Any, listen: Sequence[str], leave: trio.Event, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the host until `leave`. Cancelled from outside it would leave sockets open."""
    with trio.CancelScope(shield=True) as scope:
        try:
            async with host.run(listen_addrs=[Multiaddr(address) for address in listen]):
                task_status.started()
                await leave.wait()
                scope.deadline = trio.current_time() + 2 * CLOSE_TIMEOUT
                await _close_connections(host)
                await _farewell(host.get_network().close)
        finally:
            await _close_listeners(host)


async def _close_connections(host: Any) -> None:
    """Say goodbye to all peers at once."""
    held = host.get_network().connections
    async with trio.open_nursery() as nursery:
        for connection in [connection for connections in list(held.values()) for connection in connections]:
            nursery.start_soon(_farewell, connection.close)


async def _close_listeners(host: Any) -> None:
    """The listening sockets belong to system tasks, which outlive a host that died."""
    for listener in list(host.get_network().listeners.values()):
        await _farewell(listener.close)


async def _farewell(action: Callable[[], Awaitable[Any]]) -> None:
    """Clean up: bounded, not cancelled, never raising."""
    with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT, shield=True):
        try:
            await action()
        except Exception as error:
            log.debug("while closing: %r", error)


async def _keep_running(name: str, life: Callable[[Any], Awaitable[None]], host: Any) -> None:
    """Run a service again and again."""
    pause = RESTART_FIRST
    while True:
        try:
            await life(host)
        except Exception:
            log.exception("%s failed; it starts again in %.0f s", name, pause)
        await trio.sleep(pause)
        pause = min(2 * pause, RESTART_LONGEST)


async def _bounded(seconds: float, what: str, call: Awaitable[Answer]) -> Answer:
    """The call's answer within `seconds`. Whatever goes wrong is a `NetworkError`."""
    try:
        with trio.fail_after(seconds):
            return await call
    except NetworkError:
        raise
    except trio.TooSlowError:
        raise NetworkError(f"{what}: no answer within {seconds:g} s") from None
    except Exception as error:
        raise NetworkError(f"{what}: {error}") from error


# --- peers --------------------------------------------------------------------------------------------


def _libp2p_id(node: NodeId) -> ID:
    return ID.from_base58(peer_id(node))


def _node_id(identity: ID) -> NodeId:
    return parse_peer_id(identity.to_base58())


def _is_node(identity: ID) -> bool:
    try:
        _node_id(identity)
    except Malformed:
        return False
    return True


def _is_closed(connection: Any) -> bool:
    return bool(connection.is_closed or connection.muxed_conn.event_shutting_down.is_set())


def _live_connections(connections: Any) -> list[tuple[NodeId, list[Any]]]:
    live = ((identity, [c for c in held if not _is_closed(c)]) for identity, held in list(connections.items()))
    return [(_node_id(identity), held) for identity, held in live if held and _is_node(identity)]


def _status(node: NodeId, connection: Any) -> PeerStatus:
    inbound = connection.direction.name == "INBOUND"
    addresses = tuple(_transport(str(address)) for address in connection.get_transport_addresses())
    return PeerStatus(node, addresses, inbound, max(0.0, time.time() - connection._created_at))


def _provider(info: Any) -> tuple[NodeId, tuple[str, ...]]:
    node = _node_id(info.peer_id)
    return node, tuple(f"{_transport(str(address))}/p2p/{peer_id(node)}" for address in info.addrs)


def _transport(address: str) -> str:
    """A multiaddress without its /p2p/ end."""
    return address.partition("/p2p/")[0]


async def _resolve(address: str) -> list[str]:
    """An address with a host name as addresses with numbers."""
    parts = address.split("/")
    families = {"dns": 0, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}
    if len(parts) < 5 or parts[1] not in families:
        return [address]
    found = await trio.socket.getaddrinfo(parts[2], int(parts[4]), families[parts[1]], socket.SOCK_STREAM)
    kinds = {socket.AF_INET: "ip4", socket.AF_INET6: "ip6"}
    return [f"/{kinds[entry[0]]}/{entry[4][0]}/tcp/{parts[4]}" for entry in found if entry[0] in kinds]


async def _introduce(host: Any, dht: Any, identity: ID) -> bool:
    """Add a peer to the DHT's table; False while identify has not told what it speaks."""
    try:
        if not host.get_peerstore().get_protocols(identity):
            return False
    except PeerStoreError:  # raised for peers that the store does not know
        return False
    with trio.move_on_after(DIAL_TIMEOUT):
        await dht.add_peer(identity)
    return True
