"""What a `Network` promises, held against the one in memory and the one over libp2p."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Container
from typing import TYPE_CHECKING, Protocol

import pytest
import trio

from node.libp2p_host import Libp2pNetwork
from node.memory_network import MemoryHub, MemoryNetwork
from node.network import Network, NetworkError, RecordRules, Stream, StreamReset
from protocol.gossip import Verdict
from protocol.ids import NodeId, peer_id
from protocol.signing import Signer

if TYPE_CHECKING:
    from trio_typing import TaskStatus

ECHO = "/mtor/test/echo/1"
OTHER = "/mtor/test/other/1"
TOPIC = "/mtor/test/topic/1"
PATIENCE = 20.0  # seconds until a test that hangs fails; no test waits for it to pass


def valid(key: str, value: bytes) -> bool:
    """The tests' rule: a record's value begins with its key's hash, then a sequence of four bytes."""
    return value[:32] == hashlib.sha256(key.encode()).digest() and len(value) >= 36


def newest(key: str, values: list[bytes] | tuple[bytes, ...]) -> int:
    return max(range(len(values)), key=lambda index: values[index][32:36])


def record(key: str, sequence: int, text: bytes = b"") -> bytes:
    return hashlib.sha256(key.encode()).digest() + sequence.to_bytes(4, "big") + text


RULES = RecordRules(valid=valid, newest=lambda key, values: newest(key, tuple(values)))


class World(Protocol):
    """A place where networks of one kind meet."""

    async def node(self, number: int, blocked: Container[NodeId] = frozenset()) -> Network:
        """A running network with a fixed identity."""

    def dead_address(self) -> str:
        """An address where nobody listens."""


def seed(number: int) -> bytes:
    return bytes([number]) * 32


def node_of(number: int) -> NodeId:
    return Signer.from_seed(seed(number)).node


class MemoryWorld:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._hub = MemoryHub(connected=False)

    async def node(self, number: int, blocked: Container[NodeId] = frozenset()) -> Network:
        network = MemoryNetwork(self._hub, node_of(number), RULES, blocked=blocked)
        await self._nursery.start(network.run)
        return network

    def dead_address(self) -> str:
        return f"/memory/{peer_id(node_of(99))}/p2p/{peer_id(node_of(99))}"


class Libp2pWorld:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def node(self, number: int, blocked: Container[NodeId] = frozenset()) -> Network:
        network = Libp2pNetwork(seed(number), RULES, listen=["/ip4/127.0.0.1/tcp/0"], blocked=blocked)
        await self._nursery.start(network.run)
        return network

    def dead_address(self) -> str:
        return f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id(node_of(99))}"


KINDS: dict[str, Callable[[trio.Nursery], World]] = {"memory": MemoryWorld, "libp2p": Libp2pWorld}


@pytest.fixture(params=["memory", pytest.param("libp2p", marks=pytest.mark.net)])
async def world(request: pytest.FixtureRequest, nursery: trio.Nursery) -> World:
    async def fail_late() -> None:
        await trio.sleep(PATIENCE)
        raise TimeoutError(f"not done within {PATIENCE:.0f} s")

    nursery.start_soon(fail_late)
    return KINDS[request.param](nursery)


@pytest.fixture
async def pair(world: World) -> tuple[Network, Network]:
    """Two connected networks; the first dialled."""
    one, other = await world.node(1), await world.node(2)
    await one.connect(other.addresses()[0])
    return one, other


async def echo(stream: Stream) -> None:
    while data := await stream.receive():
        await stream.send(data)
    await stream.close()


async def read_all(stream: Stream) -> bytes:
    parts = []
    while data := await stream.receive():
        parts.append(data)
    return b"".join(parts)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.02)


# --- connections --------------------------------------------------------------------------------------


async def test_a_network_is_who_its_key_says(world: World) -> None:
    network = await world.node(1)
    assert network.node == node_of(1)
    assert network.addresses()
    assert all(address.endswith(f"/p2p/{peer_id(network.node)}") for address in network.addresses())


async def test_connect_names_the_peer_and_both_list_it(world: World) -> None:
    one, other = await world.node(1), await world.node(2)
    assert one.peers() == ()
    assert await one.connect(other.addresses()[0]) == other.node
    await until(lambda: bool(other.peers()))
    assert [(peer.node, peer.inbound) for peer in one.peers()] == [(other.node, False)]
    assert [(peer.node, peer.inbound) for peer in other.peers()] == [(one.node, True)]


async def test_connecting_again_keeps_one_connection(pair: tuple[Network, Network]) -> None:
    one, other = pair
    await one.connect(other.addresses()[0])
    await until(lambda: bool(other.peers()))
    assert len(one.peers()) == len(other.peers()) == 1


async def test_nobody_there_is_an_error(world: World) -> None:
    network = await world.node(1)
    with pytest.raises(NetworkError):
        await network.connect(world.dead_address())
    with pytest.raises(NetworkError):
        await network.open_stream(node_of(99), ECHO, [world.dead_address()])
    with pytest.raises(NetworkError):
        await network.open_stream(node_of(99), ECHO)


@pytest.mark.parametrize("address", ["", "nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWbad"])
async def test_a_bad_address_is_an_error(world: World, address: str) -> None:
    network = await world.node(1)
    with pytest.raises(NetworkError):
        await network.connect(address)


async def test_another_identity_than_dialled_is_an_error(world: World) -> None:
    one, other = await world.node(1), await world.node(2)
    lie = other.addresses()[0].replace(peer_id(other.node), peer_id(node_of(99)))
    with pytest.raises(NetworkError):
        await one.connect(lie)
    assert node_of(99) not in [peer.node for peer in one.peers()]


async def test_who_is_blocked_may_change_at_any_time(world: World) -> None:
    blocked: set[NodeId] = set()
    one, other = await world.node(1, blocked), await world.node(2)
    one.serve(ECHO, echo)
    other.serve(ECHO, echo)
    stream = await other.open_stream(one.node, ECHO, one.addresses())
    await stream.send(b"first")
    assert await stream.receive() == b"first"
    blocked.add(other.node)
    await one.disconnect(other.node)
    assert one.peers() == ()
    with pytest.raises(NetworkError):
        await stream.send(b"second")
        if not await stream.receive():
            raise NetworkError("nothing came")
    for asking, asked in ((one, other), (other, one)):
        with pytest.raises(NetworkError):
            lost = await asking.open_stream(asked.node, ECHO, asked.addresses())
            await lost.send(b"third")
            if not await lost.receive():
                raise NetworkError("nothing came")
    blocked.clear()
    for asking, asked in ((one, other), (other, one)):
        again = await asking.open_stream(asked.node, ECHO, asked.addresses())
        await again.send(b"fourth")
        assert await again.receive() == b"fourth"


async def test_disconnecting_from_who_is_not_connected_does_nothing(world: World) -> None:
    one = await world.node(1)
    await one.disconnect(node_of(99))
    await one.disconnect(one.node)
    assert one.peers() == ()


async def test_a_blocked_peer_gets_no_stream_in_either_direction(world: World) -> None:
    one = await world.node(1, blocked=frozenset((node_of(2),)))
    other = await world.node(2)
    one.serve(ECHO, echo)
    other.serve(ECHO, echo)
    with pytest.raises(NetworkError):
        await other.open_stream(one.node, ECHO, one.addresses())
    with pytest.raises(NetworkError):
        await one.open_stream(other.node, ECHO, other.addresses())
    assert one.peers() == ()


# --- streams ------------------------------------------------------------------------------------------


async def test_a_stream_carries_bytes_both_ways(pair: tuple[Network, Network]) -> None:
    one, other = pair
    other.serve(ECHO, echo)
    stream = await one.open_stream(other.node, ECHO)
    await stream.send(b"hello")
    assert await stream.receive() == b"hello"
    await stream.send(b"again")
    assert await stream.receive() == b"again"
    await stream.close()
    assert await stream.receive() == b""


async def test_opening_a_stream_dials(world: World) -> None:
    one, other = await world.node(1), await world.node(2)
    other.serve(ECHO, echo)
    stream = await one.open_stream(other.node, ECHO, other.addresses())
    await stream.send(b"dialled")
    assert await stream.receive() == b"dialled"


async def test_both_ends_know_who_the_other_is(pair: tuple[Network, Network]) -> None:
    one, other = pair
    seen: list[NodeId] = []

    async def handler(stream: Stream) -> None:
        seen.append(stream.peer)

    other.serve(ECHO, handler)
    stream = await one.open_stream(other.node, ECHO)
    assert await stream.receive() == b""
    assert (seen, stream.peer) == ([one.node], other.node)


async def test_the_accepting_side_opens_streams_too(pair: tuple[Network, Network]) -> None:
    one, other = pair
    one.serve(ECHO, echo)
    stream = await other.open_stream(one.node, ECHO)
    await stream.send(b"back")
    assert await stream.receive() == b"back"


async def test_closing_is_half_closing(pair: tuple[Network, Network]) -> None:
    one, other = pair

    async def sum_up(stream: Stream) -> None:
        everything = await read_all(stream)
        await stream.send(b"%d bytes" % len(everything))

    other.serve(ECHO, sum_up)
    stream = await one.open_stream(other.node, ECHO)
    await stream.send(b"x" * 1_000)
    await stream.close()
    assert await read_all(stream) == b"1000 bytes"


async def test_sending_after_closing_is_an_error(pair: tuple[Network, Network]) -> None:
    one, other = pair
    other.serve(ECHO, echo)
    stream = await one.open_stream(other.node, ECHO)
    await stream.close()
    with pytest.raises(StreamReset):
        await stream.send(b"too late")


async def test_a_protocol_nobody_serves_is_an_error(pair: tuple[Network, Network]) -> None:
    one, other = pair
    with pytest.raises(NetworkError):
        await one.open_stream(other.node, OTHER)


async def test_many_streams_do_not_mix(pair: tuple[Network, Network]) -> None:
    one, other = pair
    other.serve(ECHO, echo)
    answers: dict[int, bytes] = {}

    async def ask(number: int) -> None:
        stream = await one.open_stream(other.node, ECHO)
        await stream.send(b"%d;" % number * 100)
        await stream.close()
        answers[number] = await read_all(stream)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, number)
    assert answers == {number: b"%d;" % number * 100 for number in range(20)}


async def test_a_reset_is_seen_by_a_waiting_reader(pair: tuple[Network, Network]) -> None:
    one, other = pair

    async def hang_up(stream: Stream) -> None:
        await stream.receive()
        await stream.reset()

    other.serve(ECHO, hang_up)
    stream = await one.open_stream(other.node, ECHO)
    await stream.send(b"?")
    with pytest.raises(StreamReset):
        await stream.receive()
    with pytest.raises(StreamReset):
        await stream.receive()


async def test_a_reset_is_seen_by_the_side_that_serves(pair: tuple[Network, Network]) -> None:
    one, other = pair
    outcome: list[object] = []
    done = trio.Event()

    async def wait(stream: Stream) -> None:
        try:
            await stream.send(b"ready")
            outcome.append(await stream.receive())
        except StreamReset as error:
            outcome.append(error)
        done.set()

    other.serve(ECHO, wait)
    stream = await one.open_stream(other.node, ECHO)
    assert await stream.receive() == b"ready"
    await stream.reset()
    await done.wait()
    assert isinstance(outcome[0], StreamReset)
    with pytest.raises(StreamReset):
        await stream.receive()


async def test_a_writer_learns_of_a_reset(pair: tuple[Network, Network]) -> None:
    one, other = pair

    async def hang_up(stream: Stream) -> None:
        await stream.receive()
        await stream.reset()

    other.serve(ECHO, hang_up)
    stream = await one.open_stream(other.node, ECHO)
    with pytest.raises(StreamReset):
        while True:
            await stream.send(b"x" * 10_000)


async def test_closing_and_resetting_twice_is_harmless(pair: tuple[Network, Network]) -> None:
    one, other = pair
    other.serve(ECHO, echo)
    stream = await one.open_stream(other.node, ECHO)
    for _ in range(2):
        await stream.close()
    for _ in range(2):
        await stream.reset()
    await stream.close()
    with pytest.raises(StreamReset):
        await stream.receive()


async def test_an_exception_in_a_handler_costs_its_stream_alone(pair: tuple[Network, Network]) -> None:
    one, other = pair

    async def faulty(stream: Stream) -> None:
        await stream.receive()
        raise ValueError("a bug")

    other.serve(ECHO, echo)
    other.serve(OTHER, faulty)
    witness = await one.open_stream(other.node, ECHO)
    victim = await one.open_stream(other.node, OTHER)
    await victim.send(b"trigger")
    with pytest.raises(StreamReset):
        await victim.receive()
    await witness.send(b"still here")
    assert await witness.receive() == b"still here"
    later = await one.open_stream(other.node, ECHO)
    await later.send(b"and new ones work")
    assert await later.receive() == b"and new ones work"


async def test_a_big_transfer_to_a_slow_reader_arrives_whole(pair: tuple[Network, Network]) -> None:
    one, other = pair
    size = 3 * 1024 * 1024
    payload = hashlib.shake_256(b"payload").digest(size)
    sent = trio.Event()

    async def slow_writer(stream: Stream) -> None:
        for start in range(0, size, 100_000):
            await stream.send(payload[start : start + 100_000])
        sent.set()

    other.serve(ECHO, slow_writer)
    stream = await one.open_stream(other.node, ECHO)
    await trio.sleep(0.3)
    assert not sent.is_set()  # a writer waits for its reader: nothing holds 3 MiB meanwhile
    parts = []
    while data := await stream.receive():
        parts.append(data)
        if len(parts) % 20 == 0:
            await trio.sleep(0.01)
    assert b"".join(parts) == payload


async def test_a_read_that_times_out_loses_nothing(pair: tuple[Network, Network]) -> None:
    one, other = pair

    async def trickle(stream: Stream) -> None:
        for number in range(40):
            await stream.send(b"%02d" % number)
            await trio.sleep(0.005)

    other.serve(ECHO, trickle)
    stream = await one.open_stream(other.node, ECHO)
    parts = [b"?"]
    while parts[-1] != b"":
        with trio.move_on_after(0.004):
            parts.append(await stream.receive())
    assert b"".join(parts[1:]) == b"".join(b"%02d" % number for number in range(40))


async def test_a_cancelled_write_leaves_other_streams_alone(pair: tuple[Network, Network]) -> None:
    one, other = pair
    other.serve(ECHO, echo)

    async def never_read(stream: Stream) -> None:
        await trio.sleep_forever()

    other.serve(OTHER, never_read)

    async def write_on(stream: Stream) -> None:
        while True:
            await stream.send(b"x" * 100_000)

    witness = await one.open_stream(other.node, ECHO)
    for _ in range(5):
        blocked = await one.open_stream(other.node, OTHER)
        with trio.move_on_after(0.05):
            await write_on(blocked)
        await blocked.reset()
    await witness.send(b"whole")
    assert await witness.receive() == b"whole"


# --- gossip -------------------------------------------------------------------------------------------


def collector(verdicts: dict[bytes, Verdict], seen: list[bytes]) -> Callable[[bytes], Verdict]:
    """A check that notes what it saw and answers from a table."""

    def check(data: bytes) -> Verdict:
        seen.append(data)
        return verdicts.get(data, Verdict.ACCEPT)

    return check


async def publish_until(network: Network, topic: str, data: bytes, heard: Callable[[], bool]) -> None:
    """Publish variants of a message until one arrives: a new mesh needs a moment."""
    number = 0
    while not heard():
        await network.publish(topic, data + b"%d" % number)
        number += 1
        with trio.move_on_after(0.3):
            await until(heard)


Subscriber = Callable[[Network, Callable[[bytes], Verdict], list[bytes]], Awaitable[None]]


@pytest.fixture
async def subscriber(nursery: trio.Nursery) -> Subscriber:
    """Subscribes a network in the background; accepted messages go to a list."""

    async def listen(
        network: Network, check: Callable[[bytes], Verdict], out: list[bytes], task_status: TaskStatus[None]
    ) -> None:
        async with network.subscribe(TOPIC, check) as accepted:
            task_status.started()
            async for data in accepted:
                out.append(data)

    async def start(network: Network, check: Callable[[bytes], Verdict], out: list[bytes]) -> None:
        await nursery.start(listen, network, check, out)

    return start


async def test_gossip_reaches_others_and_not_its_sender(pair: tuple[Network, Network], subscriber: Subscriber) -> None:
    one, other = pair
    own: list[bytes] = []
    heard: list[bytes] = []
    await subscriber(one, collector({}, []), own)
    await subscriber(other, collector({}, []), heard)
    await publish_until(one, TOPIC, b"news ", lambda: bool(heard))
    assert all(data.startswith(b"news ") for data in heard)
    assert len(heard) == len(set(heard))
    assert own == []


async def test_only_accepted_messages_come_out_and_go_on(world: World, subscriber: Subscriber) -> None:
    """A chain of three: what the middle one does not accept never reaches the third."""
    first, middle, last = [await world.node(number) for number in (1, 2, 3)]
    await first.connect(middle.addresses()[0])
    await last.connect(middle.addresses()[0])
    verdicts = {b"ignored": Verdict.IGNORE, b"rejected": Verdict.REJECT}
    outs: list[list[bytes]] = [[], [], []]
    middle_saw: list[bytes] = []
    last_saw: list[bytes] = []
    await subscriber(first, collector({}, []), outs[0])
    await subscriber(middle, collector(verdicts, middle_saw), outs[1])
    await subscriber(last, collector({}, last_saw), outs[2])
    await publish_until(first, TOPIC, b"warm up ", lambda: bool(outs[1] and outs[2]))
    for data in (b"ignored", b"rejected", b"good"):
        await first.publish(TOPIC, data)
    await until(lambda: b"good" in outs[2])
    assert {b"ignored", b"rejected", b"good"} <= set(middle_saw)
    assert b"good" in outs[1]
    assert not {b"ignored", b"rejected"} & set(outs[1] + outs[2] + last_saw)


async def test_a_message_is_checked_once(pair: tuple[Network, Network], subscriber: Subscriber) -> None:
    one, other = pair
    seen: list[bytes] = []
    heard: list[bytes] = []
    await subscriber(other, collector({}, seen), heard)
    await publish_until(one, TOPIC, b"n", lambda: bool(heard))
    await one.publish(TOPIC, b"last")
    await until(lambda: b"last" in heard)
    assert len(seen) == len(set(seen))


async def test_after_leaving_a_topic_nothing_is_checked(pair: tuple[Network, Network], nursery: trio.Nursery) -> None:
    one, other = pair
    seen: list[bytes] = []
    async with other.subscribe(TOPIC, collector({}, seen)):
        await publish_until(one, TOPIC, b"in ", lambda: bool(seen))
    before = len(seen)
    for number in range(3):
        await one.publish(TOPIC, b"out %d" % number)
    await trio.sleep(0.3)
    assert len(seen) == before


async def test_what_a_blocked_node_says_is_not_heard_through_others(world: World, subscriber: Subscriber) -> None:
    blocked: set[NodeId] = set()
    one, between, other = await world.node(1, blocked), await world.node(2), await world.node(3)
    seen: list[bytes] = []
    for network in (one, between, other):
        await subscriber(network, collector({}, seen if network is one else []), [])
    await one.connect(between.addresses()[0])
    await other.connect(between.addresses()[0])
    await publish_until(other, TOPIC, b"before", lambda: bool(seen))
    blocked.add(other.node)
    await other.publish(TOPIC, b"blocked")
    await publish_until(between, TOPIC, b"between", lambda: any(data.startswith(b"between") for data in seen))
    assert b"blocked" not in seen
    blocked.clear()
    await publish_until(other, TOPIC, b"after", lambda: any(data.startswith(b"after") for data in seen))


# --- the DHT ------------------------------------------------------------------------------------------


async def test_a_record_is_found_by_another_node(pair: tuple[Network, Network]) -> None:
    one, other = pair
    key = f"/mtor/{peer_id(one.node)}"
    await one.put_record(key, record(key, 1, b"offer"))
    assert await other.get_record(key) == record(key, 1, b"offer")


async def test_a_newer_record_replaces_an_older_one(pair: tuple[Network, Network]) -> None:
    one, other = pair
    key = f"/mtor/{peer_id(one.node)}"
    await one.put_record(key, record(key, 1))
    await one.put_record(key, record(key, 2))
    assert await other.get_record(key) == record(key, 2)


async def test_a_forged_record_is_refused(pair: tuple[Network, Network]) -> None:
    one, other = pair
    key = f"/mtor/{peer_id(one.node)}"
    await one.put_record(key, record(key, 1))
    with pytest.raises(NetworkError):
        await other.put_record(key, record("another key", 2))
    assert await one.get_record(key) == record(key, 1)
    assert await other.get_record(key) == record(key, 1)


async def test_a_key_without_a_record_gives_none(pair: tuple[Network, Network]) -> None:
    one, _ = pair
    assert await one.get_record(f"/mtor/{peer_id(node_of(77))}") is None


async def test_providers_are_found_with_their_addresses(pair: tuple[Network, Network]) -> None:
    one, other = pair
    await one.provide("mtor realm $CHAT")
    found = dict(await other.find_providers("mtor realm $CHAT"))
    assert found[one.node] == one.addresses()
    assert await other.find_providers("mtor realm $NOTHING") == ()
