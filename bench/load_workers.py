"""Workers with a paced engine, each a node of its own over libp2p, all in this process.

Rule: network, ledger, scheduling and payment are the node's own; only the engine is not: it gives one numbered word
after another at a fixed pace, so that a lost or doubled one shows. The workers tell of their offers and do not listen
to each other's: on machines of their own that is little for each, here twenty would do it on the core that makes the
words. Ends when its standard input ends.

    python bench/load_workers.py FOLDER --genesis FILE --bootstrap ADDRESS --workers 16
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from node.announcer import Announcer
from node.bookkeeper import Settings
from node.clock import now_ms
from node.config import FreeSection, RealmSection
from node.directory import Directory
from node.engines.fake import FakeEngine
from node.federation import install_genesis
from node.garbage import calm_collector
from node.identity import load_or_create_identity
from node.ledger_service import LedgerService, open_bookkeeper
from node.libp2p_host import Libp2pNetwork
from node.network import GossipCheck, RecordRules
from node.scheduler import Scheduler
from node.services import ModelService, Services
from node.worker import MAX_STREAMS_PER_PEER, Worker
from protocol import params
from protocol.ledger.genesis import open_genesis
from protocol.offers import newest_record, record_valid

MODEL = "paced"
FIRST_SECONDS = 0.05  # until an answer's first word: what comes later than that is the nodes' doing


class SpeakingNetwork(Libp2pNetwork):
    """Gossips, and hears nothing."""

    @asynccontextmanager
    async def subscribe(self, topic: str, check: GossipCheck) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `Network`."""
        yield _nothing()


async def _nothing() -> AsyncIterator[bytes]:
    await trio.sleep_forever()
    yield b""


async def worker(folder: Path, genesis: bytes, bootstrap: str, seconds_per_token: float) -> None:
    """One worker node, until cancelled."""
    install_genesis(folder, open_genesis(genesis))
    identity = load_or_create_identity(folder)
    rules = RecordRules(record_valid, newest_record)
    network = SpeakingNetwork(identity.seed, rules, listen=["/ip4/127.0.0.1/tcp/0"], gossip=True, dht=False)
    directory = Directory(identity.node, now_ms)
    book = open_bookkeeper(
        folder, folder.name, identity.signer, network, directory.addresses, Settings(2_000_000, 60_000, 0)
    )
    ledger = LedgerService(book, network)
    section = RealmSection(realm="$CHAT", model=MODEL, slots=MAX_STREAMS_PER_PEER, queue=0, price_in=10, price_out=30)
    engine = FakeEngine(MODEL, seconds_per_token, first_seconds=FIRST_SECONDS)
    services = Services([ModelService(section, engine, Scheduler(section.slots, section.queue))], free=False)
    serving = Worker(identity.node, services, book, FreeSection(tokens_per_day=0), now_ms)
    announcer = Announcer(
        network,
        directory,
        identity.signer,
        book.federation,
        services.offers,
        now_ms,
        use_gossip=True,
        use_dht=False,
        witnesses=book.genesis.witnesses,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(book.run)
        await nursery.start(network.run)
        network.serve(params.QUERY_PROTOCOL, serving.serve)
        await nursery.start(ledger.run)
        await nursery.start(announcer.run)
        await network.connect(bootstrap)
        await trio.sleep_forever()


async def main_async(root: Path, genesis: bytes, bootstrap: str, workers: int, pace: float) -> None:
    """All of them, until standard input ends."""
    async with trio.open_nursery() as nursery:
        for number in range(workers):
            nursery.start_soon(worker, root / f"worker-{number}", genesis, bootstrap, 1 / pace)
        calm_collector()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


def main() -> int:
    """Run until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--genesis", type=Path, required=True)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--pace", type=float, default=2.0, help="words a second of each answer")
    options = parser.parse_args()
    arguments = (options.folder, options.genesis.read_bytes(), options.bootstrap, options.workers, options.pace)
    trio.run(partial(main_async, *arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
