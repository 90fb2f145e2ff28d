"""One regression test for each work-around of node/libp2p_fixes.py."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.io.abc import ReadWriteCloser
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

from node import libp2p_fixes, libp2p_host
from node.libp2p_host import Libp2pNetwork
from node.network import NetworkError, Stream, StreamReset, Verdict
from protocol.ids import NodeId

StartNode = Callable[..., Awaitable[Libp2pNetwork]]
Works = Callable[[Libp2pNetwork, Libp2pNetwork], Awaitable[None]]
Underside = Callable[[Libp2pNetwork], Any]

ECHO = "/mtor/test/echo/1"
MUTE = "/mtor/test/mute/1"
TOPIC = "/mtor/test/gossip/1"
TCP_GREETING = b"\x13/multistream/1.0.0\n"
YAMUX_HEADER = "!BBHII"


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.02)


async def never_read(stream: Stream) -> None:
    await trio.sleep_forever()


def port_of(network: Libp2pNetwork) -> int:
    return int(network.addresses()[0].split("/")[4])


async def test_another_version_of_libp2p_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_fixes, "version", lambda name: "0.9.0")
    with pytest.raises(libp2p_fixes.UnsupportedLibp2p, match=r"pip install libp2p==0\.8\.1"):
        libp2p_fixes.apply()


@pytest.mark.slow
async def test_more_than_250_connections_one_after_the_other(
    start_node: StartNode, works: Works, underside: Underside
) -> None:
    """Unfixed, each inbound connection costs a slot for the host's whole life."""
    server, client = await start_node(1), await start_node(2)
    for _ in range(260):
        await client.connect(server.addresses()[0])
        await underside(client).muxer(server).secured_conn.close()
        await until(lambda: not client.peers())
    await works(client, server)


async def test_300_silent_connections_do_not_keep_a_newcomer_out(
    start_node: StartNode, works: Works, nursery: trio.Nursery
) -> None:
    """Unfixed, connections that never say a word hold the slots of those that would."""
    server, client = await start_node(1), await start_node(2)
    silent = [await trio.open_tcp_stream("127.0.0.1", port_of(server)) for _ in range(300)]
    while not client.peers():
        try:
            await client.connect(server.addresses()[0])
        except NetworkError:
            await trio.sleep(0.1)
    await works(client, server)
    for stream in silent:
        await stream.aclose()


async def test_garbage_instead_of_a_handshake(start_node: StartNode, works: Works) -> None:
    server, client = await start_node(1), await start_node(2)
    noise = random.Random(1)
    for greeting in [b"", TCP_GREETING, TCP_GREETING + b"\xff\xff\xff\xff\x0f", TCP_GREETING + b"\x03\xff\xfe\n"]:
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(server))
        await stream.send_all(greeting + noise.randbytes(300))
        with trio.move_on_after(0.1):
            await stream.receive_some(1_000)
        await stream.aclose()
    await works(client, server)


MALFORMED = [
    b"\x03\xff\xfe\n",
    b"\x00",
    b"\x01\n",
    TCP_GREETING + b"\x03\xff\xfe\n",
    TCP_GREETING + b"\x01\n\x00\x00",
    TCP_GREETING + b"\xff" * 10 + b"\x01",
]


async def test_malformed_multistream_tokens_cost_their_stream(
    start_node: StartNode, works: Works, underside: Underside
) -> None:
    """Unfixed, they end the process."""
    server, client = await start_node(1), await start_node(2)
    await works(client, server)
    muxer = underside(client).muxer(server)
    for token in MALFORMED:
        stream = await muxer.open_stream()
        await stream.write(token)
        await trio.sleep(0.05)
        await stream.close()
    await works(client, server)
    assert underside(client).muxer(server) is muxer


class _Answers(ReadWriteCloser):
    """A stream whose other side answers with these bytes."""

    def __init__(self, answer: bytes) -> None:
        self._rest = answer

    async def read(self, n: int | None = -1) -> bytes:
        count = len(self._rest) if n is None or n < 0 else n
        piece, self._rest = self._rest[:count], self._rest[count:]
        return piece

    async def write(self, data: bytes) -> None:
        pass

    async def close(self) -> None:
        pass

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


async def test_a_malformed_answer_is_an_error_that_callers_expect() -> None:
    """Unfixed, the asking side gets `UnicodeDecodeError`."""
    libp2p_fixes.apply()
    with pytest.raises(MultiselectCommunicatorError):
        await MultiselectCommunicator(_Answers(b"\x03\xff\xfe\n")).read()


@pytest.mark.parametrize("protocol", ["/meshsub/1.1.0", "/ipfs/kad/1.0.0", "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"])
async def test_garbage_on_a_service_costs_its_stream(
    start_node: StartNode, works: Works, underside: Underside, protocol: str
) -> None:
    """Unfixed, an RPC that is no protobuf ends the process."""
    server, client = await start_node(1, gossip=True, dht=True), await start_node(2)
    await works(client, server)
    noise = random.Random(2)
    low = underside(client)
    identity = low.connection(server).muxed_conn.peer_id
    for garbage in [noise.randbytes(500), b"\x64" + noise.randbytes(100), b"\x32" + b"\x08\x01" * 25, b"\xff" * 12]:
        stream = await low.host.new_stream(identity, [TProtocol(protocol)])
        await stream.write(garbage)
        await trio.sleep(0.02)
        await stream.reset()
    await trio.sleep(0.1)
    await works(client, server)
    await works(server, client)


async def test_an_exception_in_a_raw_handler_costs_its_stream(
    start_node: StartNode, works: Works, underside: Underside
) -> None:
    """Unfixed, it ends the accept loop of the connection, and then the host. `StreamReset` is one of them."""
    server, client = await start_node(1), await start_node(2)
    await works(client, server)
    low = underside(server)

    async def faulty(stream: Any) -> None:
        await stream.read(1)
        raise ValueError("a bug")

    async def unguarded(stream: Any) -> None:
        await stream.read(1)
        await stream.read(1)  # raises StreamReset

    low.host.set_stream_handler(TProtocol("/faulty"), faulty)
    low.host.set_stream_handler(TProtocol("/unguarded"), unguarded)
    muxer = underside(client).muxer(server)
    for protocol in ("/faulty", "/unguarded"):
        for _ in range(3):
            stream = await underside(client).host.new_stream(muxer.peer_id, [TProtocol(protocol)])
            await stream.write(b"x")
            await trio.sleep(0.02)
            await stream.reset()
    await trio.sleep(0.1)
    await works(client, server)
    assert underside(client).muxer(server) is muxer


async def test_300_streams_open_at_once(start_node: StartNode, works: Works) -> None:
    """Unfixed, the 257th waits for ever."""
    server, client = await start_node(1), await start_node(2)
    streams = [await client.open_stream(server.node, ECHO, server.addresses()) for _ in range(300)]
    for stream in streams:
        await stream.send(b"x")
        assert await stream.receive() == b"x"
    await works(client, server)


async def test_inbound_streams_are_capped(start_node: StartNode, works: Works, underside: Underside) -> None:
    """Unfixed, a peer opens streams without end."""
    server, hostile, honest = [await start_node(number) for number in (1, 2, 3)]
    await works(hostile, server)
    muxer = underside(hostile).muxer(server)
    opened = [await muxer.open_stream() for _ in range(libp2p_fixes.MAX_INBOUND_STREAMS + 100)]
    await until(lambda: sum(stream.reset_received for stream in opened) >= 100)
    held = underside(server).connection(hostile).mtor_streams
    assert held <= libp2p_fixes.MAX_INBOUND_STREAMS
    await works(honest, server)


async def test_bytes_that_nobody_reads_are_capped(start_node: StartNode, works: Works, underside: Underside) -> None:
    """Unfixed, a peer that ignores windows fills the memory."""
    server, hostile, honest = [await start_node(number) for number in (1, 2, 3)]
    server.serve(MUTE, never_read)
    await hostile.connect(server.addresses()[0])
    await hostile.open_stream(server.node, MUTE)
    muxer = underside(hostile).muxer(server)
    victim = max(muxer.streams)
    size = 65_000
    frame = struct.pack(YAMUX_HEADER, 0, 0, 0, victim, size) + b"q" * size
    with contextlib.suppress(Exception):  # whatever a closed connection raises
        for _ in range(2 * libp2p_fixes.MAX_UNREAD_BYTES // size):
            await muxer._write_frame(frame)
    await until(lambda: hostile.node not in [peer.node for peer in server.peers()])
    await works(honest, server)


async def test_a_slow_reader_learns_that_its_writer_gave_up(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unfixed, the writer fails after 5 s and the reader waits for ever."""
    monkeypatch.setattr(libp2p_fixes, "SLOW_READER_TIMEOUT", 0.3)
    server, client = await start_node(1), await start_node(2)
    failed = trio.Event()

    async def write_on(stream: Stream) -> None:
        try:
            while True:
                await stream.send(b"x" * 50_000)
        except StreamReset:
            failed.set()

    server.serve(MUTE, write_on)
    stream = await client.open_stream(server.node, MUTE, server.addresses())
    await failed.wait()
    with pytest.raises(StreamReset):
        while await stream.receive():
            pass


async def test_a_writer_waits_for_a_reader_that_pauses(start_node: StartNode) -> None:
    """Unfixed, a pause of more than 5 s breaks the stream."""
    server, client = await start_node(1), await start_node(2)
    size = 20_000_000  # more than any window

    async def write_much(stream: Stream) -> None:
        await stream.send(b"x" * size)

    server.serve(MUTE, write_much)
    stream = await client.open_stream(server.node, MUTE, server.addresses())
    await trio.sleep(5.6)
    received = 0
    while data := await stream.receive():
        received += len(data)
    assert received == size


async def test_cancelled_writes_leave_the_connection_whole(
    start_node: StartNode, works: Works, underside: Underside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unfixed, a write cancelled between encryption and socket breaks the connection."""
    server, client = await start_node(1), await start_node(2)
    await works(client, server)
    muxer = underside(client).muxer(server)
    socket_stream = muxer.secured_conn.conn.conn.stream.stream
    send_all = socket_stream.send_all

    async def congested(data: bytes) -> None:
        await trio.sleep(0.02)
        await send_all(data)

    stream = await client.open_stream(server.node, ECHO)
    with monkeypatch.context() as patched:
        patched.setattr(socket_stream, "send_all", congested)
        with trio.move_on_after(0.01):
            await stream.send(b"x" * 10_000)
    await works(client, server)
    assert underside(client).muxer(server) is muxer


async def test_a_lost_connection_does_not_look_like_an_end(start_node: StartNode, underside: Underside) -> None:
    """Unfixed, the reader gets a clean end."""
    server, client = await start_node(1), await start_node(2)
    stream = await client.open_stream(server.node, ECHO, server.addresses())
    await stream.send(b"x")
    assert await stream.receive() == b"x"
    await underside(server).muxer(client).secured_conn.close()
    with pytest.raises(StreamReset):
        await stream.receive()


async def test_a_silent_peer_is_disconnected(
    start_node: StartNode, underside: Underside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unfixed, a connection to a peer that never answers stands for ever."""
    monkeypatch.setattr(libp2p_fixes, "PING_INTERVAL", 0.1)
    monkeypatch.setattr(libp2p_fixes, "PING_TIMEOUT", 0.3)
    server, client = await start_node(1), await start_node(2)
    await client.connect(server.addresses()[0])
    await until(lambda: bool(server.peers()))
    await trio.sleep(1)
    assert client.peers()  # answers to pings keep it

    async def swallow(data: bytes) -> None:
        pass

    monkeypatch.setattr(underside(server).muxer(client), "_write_frame", swallow)
    await until(lambda: not client.peers())


async def test_a_dial_makes_one_connection(start_node: StartNode, underside: Underside) -> None:
    """With more than one connection a peer, libp2p makes two and waits 250-500 ms each time."""
    server, client = await start_node(1), await start_node(2)
    await client.connect(server.addresses()[0])
    await until(lambda: bool(server.peers()))
    await trio.sleep(0.6)
    for network in (server, client):
        assert [len(held) for held in underside(network).swarm.connections.values()] == [1]


async def test_nobody_is_dialled_unasked(start_node: StartNode, underside: Underside) -> None:
    """Unfixed, the swarm fills itself up from its peer store."""
    server, client = await start_node(1), await start_node(2)
    low = underside(client)
    low.host.get_peerstore().add_addrs(underside(server).host.get_id(), underside(server).host.get_addrs(), 120)
    await low.swarm.auto_connector.maybe_connect()
    await trio.sleep(0.3)
    assert client.peers() == ()


async def test_a_finished_handler_leaves_nothing_behind(start_node: StartNode, underside: Underside) -> None:
    """Unfixed, a stream stays in the tables until its peer closes too, which a hostile one never does."""
    server, client = await start_node(1), await start_node(2)

    async def one_word(stream: Stream) -> None:
        await stream.receive()

    server.serve(MUTE, one_word)
    for _ in range(20):
        stream = await client.open_stream(server.node, MUTE, server.addresses())
        await stream.send(b"word")
        assert await stream.receive() == b""
    await until(lambda: len(underside(server).muxer(client).streams) <= 2)  # identify's own may be open
    assert len(underside(client).connection(server).get_streams()) <= 2


async def test_peers_outside_of_a_full_mesh_hear_and_are_heard(
    start_node: StartNode, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unfixed, a hub with more peers than its mesh may have leaves the others deaf and mute."""
    for name, degree in (("GOSSIP_DEGREE", 2), ("GOSSIP_DEGREE_LOW", 1), ("GOSSIP_DEGREE_HIGH", 3)):
        monkeypatch.setattr(libp2p_host, name, degree)
    hub, *leaves = [await start_node(number, gossip=True) for number in range(1, 8)]
    heard: dict[NodeId, set[bytes]] = {node.node: set() for node in (hub, *leaves)}

    async def listen(node: Libp2pNetwork) -> None:
        async with node.subscribe(TOPIC, lambda data: Verdict.ACCEPT) as messages:
            async for data in messages:
                heard[node.node].add(data)

    def meshes() -> list[set[Any]]:
        return [node._pubsub.router.mesh.get(TOPIC, set()) for node in (hub, *leaves)]

    for node in (hub, *leaves):
        nursery.start_soon(listen, node)
    for leaf in leaves:
        await leaf.connect(hub.addresses()[0])
    await until(lambda: len(hub._pubsub.peer_topics.get(TOPIC, ())) == len(leaves))
    while len(meshes()[0]) > 3 or all(meshes()[1:]):  # until the hub has pruned some
        await trio.sleep(0.1)
    for leaf in leaves:
        await leaf.publish(TOPIC, leaf.node)
    everybody = {bytes(leaf.node) for leaf in leaves}
    await until(lambda: heard[hub.node] == everybody)
    await until(lambda: all(heard[leaf.node] >= everybody - {bytes(leaf.node)} for leaf in leaves))
