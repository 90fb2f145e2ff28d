"""The first peers: the file's format, and a keeper that never gives up."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node import bootstrap
from node.bootstrap import BootstrapError, BootstrapKeeper, parse_bootstrap_address, read_bootstrap_file
from node.memory_network import MemoryHub, MemoryNetwork
from protocol.ids import NodeId, peer_id

ONE, OTHER, THIRD = (NodeId(bytes([number]) * 32) for number in (1, 2, 3))
GOOD = f"/ip4/192.0.2.7/tcp/9001/p2p/{peer_id(ONE)}"


def address_of(node: NodeId) -> str:
    return f"/memory/{peer_id(node)}/p2p/{peer_id(node)}"


def test_comments_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "peers.txt"
    named = f"/dns4/node.example.org/tcp/9001/p2p/{peer_id(OTHER)}"
    path.write_text(f"# first\n\n  {GOOD}  # a friend\n{named}\r\n{GOOD}\n")
    assert [(peer.node, peer.address) for peer in read_bootstrap_file(path)] == [(ONE, GOOD), (OTHER, named)]


def test_the_file_that_comes_with_the_node_is_valid_and_empty() -> None:
    assert read_bootstrap_file(Path(__file__).parents[2] / "bootstrap_peers.txt") == ()


@pytest.mark.parametrize(
    "line",
    [
        "192.0.2.7:9001",
        "/ip4/192.0.2.7/tcp/9001",
        "/ip4/192.0.2.7/tcp/9001/p2p/",
        "/ip4/192.0.2.7/tcp/9001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        f"/ip4/192.0.2.7/udp/9001/quic-v1/p2p/{peer_id(ONE)}",
        f"/ip4/192.0.2.7/tcp/0/p2p/{peer_id(ONE)}",
        f"/ip4//tcp/9001/p2p/{peer_id(ONE)}",
        f"/p2p/{peer_id(ONE)}",
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_fix(tmp_path: Path, line: str) -> None:
    path = tmp_path / "peers.txt"
    path.write_text(f"# ok\n{GOOD}\n{line}\n")
    with pytest.raises(BootstrapError, match=r"write it like|mtor status") as raised:
        read_bootstrap_file(path)
    assert str(raised.value).startswith(f"{path}, line 3: ")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BootstrapError, match=r"missing\.txt"):
        read_bootstrap_file(tmp_path / "missing.txt")


class Recorder(MemoryNetwork):
    """Notes when it was asked to dial."""

    def __init__(self, hub: MemoryHub, node: NodeId) -> None:
        super().__init__(hub, node)
        self.dialled: list[float] = []

    async def connect(self, address: str) -> NodeId:
        self.dialled.append(trio.current_time())
        return await super().connect(address)


def keeper_for(network: MemoryNetwork, *nodes: NodeId) -> BootstrapKeeper:
    peers = [parse_bootstrap_address(address_of(node)) for node in nodes]
    return BootstrapKeeper(network, peers, random.Random(7))


async def test_it_connects_and_reconnects(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    hub = MemoryHub(connected=False)
    network = MemoryNetwork(hub, ONE)
    await nursery.start(network.run)
    await nursery.start(MemoryNetwork(hub, OTHER).run)
    keeper = keeper_for(network, OTHER, ONE)
    await nursery.start(keeper.run)
    await trio.sleep(1)
    assert [peer.node for peer in network.peers()] == [OTHER]
    assert (keeper.state().known, keeper.state().reachable) == (1, 1)
    hub.kill(OTHER)
    await trio.sleep(5)
    assert keeper.state().reachable == 0
    assert keeper.state().last_error
    await nursery.start(MemoryNetwork(hub, OTHER).run)
    await trio.sleep(2 * bootstrap.LONGEST_PAUSE)
    assert [peer.node for peer in network.peers()] == [OTHER]
    assert keeper.state().reachable == 1


async def test_pauses_grow_to_a_limit_and_never_end(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    network = Recorder(MemoryHub(connected=False), ONE)
    await nursery.start(network.run)
    keeper = keeper_for(network, OTHER)
    await nursery.start(keeper.run)
    await trio.sleep(1_000)
    pauses = [later - earlier for earlier, later in zip(network.dialled, network.dialled[1:], strict=False)]
    assert pauses[0] <= bootstrap.FIRST_PAUSE
    assert all(pause <= bootstrap.LONGEST_PAUSE + 0.01 for pause in pauses)
    assert min(pauses[8:]) >= bootstrap.LONGEST_PAUSE * (1 - bootstrap.JITTER)
    assert len({round(pause, 3) for pause in pauses[8:]}) > 1  # jittered
    assert 0 < keeper.state().next_try_seconds <= bootstrap.LONGEST_PAUSE


async def test_being_cut_off_is_said_once_each_time(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    hub = MemoryHub(connected=False)
    network = MemoryNetwork(hub, ONE)
    await nursery.start(network.run)

    def warnings() -> int:
        return sum(entry.levelno == logging.WARNING and "none of 2" in entry.message for entry in caplog.records)

    await nursery.start(MemoryNetwork(hub, OTHER).run)
    await nursery.start(keeper_for(network, OTHER, THIRD).run)
    await trio.sleep(200)
    assert warnings() == 0  # one of two is enough
    hub.kill(OTHER)
    await trio.sleep(300)
    assert warnings() == 1
    await nursery.start(MemoryNetwork(hub, OTHER).run)
    await trio.sleep(200)
    hub.kill(OTHER)
    await trio.sleep(200)
    assert warnings() == 2
