"""The node's libp2p host: addresses, ports, supervision, limits, the DHT against liars."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from libp2p.crypto.secp256k1 import create_new_key_pair

from node import libp2p_host
from node.libp2p_host import Libp2pNetwork
from node.network import NetworkError, RecordRules, Stream
from protocol.gossip import Verdict
from protocol.ids import NodeId, peer_id

StartNode = Callable[..., Awaitable[Libp2pNetwork]]
Works = Callable[[Libp2pNetwork, Libp2pNetwork], Awaitable[None]]
Underside = Callable[[Libp2pNetwork], Any]

ECHO = "/mtor/test/echo/1"
ANY = RecordRules(valid=lambda key, value: True, newest=lambda key, values: 0)
SIGNED = RecordRules(
    valid=lambda key, value: value.startswith(key.encode()),
    newest=lambda key, values: max(range(len(values)), key=lambda index: values[index]),
)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.02)


# --- addresses and ports ------------------------------------------------------------------------------


async def test_an_unspecified_address_becomes_ones_that_can_be_dialled(start_node: StartNode, works: Works) -> None:
    server, client = await start_node(1, listen=["/ip4/0.0.0.0/tcp/0"]), await start_node(2)
    assert server.addresses()
    for address in server.addresses():
        assert "/0.0.0.0/" not in address
        assert "/tcp/0/" not in address
    await works(client, server)


async def test_announced_addresses_replace_the_own_ones(start_node: StartNode) -> None:
    node = await start_node(1, announce=["/dns4/node.example.org/tcp/9001"])
    assert node.addresses() == (f"/dns4/node.example.org/tcp/9001/p2p/{peer_id(node.node)}",)


async def test_several_listening_addresses(start_node: StartNode) -> None:
    server, client = await start_node(1, listen=["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"]), await start_node(2)
    assert len(server.addresses()) == 2
    for address in server.addresses():
        assert await client.connect(address) == server.node


async def test_a_host_name_can_be_dialled(start_node: StartNode) -> None:
    server, client = await start_node(1), await start_node(2)
    address = server.addresses()[0].replace("/ip4/127.0.0.1/", "/dns4/localhost/")
    assert await client.connect(address) == server.node


async def test_a_port_in_use_is_named_with_the_fix() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        network = Libp2pNetwork(bytes(32), ANY, listen=[f"/ip4/127.0.0.1/tcp/{port}"])
        with pytest.raises(NetworkError, match=rf"port {port} .*realms\.yml"):
            await network.run()


async def test_two_nodes_do_not_share_a_port(start_node: StartNode) -> None:
    """libp2p listens with SO_REUSEPORT: unchecked, the second node would take half of the first one's callers."""
    first = await start_node(1)
    network = Libp2pNetwork(bytes([2]) * 32, ANY, listen=[first.addresses()[0].partition("/p2p/")[0]])
    with pytest.raises(NetworkError, match="cannot listen"):
        await network.run()


@pytest.mark.parametrize("address", ["", "0.0.0.0:9001", "/ip4/0.0.0.0/udp/9001/quic-v1", "/ip4/300.0.0.1/tcp/1"])
async def test_a_bad_listening_address_is_an_error(address: str) -> None:
    network = Libp2pNetwork(bytes(32), ANY, listen=[address])
    with pytest.raises(NetworkError, match="write one like"):
        await network.run()


async def test_before_it_runs_everything_is_an_error() -> None:
    network = Libp2pNetwork(bytes(32), ANY, listen=["/ip4/127.0.0.1/tcp/0"])
    assert (network.addresses(), network.peers()) == ((), ())
    with pytest.raises(NetworkError):
        await network.open_stream(NodeId(bytes(32)), ECHO)
    with pytest.raises(NetworkError):
        await network.publish("topic", b"")


async def test_what_is_switched_off_says_so(start_node: StartNode) -> None:
    node = await start_node(1, gossip=False, dht=False)
    with pytest.raises(NetworkError, match=r"node\.gossip"):
        await node.publish("topic", b"")
    with pytest.raises(NetworkError, match=r"node\.dht"):
        await node.get_record("/mtor/x")


# --- supervision --------------------------------------------------------------------------------------


async def test_a_host_that_dies_comes_back_with_all_it_had(
    start_node: StartNode, works: Works, underside: Underside, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(libp2p_host, "RESTART_FIRST", 0.1)
    server, client = await start_node(1, gossip=True), await start_node(2, gossip=True)
    heard: list[bytes] = []

    async def listen() -> None:
        async with server.subscribe("topic", lambda data: Verdict.ACCEPT) as accepted:
            async for data in accepted:
                heard.append(data)

    nursery.start_soon(listen)
    await works(client, server)
    before = server.addresses()

    async def fault() -> None:
        raise RuntimeError("a defect in libp2p")

    underside(server).swarm.manager.run_task(fault)
    await until(lambda: server._host is None)
    await until(lambda: server._host is not None)
    assert server.addresses() == before
    while not client.peers():
        try:
            await client.connect(before[0])
        except NetworkError:
            await trio.sleep(0.05)
    await works(client, server)
    while not heard:
        await client.publish("topic", b"still subscribed")
        await trio.sleep(0.2)


async def test_a_service_that_dies_comes_back_alone(
    start_node: StartNode, works: Works, underside: Underside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libp2p_host, "RESTART_FIRST", 0.1)
    server, client = await start_node(1, gossip=True, dht=True), await start_node(2, gossip=True, dht=True)
    await works(client, server)
    await server.put_record("/mtor/key", b"value")
    connection = underside(client).connection(server)

    async def fault() -> None:
        raise RuntimeError("a defect in libp2p")

    old_dht, old_pubsub = server._dht, server._pubsub
    old_dht.manager.run_task(fault)
    old_pubsub.manager.run_task(fault)
    await until(lambda: server._dht not in (None, old_dht) and server._pubsub not in (None, old_pubsub))
    assert underside(client).connection(server) is connection
    await works(client, server)
    await server.put_record("/mtor/other", b"value")
    assert await client.get_record("/mtor/other") == b"value"
    heard = trio.Event()

    def check(data: bytes) -> Verdict:
        heard.set()
        return Verdict.ACCEPT

    async with client.subscribe("topic", check):
        while not heard.is_set():
            await server.publish("topic", b"news")
            await trio.sleep(0.2)


# --- limits -------------------------------------------------------------------------------------------


async def test_connections_are_limited_and_some_kept_for_own_dials(start_node: StartNode) -> None:
    server = await start_node(1, max_connections=5)
    others = [await start_node(number) for number in range(10, 16)]
    refused = 0
    for other in others:
        try:
            await other.connect(server.addresses()[0])
        except NetworkError:
            refused += 1
    assert (refused, len(server.peers())) == (2, 4)
    connected = {peer.node for peer in server.peers()}
    outside = next(other for other in others if other.node not in connected)
    await server.connect(outside.addresses()[0])


async def test_a_peer_without_an_ed25519_key_is_refused(
    start_node: StartNode, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, honest = await start_node(1), await start_node(2)
    monkeypatch.setattr(libp2p_host, "create_identity_from_seed", lambda seed: create_new_key_pair())
    stranger = await start_node(3)
    with pytest.raises(NetworkError):
        await stranger.open_stream(server.node, ECHO, server.addresses())
    assert server.peers() == ()
    await works(honest, server)


async def test_a_bug_in_a_handler_is_logged(start_node: StartNode, caplog: pytest.LogCaptureFixture) -> None:
    server, client = await start_node(1), await start_node(2)

    async def faulty(stream: Stream) -> None:
        await stream.receive()
        raise ValueError("the bug's name")

    server.serve("/faulty", faulty)
    stream = await client.open_stream(server.node, "/faulty", server.addresses())
    with caplog.at_level(logging.ERROR, "mtor.network"):
        await stream.send(b"x")
        with pytest.raises(NetworkError):
            await stream.receive()
    assert "the bug's name" in caplog.text


# --- gossip and the DHT -------------------------------------------------------------------------------


async def test_only_rejected_messages_count_against_their_forwarder(start_node: StartNode) -> None:
    server, client = await start_node(1, gossip=True), await start_node(2, gossip=True)
    await client.connect(server.addresses()[0])
    verdicts = {b"ignore": Verdict.IGNORE, b"reject": Verdict.REJECT}
    seen: list[bytes] = []

    def check(data: bytes) -> Verdict:
        seen.append(data)
        return verdicts.get(data, Verdict.ACCEPT)

    def invalid() -> float:
        counts = server._pubsub.router.scorer.invalid_messages
        return sum(sum(topics.values()) for topics in counts.values())

    async with server.subscribe("topic", check):
        while not seen:
            await client.publish("topic", b"warm up")
            await trio.sleep(0.2)
        for _ in range(3):
            await client.publish("topic", b"ignore")
        await until(lambda: seen.count(b"ignore") == 3)
        assert invalid() == 0
        await client.publish("topic", b"reject")
        await until(lambda: invalid() > 0)


async def test_a_record_forged_on_the_wire_is_not_stored(nursery: trio.Nursery, underside: Underside) -> None:
    """A liar stores straight at a peer, past its own checks."""
    nodes = [Libp2pNetwork(bytes([n]) * 32, SIGNED, listen=["/ip4/127.0.0.1/tcp/0"]) for n in (1, 2, 3)]
    for node in nodes:
        await nursery.start(node.run)
    owner, keeper, liar = nodes
    await owner.connect(keeper.addresses()[0])
    await liar.connect(keeper.addresses()[0])
    await owner.put_record("/mtor/owner", b"/mtor/owner 1")
    await until(lambda: liar._dht is not None and liar._dht.get_routing_table_size() > 0)
    target = underside(liar).connection(keeper).muxed_conn.peer_id
    store = liar._dht.value_store
    for key, value in [("/mtor/owner", b"forged"), ("/other/owner", b"/other/owner"), ("plain", b"plain")]:
        assert not await store._store_at_peer(target, key.encode(), value)
        assert keeper._dht.value_store.get(key.encode()) is None or key == "/mtor/owner"
    assert await keeper.get_record("/mtor/owner") == b"/mtor/owner 1"
    assert await store._store_at_peer(target, b"/mtor/liar", b"/mtor/liar 1")


async def test_a_peer_is_found_through_the_dht(start_node: StartNode) -> None:
    """The third node knows only the middle one, and reaches the first by its id alone."""
    middle = await start_node(1, dht=True)
    first, third = await start_node(2, dht=True), await start_node(3, dht=True)
    await first.connect(middle.addresses()[0])
    await first.provide("something")
    await third.connect(middle.addresses()[0])
    await third.find_providers("something")
    stream = await third.open_stream(first.node, ECHO)
    await stream.send(b"found")
    assert await stream.receive() == b"found"
