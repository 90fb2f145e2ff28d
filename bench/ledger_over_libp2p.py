"""What a request to a witness costs when it comes over libp2p, as between real nodes: a stream for each.

Rule: the witness is a process of its own, and answers the cheapest request that there is, so that nearly all that is
measured is the way.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import trio
from ledger_orders import CREATED_MS, key, parties, seed
from ledger_witnesses import cpu_seconds

from node.bookkeeper import Bookkeeper
from node.ledger_service import LedgerService, NetworkPeers
from node.libp2p_host import Libp2pNetwork
from node.network import RecordRules
from node.store import LevelStore
from protocol.messages import FetchHead, Head
from protocol.params import LEDGER_PROTOCOL

AT_ONCE = 8
RULES = RecordRules(valid=lambda key, value: True, newest=lambda key, values: 0)


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests over libp2p."""

    requests: int
    seconds: float
    witness_cpu_seconds: float


def network(name: str) -> Libp2pNetwork:
    """A node on loopback."""
    return Libp2pNetwork(seed(name), RULES, listen=["/ip4/127.0.0.1/tcp/0"], gossip=False, dht=False)


def witness_process(folder: Path, to: Connection) -> None:
    """Serve until killed."""
    trio.run(_serve, folder, to)


async def _serve(folder: Path, to: Connection) -> None:
    who, host = parties(1, 1, 1), network("witness 0")
    book = Bookkeeper(LevelStore(folder), who.witnesses[0], who.federation, None, lambda: CREATED_MS, _peers(host))
    async with trio.open_nursery() as nursery:
        await nursery.start(book.run)
        host.serve(LEDGER_PROTOCOL, LedgerService(book, host).serve)
        await nursery.start(host.run)
        to.send(host.addresses()[0])
        await trio.sleep_forever()


def _peers(host: Libp2pNetwork, *addresses: str) -> NetworkPeers:
    return NetworkPeers(host, lambda node: addresses)


def asked(folder: Path, requests: int) -> Asked:
    """Ask so many times, AT_ONCE at a time. Blocks; `folder` is empty."""
    spawn = multiprocessing.get_context("spawn")
    receiving, sending = spawn.Pipe(duplex=False)
    process = spawn.Process(target=witness_process, args=(folder / "witness", sending), daemon=True)
    process.start()
    try:
        return trio.run(_ask_all, receiving.recv(), requests, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.join()


async def _ask_all(address: str, requests: int, witness: psutil.Process) -> Asked:
    host, who = network("owner"), parties(1, 1, 1)
    peers = _peers(host, address)

    async def ask(count: int) -> None:
        for _ in range(count):
            answer = await peers.ask(who.witnesses[0].node, FetchHead(key("owner").node), Head)
            assert isinstance(answer, Head)

    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        await ask(1)  # connected from here on
        began, before = time.perf_counter(), cpu_seconds(witness)
        async with trio.open_nursery() as asking:
            for _ in range(AT_ONCE):
                asking.start_soon(ask, requests // AT_ONCE)
        seconds, used = time.perf_counter() - began, cpu_seconds(witness) - before
        nursery.cancel_scope.cancel()
    return Asked(requests // AT_ONCE * AT_ONCE, seconds, used)
