"""The ledger over a network, and the federation's files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from node.bookkeeper import Bookkeeper, Settings
from node.federation import (
    FederationError,
    create_federation,
    genesis_path,
    home_federation,
    install_genesis,
    issuer_key_path,
    load_genesis,
    load_issuer,
)
from node.identity import load_or_create_identity
from node.ledger_peers import PeerUnreachable
from node.ledger_service import (
    HOME_GRANT,
    STREAMS_A_PEER,
    STREAMS_KEPT,
    LedgerService,
    NetworkPeers,
    ask,
    open_bookkeeper,
)
from node.memory_network import MemoryHub, MemoryNetwork
from node.memory_store import MemoryStore
from node.message_stream import MessageStream
from node.network import NetworkError, Stream, StreamReset
from protocol.codec import body_hash, encode
from protocol.errors import ErrorCode
from protocol.framing import frame
from protocol.ids import NodeId
from protocol.ledger.genesis import create
from protocol.messages import (
    Cancel,
    Certificates,
    FetchCertificates,
    FetchGenesis,
    GenesisAnswer,
    Rejected,
    RequestVote,
    Stored,
)
from protocol.params import LEDGER_PROTOCOL, MAX_RECORD_BYTES, MAX_REQUEST_BYTES
from protocol.signing import Signer
from tests.node.ledgers import PRICES, QUOTE, Clock, pay
from tests.protocol.ledger_world import ALICE, BOB, ISSUER, NOW, WITNESS

FEDERATION = create("service", NOW, [WITNESS.node], [ISSUER.node])


@dataclass
class Node:
    network: MemoryNetwork
    bookkeeper: Bookkeeper


class Net:
    """Nodes of one federation on a hub."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.hub = MemoryHub(timeout=1.0)
        self.clock = Clock()
        self._nursery = nursery

    async def start(self, signer: Signer) -> Node:
        network = MemoryNetwork(self.hub, signer.node)
        await self._nursery.start(network.run)
        issuer = ISSUER if signer.node == WITNESS.node else None
        remote = NetworkPeers(network, lambda node: ())
        bookkeeper = Bookkeeper(MemoryStore(), signer, FEDERATION, issuer, self.clock, remote)
        await self._nursery.start(bookkeeper.run)
        await self._nursery.start(LedgerService(bookkeeper, network).run)
        return Node(network, bookkeeper)

    async def stranger(self, signer: Signer) -> MemoryNetwork:
        """A peer without a ledger."""
        network = MemoryNetwork(self.hub, signer.node)
        await self._nursery.start(network.run)
        return network


@asynccontextmanager
async def net() -> AsyncIterator[Net]:
    async with trio.open_nursery() as nursery:
        yield Net(nursery)
        nursery.cancel_scope.cancel()


async def settled(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


async def test_a_federation_over_the_network() -> None:
    async with net() as wires:
        witness, alice, bob = [await wires.start(signer) for signer in (WITNESS, ALICE, BOB)]
        await witness.bookkeeper.grant(ALICE.node, 900_000)
        async with alice.bookkeeper.lease(BOB.node, *PRICES, QUOTE, 1) as lease:
            await pay(lease, bob.bookkeeper, ALICE.node, 100, 50)
        assert await bob.bookkeeper.close_idle(0) == 1
        await alice.bookkeeper.sync()
        assert (await bob.bookkeeper.balance()).earned == 250
        for node in (witness, alice, bob):
            report = await node.bookkeeper.verify(signatures=True)
            assert (report.verified, report.sum_micro) == (True, 0)


async def test_the_creator_of_a_federation_starts_with_credits_and_once() -> None:
    async with net() as wires:
        witness = await wires.start(WITNESS)
        assert (await witness.bookkeeper.balance()).balance == HOME_GRANT
        assert [entry["kind"] for entry in await witness.bookkeeper.history()] == ["grant"]


async def test_anybody_may_ask_for_genesis_and_log() -> None:
    async with net() as wires:
        witness, alice = [await wires.start(signer) for signer in (WITNESS, ALICE)]
        await alice.bookkeeper.sync()
        for node in (witness, alice):
            answer = await ask(alice.network, node.network.node, (), FetchGenesis())
            assert isinstance(answer, GenesisAnswer) and body_hash(answer.genesis) == FEDERATION.id
        bob = await wires.start(BOB)
        remote = NetworkPeers(bob.network, lambda node: ())
        request = FetchCertificates(0, 10)
        copied = await remote.ask(ALICE.node, request, Certificates)
        assert copied == await witness.bookkeeper.answer(BOB.node, request)


async def test_what_is_no_request_is_rejected_and_what_is_no_message_costs_the_stream() -> None:
    async with net() as wires:
        _, alice = [await wires.start(signer) for signer in (WITNESS, ALICE)]
        answer = await ask(alice.network, WITNESS.node, (), Cancel())
        assert isinstance(answer, Rejected) and answer.code == ErrorCode.MALFORMED
        for bad in (frame(b"\xff"), frame(bytes(MAX_REQUEST_BYTES + 1))):
            stream = await alice.network.open_stream(WITNESS.node, LEDGER_PROTOCOL)
            await stream.send(bad)
            with pytest.raises(StreamReset):
                await stream.receive()
        assert isinstance(await ask(alice.network, WITNESS.node, (), FetchGenesis()), GenesisAnswer)


async def test_the_largest_request_fits() -> None:
    async with net() as wires:
        _, alice = [await wires.start(signer) for signer in (WITNESS, ALICE)]
        answer = await ask(alice.network, WITNESS.node, (), RequestVote(bytes(MAX_RECORD_BYTES), bytes(64)))
        assert isinstance(answer, Rejected) and answer.code == ErrorCode.MALFORMED


async def test_one_stream_carries_many_requests_and_a_peer_has_few_streams() -> None:
    async with net() as wires:
        await wires.start(WITNESS)
        peer = await wires.stranger(ALICE)
        streams = [MessageStream(await peer.open_stream(WITNESS.node, LEDGER_PROTOCOL)) for _ in range(STREAMS_A_PEER)]
        for stream in streams * 2:
            await stream.send(FetchGenesis())
            assert isinstance(await stream.receive(), GenesisAnswer)
        with pytest.raises(NetworkError):
            await ask(peer, WITNESS.node, (), FetchGenesis())
        await streams[0].close()
        assert await streams[0].receive() is None
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(await ask(peer, WITNESS.node, (), FetchGenesis()), GenesisAnswer)


async def test_a_witness_that_is_away_or_talks_nonsense_is_unreachable() -> None:
    async with net() as wires:
        alice = await wires.start(ALICE)
        remote = NetworkPeers(alice.network, lambda node: ())
        with pytest.raises(PeerUnreachable):
            await remote.ask(WITNESS.node, FetchCertificates(0, 1), Certificates)

        async def nonsense(stream: object) -> None:
            messages = MessageStream(stream)  # type: ignore[arg-type]
            await messages.receive()
            await messages.send(Stored(0, 0))

        (await wires.stranger(BOB)).serve(LEDGER_PROTOCOL, nonsense)
        with pytest.raises(PeerUnreachable, match="answered Stored"):
            await remote.ask(BOB.node, FetchCertificates(0, 1), Certificates)


# --- files ---


def test_a_home_federation_is_made_once(tmp_path: Path) -> None:
    assert load_genesis(tmp_path) is None
    first = home_federation(tmp_path, "kitchen")
    assert home_federation(tmp_path, "other") == first
    assert first.genesis.name == "kitchen"
    assert first.genesis.witnesses == (load_or_create_identity(tmp_path).node,)
    issuer = load_issuer(tmp_path, first)
    assert issuer is not None and issuer.node != load_or_create_identity(tmp_path).node
    assert issuer_key_path(tmp_path).stat().st_mode & 0o077 == 0


def test_a_home_without_a_name_or_with_a_long_one(tmp_path: Path) -> None:
    assert home_federation(tmp_path / "a", "").genesis.name == "home"
    assert len(home_federation(tmp_path / "b", "漢" * 100).genesis.name.encode()) <= 64


def test_joining_keeps_what_was_before(tmp_path: Path) -> None:
    mine = create_federation(tmp_path, "mine", now_ms=1)
    install_genesis(tmp_path, FEDERATION)
    install_genesis(tmp_path, FEDERATION)
    assert load_genesis(tmp_path) == FEDERATION
    assert load_issuer(tmp_path, FEDERATION) is None
    kept = [path for path in genesis_path(tmp_path).parent.iterdir() if "before" in path.name]
    assert [path.read_bytes() for path in kept] == [mine.body]


@pytest.mark.parametrize("content", [b"", b"x", encode(Stored(1, 0))])
def test_a_damaged_genesis_is_said_not_replaced(tmp_path: Path, content: bytes) -> None:
    create_federation(tmp_path, "mine")
    genesis_path(tmp_path).write_bytes(content)
    with pytest.raises(FederationError, match="get it again"):
        home_federation(tmp_path, "mine")
    assert genesis_path(tmp_path).read_bytes() == content


async def test_everything_works_with_no_set_up(tmp_path: Path) -> None:
    identity = load_or_create_identity(tmp_path)
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork(MemoryHub(), identity.node)
        await nursery.start(network.run)
        bookkeeper = open_bookkeeper(tmp_path, "kitchen", identity.signer, network, lambda node: (), Settings())
        await nursery.start(bookkeeper.run)
        await nursery.start(LedgerService(bookkeeper, network).run)
        assert (await bookkeeper.balance()).balance == HOME_GRANT
        assert bookkeeper.is_witness and bookkeeper.is_issuer
        nursery.cancel_scope.cancel()
    ledgers = list((tmp_path / "ledgers").iterdir())
    assert [folder.name for folder in ledgers] == [bookkeeper.federation.hex()[:16]]
    assert list(ledgers[0].iterdir())


class Counted(MemoryNetwork):
    """Counts the streams that it opens, and keeps the last."""

    opened = 0
    last: Stream

    async def open_stream(self, peer: NodeId, protocol: str, addresses: Sequence[str] = ()) -> Stream:
        self.opened += 1
        self.last = await super().open_stream(peer, protocol, addresses)
        return self.last


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[Counted, NetworkPeers]]:
    """Alice without a ledger, beside a witness that runs."""
    async with net() as wires:
        await wires.start(WITNESS)
        network = Counted(wires.hub, ALICE.node)
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            yield network, NetworkPeers(network, lambda node: ())
            nursery.cancel_scope.cancel()


async def ask_genesis(remote: NetworkPeers) -> None:
    assert isinstance(await remote.ask(WITNESS.node, FetchGenesis(), GenesisAnswer), GenesisAnswer)


async def test_questions_to_one_node_share_a_stream() -> None:
    async with asking() as (network, remote):
        for _ in range(3):
            await ask_genesis(remote)
        assert network.opened == 1


async def test_questions_at_one_time_have_a_stream_each_and_few_are_kept() -> None:
    async with asking() as (network, remote):
        for expected in (STREAMS_KEPT + 2, STREAMS_KEPT + 4):
            async with trio.open_nursery() as nursery:
                for _ in range(STREAMS_KEPT + 2):
                    nursery.start_soon(ask_genesis, remote)
            assert network.opened == expected


async def test_a_kept_stream_whose_other_end_is_gone_costs_nothing() -> None:
    async with asking() as (network, remote):
        await ask_genesis(remote)
        await network.last.reset()
        await ask_genesis(remote)
        assert network.opened == 2


async def test_a_stream_that_rested_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with asking() as (network, remote):
        await ask_genesis(remote)
        monkeypatch.setattr("node.ledger_service.KEPT_SECONDS", -1.0)
        await ask_genesis(remote)
        assert network.opened == 2
