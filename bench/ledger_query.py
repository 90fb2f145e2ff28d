"""What a payer and a worker wait for: a voucher, and a whole channel from its hold to its close.

Rule: three real bookkeepers (witness, payer, worker) on LevelDB in one process, one thing after the other, nothing
between them but a call: so it is the disk and the signatures that are waited for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from ledger_orders import AMOUNT, CREATED_MS, PRICES, UNITS, key
from ledger_orders import parties as named

from node.bookkeeper import Bookkeeper, ChannelLease
from node.ledger_peers import Answer, LedgerPeers
from node.store import LevelStore
from protocol.ids import NO_HASH, NodeId
from protocol.messages import Message, Rejected

TRANSCRIPT = b"t" * 32
SECOND_MS = 1_000


class Calls(LedgerPeers):
    """The other bookkeepers of this process."""

    def __init__(self, own: NodeId, books: dict[NodeId, Bookkeeper]) -> None:
        self._own = own
        self._books = books

    async def ask(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer | Rejected:
        """See `LedgerPeers`."""
        answer = await self._books[node].answer(self._own, request)
        assert isinstance(answer, expected | Rejected)
        return answer

    def connected(self) -> list[NodeId]:
        """See `LedgerPeers`."""
        return []


@dataclass(slots=True)
class Waits:
    """Milliseconds."""

    voucher: list[float] = field(default_factory=list)
    channel: list[float] = field(default_factory=list)

    def told(self) -> dict[str, float]:
        """Medians and 99th percentiles."""
        said = {}
        for name, samples in (("voucher", self.voucher), ("channel", self.channel)):
            said[f"{name}_median_ms"] = statistics.median(samples)
            said[f"{name}_p99_ms"] = statistics.quantiles(samples, n=100)[98]
        return said


@contextmanager
def timed(samples: list[float]) -> Iterator[None]:
    """Note how long it took."""
    began = time.perf_counter()
    yield
    samples.append((time.perf_counter() - began) * 1_000)


async def waits(folder: Path, vouchers: int, channels: int) -> Waits:
    """So many vouchers in one channel, then so many channels with one voucher each."""
    who, books, found, now = named(1, 1, 1), dict[NodeId, Bookkeeper](), Waits(), [CREATED_MS]
    async with trio.open_nursery() as nursery:
        for signer, issuer in ((who.witnesses[0], key("issuer")), (who.payers[0], None), (who.workers[0], None)):
            store = LevelStore(folder / signer.node.hex())
            book = Bookkeeper(store, signer, who.federation, issuer, lambda: now[0], Calls(signer.node, books))
            books[signer.node] = book
            await nursery.start(book.run)
        payer, worker = books[who.payers[0].node], books[who.workers[0].node]
        await books[who.witnesses[0].node].grant(payer.node, 1_000 * (vouchers + channels) * AMOUNT)
        async with payer.lease(worker.node, *PRICES, NO_HASH, (vouchers + 1) * AMOUNT) as lease:
            await worker.cover(lease.channel, payer.node)
            for number in range(1, vouchers + 1):
                with timed(found.voucher):
                    await pay(lease, worker, number)
        await worker.close_idle(0)
        await payer.sync()
        for _ in range(channels):
            now[0] += SECOND_MS  # a worker looks for so many of one payer's new channels in a time, and no more
            with timed(found.channel):
                async with payer.lease(worker.node, *PRICES, NO_HASH, AMOUNT) as lease:
                    await worker.cover(lease.channel, payer.node)
                    await pay(lease, worker, 1)
                await worker.close(lease.channel)
                await payer.sync()
        nursery.cancel_scope.cancel()
    return found


async def pay(lease: ChannelLease, worker: Bookkeeper, queries: int) -> None:
    """A voucher: signed and stored by one, checked and stored by the other."""
    counts = (UNITS[0] * queries, UNITS[1] * queries)
    voucher = await lease.sign(*counts, TRANSCRIPT)
    lease.confirm(await worker.take_voucher(lease.channel, voucher, *counts, TRANSCRIPT))
