"""Blocking a peer: in force at once, kept, and ended at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from node.blocking import Blocked, BlockList
from node.clock import now_ms
from node.config_file import load_config
from node.config_keeper import ConfigKeeper
from node.directory import Directory
from node.engines.fake import ANSWER_TOKENS, FakeEngine, fake_answer
from node.libp2p_host import Libp2pNetwork
from node.network import NetworkError, RecordRules, Stream
from node.operations import OperationFailed, dispatch
from node.peer_operations import PeerOperations
from protocol.errors import ErrorCode
from protocol.ids import NodeId, peer_id
from protocol.offers import newest_record, record_valid
from protocol.signing import Signer
from tests.node.federation import Answered, MemoryNode, memory_federation, question

ECHO = "/test/echo/1"
STRANGER = Signer.from_seed(b"\x55" * 32).node


class Operator:
    """`peers.*` of one node, with a `realms.yml` of its own."""

    def __init__(self, node: MemoryNode, path: Path, text: str = "", witness: NodeId | None = None, **variables: str):
        path.write_text(text)
        self.node = node
        keeper = ConfigKeeper(path, load_config(path, variables), {}, variables)
        operations = PeerOperations(node.network, node.directory, node.blocked, keeper, lambda each: each == witness)
        self._methods = operations.methods

    async def __call__(self, name: str, **arguments: Any) -> dict[str, Any]:
        return await dispatch(self._methods, f"peers.{name}", arguments)

    async def refusal(self, name: str, **arguments: Any) -> str:
        """Why it cannot be done."""
        with pytest.raises(OperationFailed) as failed:
            await self(name, **arguments)
        return str(failed.value)


async def until_known(node: MemoryNode, other: MemoryNode) -> None:
    """Wait for an offer."""
    with trio.fail_after(20):
        while node.directory.known(other.signer.node) is None:
            await node.directory.wait_changed()


# --- in force --------------------------------------------------------------------------------------------


async def test_a_blocked_worker_is_asked_no_longer_and_a_running_answer_goes_on_elsewhere(tmp_path: Path) -> None:
    engines = FakeEngine(seconds_per_token=0.01), FakeEngine(seconds_per_token=0.01)
    async with memory_federation(*engines) as federation:
        gateway, answered = federation.gateway, Answered()
        operator = Operator(gateway, tmp_path / "realms.yml")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gateway.router.answer, question(), answered.emit)
            with trio.fail_after(20):
                while len(answered.text.split()) < 5:
                    await trio.sleep(0.005)
            first = answered.workers[0]
            await operator("block", peer=peer_id(first), reason="slow")
            assert first not in [peer.node for peer in gateway.network.peers()]
            assert gateway.directory.known(first) is None
        assert answered.text == fake_answer(ANSWER_TOKENS) and answered.workers[-1] != first
        assert answered.completed.failover


async def test_a_blocked_peer_is_not_heard_and_not_served_until_it_is_unblocked(tmp_path: Path) -> None:
    async with memory_federation(FakeEngine()) as federation:
        gateway, worker = federation.gateway, federation.workers[0]
        operator = Operator(worker, tmp_path / "realms.yml")
        await operator("block", peer=peer_id(gateway.signer.node))
        worker.directory.take_in(gateway.directory.known(gateway.signer.node).sealed)  # type: ignore[union-attr]
        assert worker.directory.known(gateway.signer.node) is None
        failed = (await gateway.ask(question(deadline_ms=1_500))).failed
        assert failed.code in (ErrorCode.NO_PEER, ErrorCode.WORKER_LOST, ErrorCode.DEADLINE_EXCEEDED)
        await operator("unblock", peer=peer_id(gateway.signer.node))
        await gateway.network.connect(worker.network.addresses()[0])
        await until_known(worker, gateway)
        gateway.directory.recovered(worker.signer.node)
        assert (await gateway.ask(question())).text == fake_answer(ANSWER_TOKENS)


@pytest.mark.net
async def test_over_libp2p_connections_close_and_none_comes_back_until_then(tmp_path: Path) -> None:
    async with libp2p_pair() as (one, other, blocked):
        path = tmp_path / "realms.yml"
        keeper = ConfigKeeper(path, load_config(path, {}), {}, {})
        directory = Directory(one.node, now_ms, blocked)
        operations = PeerOperations(one, directory, blocked, keeper, lambda _: False).methods
        stream = await other.open_stream(one.node, ECHO, one.addresses())
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
        ending = peer_id(other.node)[-8:]
        assert (await dispatch(operations, "peers.block", {"peer": ending}))["node"] == peer_id(other.node)
        assert one.peers() == ()
        for asking, asked in ((one, other), (other, one)):
            with pytest.raises(NetworkError):
                await heard(await asking.open_stream(asked.node, ECHO, asked.addresses()))
        await dispatch(operations, "peers.unblock", {"peer": ending})
        for asking, asked in ((one, other), (other, one)):
            assert await heard(await asking.open_stream(asked.node, ECHO, asked.addresses())) == b"hello"


@asynccontextmanager
async def libp2p_pair() -> AsyncIterator[tuple[Libp2pNetwork, Libp2pNetwork, BlockList]]:
    """Two networks on loopback, and whom the first one refuses."""
    rules, blocked = RecordRules(record_valid, newest_record), BlockList()
    listen = ["/ip4/127.0.0.1/tcp/0"]
    one = Libp2pNetwork(bytes([1]) * 32, rules, listen=listen, blocked=blocked)
    other = Libp2pNetwork(bytes([2]) * 32, rules, listen=listen)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for network in (one, other):
                await nursery.start(network.run)
                network.serve(ECHO, echo)
            yield one, other, blocked
            nursery.cancel_scope.cancel()


async def echo(stream: Stream) -> None:
    """Say back what is said."""
    while data := await stream.receive():
        await stream.send(data)


async def heard(stream: Stream) -> bytes:
    """What comes back. Raises `NetworkError` if nothing does."""
    await stream.send(b"hello")
    if not (said := await stream.receive()):
        raise NetworkError("nothing came")
    return said


# --- kept ------------------------------------------------------------------------------------------------


async def test_it_is_kept_with_reason_and_time_beside_what_the_owner_wrote(tmp_path: Path) -> None:
    async with memory_federation(FakeEngine()) as federation:
        path, worker = tmp_path / "realms.yml", federation.workers[0].signer.node
        operator = Operator(federation.gateway, path, f"# mine\nblocked_peers: [{peer_id(STRANGER)}]  # b\n")
        said = await operator("block", peer=peer_id(worker), reason="counts wrongly")
        assert said["reason"] == "counts wrongly" and said["since"].endswith("Z") and "note" not in said
        assert await operator("block", peer=peer_id(worker), reason="again") == said  # nothing changes
        assert path.read_text().startswith("# mine\n") and path.read_text().endswith("]  # b\n")
        [first, second] = load_config(path, {}).blocked_peers
        assert first.node == peer_id(STRANGER) and (second.node, second.reason) == (peer_id(worker), "counts wrongly")
        assert [row["node"] for row in (await operator("blocked"))["blocked"]] == [peer_id(worker)]
        await operator("unblock", peer=peer_id(worker))
        assert [each.node for each in load_config(path, {}).blocked_peers] == [peer_id(STRANGER)]


async def test_what_the_file_named_at_the_start_can_be_unblocked(tmp_path: Path) -> None:
    async with memory_federation(FakeEngine()) as federation:
        path = tmp_path / "realms.yml"
        operator = Operator(federation.gateway, path, f"blocked_peers:\n  - {peer_id(STRANGER)}  # since May\n")
        federation.gateway.blocked.add(Blocked(STRANGER))
        await operator("unblock", peer=peer_id(STRANGER)[-6:])
        assert load_config(path, {}).blocked_peers == () and list(federation.gateway.blocked) == []


async def test_what_cannot_be_is_refused_with_the_way_out(tmp_path: Path) -> None:
    async with memory_federation(FakeEngine()) as federation:
        gateway, path = federation.gateway, tmp_path / "realms.yml"
        worker = peer_id(federation.workers[0].signer.node)
        operator = Operator(gateway, path, witness=federation.workers[0].signer.node)
        assert "this node itself" in await operator.refusal("block", peer=peer_id(gateway.signer.node))
        assert "`mtor peers` lists them" in await operator.refusal("block", peer="nobody")
        assert "`mtor peers` lists them" in await operator.refusal("block", peer="12D3KooW")
        assert "is not blocked" in await operator.refusal("unblock", peer=peer_id(STRANGER))
        assert "peers.block takes" in await operator.refusal("block", peer=worker, reason="x" * 201)
        path.write_text("blocked_peers: [\n")
        assert "realms.yml:2:1: not valid YAML" in await operator.refusal("block", peer=worker)
        assert list(gateway.blocked) == [] and gateway.directory.known(federation.workers[0].signer.node)
        path.write_text("")
        assert "witness" in (await operator("block", peer=worker))["note"]


async def test_a_variable_above_the_file_is_named(tmp_path: Path) -> None:
    async with memory_federation(FakeEngine()) as federation:
        operator = Operator(federation.gateway, tmp_path / "realms.yml", MTOR_BLOCKED_PEERS="[]")
        said = await operator.refusal("block", peer=peer_id(STRANGER))
        assert said.startswith("MTOR_BLOCKED_PEERS says who is blocked") and list(federation.gateway.blocked) == []
