"""Bookkeepers of one federation in one process, with a witness that can be cut off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from node.bookkeeper import Bookkeeper, ChannelLease, Settings
from node.ledger_peers import Answer, LedgerPeers, PeerUnreachable
from node.memory_store import MemoryStore
from node.store import Store
from protocol.ids import NodeId
from protocol.messages import FetchCertificates, Message, Pay, Rejected, RequestVote, StoreCertificate
from protocol.signing import Signer
from tests.protocol.ledger_world import ALICE, FEDERATION, ISSUER, NOW, WITNESS

PRICES = (1_000, 3_000)
QUOTE = bytes(32)
TRANSCRIPT = b"t" * 32


@dataclass
class Clock:
    now: int = NOW

    def __call__(self) -> int:
        return self.now


NAMES: dict[type[Message], str] = {RequestVote: "vote", StoreCertificate: "store", FetchCertificates: "fetch"}


class Cable(LedgerPeers):
    """The way to the witness. `cut` names the questions that get no answer; with `after`, the witness heard them."""

    def __init__(self) -> None:
        self.witness: Bookkeeper | None = None
        self.cut: set[str] = set()
        self.after: set[str] = set()
        self.asked: list[str] = []

    async def ask(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer | Rejected:
        what = NAMES.get(type(request), "other")
        self.asked += [what] if what in NAMES.values() else []
        if what in self.cut or self.witness is None or (what == "other" and self.cut):
            raise PeerUnreachable("the cable is cut")
        answer = await self.witness.answer(ALICE.node, request)
        if what in self.after:
            raise PeerUnreachable("the cable was cut before the answer")
        assert isinstance(answer, expected | Rejected)
        return answer

    def connected(self) -> list[NodeId]:
        return []

    def cut_all(self) -> None:
        self.cut = {"vote", "store", "fetch"}


@dataclass
class Books:
    """Starts and stops bookkeepers; the clock and the cable are theirs."""

    nursery: trio.Nursery
    clock: Clock = field(default_factory=Clock)
    cable: Cable = field(default_factory=Cable)

    async def start(self, signer: Signer, store: Store | None = None, settings: Settings | None = None) -> Bookkeeper:
        issuer = ISSUER if signer.node == WITNESS.node else None
        made = store if store is not None else MemoryStore()
        bookkeeper = Bookkeeper(made, signer, FEDERATION, issuer, self.clock, self.cable, settings)
        if signer.node == WITNESS.node:
            self.cable.witness = bookkeeper
        await self.nursery.start(bookkeeper.run)
        return bookkeeper


@asynccontextmanager
async def books() -> AsyncIterator[Books]:
    async with trio.open_nursery() as nursery:
        yield Books(nursery)
        nursery.cancel_scope.cancel()


async def pay(lease: ChannelLease, worker: Bookkeeper, payer: NodeId, units_in: int, units_out: int) -> Pay:
    """One query's worth of payment, all the way to the worker's disk."""
    async with worker.serving(lease.channel):
        before = await worker.cover(lease.channel, payer)
        assert (before.units_in, before.units_out) == (lease.units_in, lease.units_out)
        counts = (before.units_in + units_in, before.units_out + units_out)
        voucher = await lease.sign(*counts, TRANSCRIPT)
        lease.confirm(await worker.take_voucher(lease.channel, voucher, *counts, TRANSCRIPT))
    return voucher
