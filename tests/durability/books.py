"""One process of the durability tests' federation: `python -m tests.durability.books FOLDER PROCESS`.

Rule: real bookkeepers on real stores, as busy as they can be, and a line to the parent after every call that returned.
Witnesses answer and end epochs, the first one grants; payers ask workers; workers take vouchers and settle.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from node import epoch_change, witness
from node.bookkeeper import Bookkeeper, ChannelLease
from node.ledger_peers import PeerUnreachable
from protocol.codec import decode, decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.gossip import Verdict
from protocol.ids import ChannelId, NodeId
from protocol.ledger.checkpoints import is_decision
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import CheckedOrder
from protocol.ledger.state import Lock, View
from protocol.ledger.votes import Moment, vote_body
from protocol.messages import (
    Balloted,
    Commit,
    Evidence,
    FetchEvidence,
    Join,
    Joined,
    Message,
    Pay,
    Propose,
    RequestVote,
    StoreCertificate,
    Stored,
    Voted,
)
from protocol.signing import Signer
from tests.durability.small_world import PAYERS, WORKERS, SmallWorld
from tests.durability.wire import MAX_LINE, Json, Line, LineBroken, RemotePeers, connect, listen, say
from tests.protocol.ledger_world import signer

ASKING_AT_ONCE = 3  # queries of one payer
PRICES = (1_000, 3_000)  # µcredits for 1,000 tokens
NEED = 12_000  # µcredits that a query may cost at most
GRANT = 1_000_000
PAUSE_SECONDS = 0.02  # after a refusal
SETTLE_IDLE_MS = 5_000
CLOSE_CHANCE = 0.3
TRANSCRIPT = b"t" * 32
GOSSIP_SECONDS = 0.3
CLOCKS_DIFFER = 0.2
PROPOSE_CHANCE = 0.5  # that he also proposes it


HASTY = {"PATIENCE_SECONDS": 2.0, "STAGGER_SECONDS": 1.5, "ROUND_SECONDS": 0.1}


@contextmanager
def hastened() -> Iterator[None]:
    """A change of epochs that was begun is taken up by the next witness in some seconds, not in minutes. Afterwards
    all is as before: other tests run in this process."""
    before = {name: getattr(epoch_change, name) for name in HASTY}
    try:
        for name, value in HASTY.items():
            setattr(epoch_change, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(epoch_change, name, value)


class Process:
    """The bookkeepers of one process."""

    def __init__(self, world: SmallWorld, process: str, nursery: trio.Nursery) -> None:
        self.world = world
        self.process = process
        self.nursery = nursery
        self.chance = random.Random()  # every life takes another course
        sockets = {signer(name).node: world.socket(name) for name in world.witnesses}
        self._peers = {name: RemotePeers(signer(name).node, sockets) for name in world.processes[process]}
        self.books = {name: world.bookkeeper(name, peers) for name, peers in self._peers.items()}

    async def run(self) -> None:
        """Until killed."""
        for book in self.books.values():
            await self.nursery.start(book.run)
        say("ready")
        await _ROLES.get(self.process, Process.witness)(self)

    # --- a witness ---

    async def witness(self) -> None:
        """Answer, refund what expired, end epochs; the first grants."""
        book = self.books[self.process]

        async def handle(line: Line) -> None:
            while True:
                await line.send(await self._answer_line(book, await line.receive()))

        await listen(self.world.socket(self.process), handle, self.nursery)
        self.nursery.start_soon(self._keep_house)
        self.nursery.start_soon(self._end_epochs, book)
        self.nursery.start_soon(self._gossip, book)
        while book.is_issuer:
            payer = self.chance.choice(PAYERS)
            await self._or_refused(self._grant(book, signer(payer).node))
            await trio.sleep(self.chance.uniform(0.0, 1.0 if self.world.liars else 0.1))

    async def _answer_line(self, book: Bookkeeper, question: Json) -> Json:
        if "gossip" in question:
            await self._hear_gossip(book, bytes.fromhex(question["gossip"]))
            return {}
        if "grant" in question:
            await self._or_refused(self._grant(book, account := NodeId(bytes.fromhex(question["grant"]))))
            return {"granted": book.standing(account).balance > 0}
        return await self._answer(book, question)

    async def _answer(self, book: Bookkeeper, question: Json) -> Json:
        request = decode(bytes.fromhex(question["message"]), MAX_LINE)
        answer = await book.answer(NodeId(bytes.fromhex(question["peer"])), request)
        self._tell(request, answer, book)
        return {"message": encode(answer).hex()}

    def _tell(self, request: Message, answer: Message, book: Bookkeeper) -> None:
        """What the witness has given its word for."""
        me = self.process
        match request, answer:
            case RequestVote(), Voted():
                say("voted", by=me, body=request.body, signature=request.signature, vote=answer.signature)
            case StoreCertificate(), Stored() if not is_decision(request.certificate):
                say("stored", by=me, epoch=answer.epoch, certificate=request.certificate)
            case StoreCertificate(), Stored():
                say("epoch", by=me, epoch=answer.epoch)
            case Join(), Joined():
                snapshot = answer.count, answer.root.hex()
                say("joined", by=me, epoch=request.epoch, round=request.round, it=snapshot, prepared=answer.prepared)
            case Propose(), Balloted():
                say("balloted", by=me, round=request.round, checkpoint=request.checkpoint)
            case Commit(), Balloted():
                say("committed", by=me, round=request.round, checkpoint=request.checkpoint)

    async def _end_epochs(self, book: Bookkeeper) -> None:
        while True:
            await self._wait_for_the_end()
            await self._or_refused(book.epochs.accept())
            if self._proposes():
                await self._or_refused(self._end_epoch(book))

    def _proposes(self) -> bool:
        """Anybody. With a Byzantine witness the honest ones take turns: it makes trouble enough."""
        if not self.world.liars:
            return self.chance.random() < PROPOSE_CHANCE
        turn = int((time.time() - self.world.begun) / self.world.epoch_seconds)
        return self.world.honest[turn % len(self.world.honest)] == self.process

    async def _wait_for_the_end(self) -> None:
        """Any time. With a Byzantine witness all at one time, as if by their clocks: who agrees is frozen by it."""
        seconds = self.world.epoch_seconds
        if self.world.liars:
            await trio.sleep(seconds - (time.time() - self.world.begun) % seconds)
            await trio.sleep(CLOCKS_DIFFER if self._proposes() else 0)
        else:
            await trio.sleep(self.chance.expovariate(1 / seconds))

    async def _end_epoch(self, book: Bookkeeper) -> None:
        say("epoch", by=self.process, epoch=await book.epochs.end())

    # --- proofs ---

    async def _gossip(self, book: Bookkeeper) -> None:
        """What it finds goes to all other witnesses; now and then it asks one for what it has."""
        others = [name for name in self.world.witnesses if name != self.process]
        while others:
            for message in book.evidence.to_tell():
                for name in others:
                    await self._or_refused(self._send_gossip(name, message))
            await self._or_refused(self._fetch_evidence(book, self.chance.choice(others)))
            await trio.sleep(GOSSIP_SECONDS)

    async def _send_gossip(self, name: str, message: bytes) -> None:
        async with connect(self.world.socket(name)) as line:
            await line.ask({"gossip": message.hex()})

    async def _hear_gossip(self, book: Bookkeeper, message: bytes) -> None:
        if book.evidence.judge(message) is Verdict.ACCEPT:
            await book.evidence.take_all(decode_as(Evidence, message))

    async def _fetch_evidence(self, book: Bookkeeper, name: str) -> None:
        try:
            answer = await self._peers[self.process].ask(signer(name).node, FetchEvidence(0, 64), Evidence)
        except PeerUnreachable:
            return
        if isinstance(answer, Evidence):
            await book.evidence.take_all(answer)
        say("proofs", by=self.process, known=[f"{proof['epoch']} {proof['who']}" for proof in book.evidence.listed()])

    # --- the issuer ---

    async def _grant(self, book: Bookkeeper, payer: NodeId) -> None:
        say("granted", order=await book.grant(payer, GRANT))

    async def _keep_house(self) -> None:
        while True:
            for book in self.books.values():
                await self._or_refused(book.keep_house())
            await trio.sleep(0.3)

    # --- payers ---

    async def payers(self) -> None:
        """Ask at full speed, and deliver vouchers that may not have been heard."""
        for name, book in self.books.items():
            for _ in range(ASKING_AT_ONCE):
                self.nursery.start_soon(self._ask_on, name, book)
        while True:
            for name, book in self.books.items():
                await self._or_refused(self._deliver(name, book))
                await self._or_refused(book.sync())
            await trio.sleep(0.1)

    async def _ask_on(self, name: str, book: Bookkeeper) -> None:
        while True:
            await self._or_refused(self._ask(name, book, self.chance.choice(WORKERS)))

    async def _ask(self, name: str, book: Bookkeeper, worker: str) -> None:
        async with book.lease(signer(worker).node, *PRICES, bytes(32), NEED) as lease:
            say("held", channel=lease.channel)
            async with connect(self.world.socket("workers")) as line:
                greeting = {"worker": worker, "channel": lease.channel.hex(), "payer": signer(name).node.hex()}
                before = await line.ask(greeting | {"do": "query"})
                if before.get("counts") != [lease.units_in, lease.units_out]:
                    lease.spoil()
                    raise LineBroken(f"the worker stands elsewhere: {before}")
                await self._pay(lease, line)

    async def _pay(self, lease: ChannelLease, line: Line) -> None:
        units_in, units_out = lease.units_in + self.chance.randint(1, 500), lease.units_out
        for _ in range(self.chance.randint(1, 5)):
            units_out += self.chance.randint(1, 700)
            pay = await lease.sign(units_in, units_out, TRANSCRIPT)
            say("signed", channel=lease.channel, voucher=pay.voucher)
            voucher = {"voucher": pay.voucher.hex(), "signature": pay.signature.hex(), "counts": [units_in, units_out]}
            lease.confirm((await line.ask(voucher)).get("cumulative", -1))
        await line.send({"end": True})

    async def _deliver(self, name: str, book: Bookkeeper) -> None:
        workers = {signer(worker).node: worker for worker in WORKERS}
        for node, channel, pay in book.unheard_vouchers():
            async with connect(self.world.socket("workers")) as line:
                greeting = {"do": "hear", "worker": workers[node], "payer": signer(name).node.hex()}
                voucher = {"voucher": pay.voucher.hex(), "signature": pay.signature.hex()}
                answer = await line.ask(greeting | voucher)
                if "cumulative" in answer:
                    book.voucher_heard(channel, answer["cumulative"])

    # --- workers ---

    async def workers(self) -> None:
        """Serve queries, settle."""
        await listen(self.world.socket("workers"), self._serve, self.nursery)
        while True:
            for book in self.books.values():
                await self._or_refused(book.keep_house())
                await self._or_refused(book.close_idle(SETTLE_IDLE_MS))
            await trio.sleep(0.3)

    async def _serve(self, line: Line) -> None:
        greeting = await line.receive()
        book, payer = self.books[greeting["worker"]], NodeId(bytes.fromhex(greeting["payer"]))
        serve = self._query if greeting["do"] == "query" else self._hear
        try:
            await serve(line, book, payer, greeting)
        except Refused as refusal:
            say("not served", code=refusal.code.name, message=refusal.message)
            await line.send({"refused": refusal.message})

    async def _query(self, line: Line, book: Bookkeeper, payer: NodeId, greeting: Json) -> None:
        channel = ChannelId(bytes.fromhex(greeting["channel"]))
        async with book.serving(channel):
            before = await book.cover(channel, payer)
            await line.send({"counts": [before.units_in, before.units_out]})
            while "voucher" in (message := await line.receive()):
                pay = Pay(bytes.fromhex(message["voucher"]), bytes.fromhex(message["signature"]))
                units_in, units_out = message["counts"]
                cumulative = await book.take_voucher(channel, pay, units_in, units_out, TRANSCRIPT)
                say("taken", channel=channel, voucher=pay.voucher)
                await line.send({"cumulative": cumulative})
        if self.chance.random() < CLOSE_CHANCE:
            await self._close(book, channel)

    async def _close(self, book: Bookkeeper, channel: ChannelId) -> None:
        try:
            await book.close(channel)
        except Refused as refusal:
            say("not closed", code=refusal.code.name, message=refusal.message)
        else:
            say("closed", channel=channel)

    async def _hear(self, line: Line, book: Bookkeeper, payer: NodeId, greeting: Json) -> None:
        pay = Pay(bytes.fromhex(greeting["voucher"]), bytes.fromhex(greeting["signature"]))
        cumulative = await book.hear_voucher(pay, payer)
        say("heard", voucher=pay.voucher)
        await line.send({"cumulative": cumulative})

    async def _or_refused(self, doing: Awaitable[Any]) -> None:
        try:
            await doing
        except Refused as refusal:
            say("refused", code=refusal.code.name, message=refusal.message)
            await trio.sleep(PAUSE_SECONDS)
        except LineBroken:
            await trio.sleep(PAUSE_SECONDS)


_ROLES: dict[str, Callable[[Process], Awaitable[None]]] = {
    "payers": Process.payers,
    "workers": Process.workers,
}


def vote_carelessly() -> None:
    """Wrong: votes again for another order with a number. The tests must find it."""
    careful = witness.decide  # type: ignore[attr-defined]  # imported there

    def decide(federation: Federation, view: View, checked: CheckedOrder, moment: Moment, signer: Signer) -> Lock:
        try:
            lock: Lock = careful(federation, view, checked, moment, signer)
        except Refused as refusal:
            if refusal.code is not ErrorCode.EQUIVOCATION:
                raise
            vote = signer.sign(federation.id, vote_body(checked))
            return Lock(checked.hash, vote, checked.signature, view.epoch, checked.body)
        return lock

    witness.decide = decide  # type: ignore[attr-defined]


async def _main(folder: Path, process: str) -> None:
    if SmallWorld.open(folder).careless and process == "witness-0":
        vote_carelessly()
    with hastened():
        async with trio.open_nursery() as nursery:
            await Process(SmallWorld.open(folder), process, nursery).run()


if __name__ == "__main__":
    trio.run(_main, Path(sys.argv[1]), sys.argv[2])
