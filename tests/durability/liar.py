"""A Byzantine witness: `python -m tests.durability.liar FOLDER PROCESS`.

Rule: it breaks every promise that a witness can break with its own key. It votes for every order that it is asked for,
acknowledges what it does not store and forgets what it acknowledges, lies about heads, logs, records and proofs, signs
two snapshots of one epoch and two ballots of one round, coordinates with two proposals at once, answers late, never, or
with nonsense. It cannot sign for others; that is all that holds it.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from node.bookkeeper import Bookkeeper
from node.witness import Witness
from protocol.codec import body_hash, decode, encode
from protocol.errors import ProtocolError, Refused
from protocol.ids import NO_HASH, NodeId
from protocol.ledger import epochs, merkle
from protocol.ledger.checkpoints import previous_checkpoint
from protocol.ledger.epochs import COMMIT, PREPARE
from protocol.ledger.orders import AccountOrder, Settlement, voted_object
from protocol.ledger.state import View
from protocol.messages import (
    Ballot,
    Balloted,
    Certificates,
    Checkpoint,
    Commit,
    Evidence,
    FetchHead,
    FetchRecords,
    Head,
    Ids,
    Join,
    Joined,
    Message,
    Promise,
    Propose,
    Records,
    RequestVote,
    Snapshot,
    Standing,
    StoreCertificate,
    Stored,
    Vote,
    Voted,
)
from tests.durability.books import Process, hastened
from tests.durability.small_world import SmallWorld
from tests.durability.wire import MAX_LINE, Json
from tests.protocol.ledger_world import signer

NONSENSE = 0.03  # of the answers
SILENCE = 0.05
DELAY = 0.1
LIE = 0.5  # of the answers about which it can lie
MAX_DELAY_SECONDS = 0.5
COORDINATE_SECONDS = 2.0


class Liar(Process):
    """See the module. Beside its lies it keeps a ledger like everybody, so that its answers look alike."""

    async def _answer_line(self, book: Bookkeeper, question: Json) -> Json:
        chance = self.chance.random()
        if chance < SILENCE:
            await trio.sleep_forever()
        if chance < SILENCE + DELAY:
            await trio.sleep(self.chance.uniform(0.0, MAX_DELAY_SECONDS))
        if self.chance.random() < NONSENSE:
            return self.chance.choice(({"message": "ff" * 40}, {"message": "zz"}, {"massage": 1}, {"message": ""}))
        if "message" not in question:
            return {}
        request = decode(bytes.fromhex(question["message"]), MAX_LINE)
        handle = self._lies.get(type(request))
        if handle is None or (type(request) not in _ALWAYS and self.chance.random() > LIE):
            return await self._honestly(book, question)
        answer = await handle(book, request)
        return await self._honestly(book, question) if answer is None else {"message": encode(answer).hex()}

    async def _honestly(self, book: Bookkeeper, question: Json) -> Json:
        answer = await book.answer(
            NodeId(bytes.fromhex(question["peer"])), decode(bytes.fromhex(question["message"]), MAX_LINE)
        )
        lie = self._about.get(type(answer))
        return {"message": encode(lie(answer) if lie and self.chance.random() < LIE else answer).hex()}

    @property
    def _lies(self) -> dict[type[Message], Callable[[Bookkeeper, Any], Awaitable[Message | None]]]:
        """Answers instead of the ledger's."""
        return {
            RequestVote: self._vote,
            StoreCertificate: self._store,
            FetchHead: self._head,
            FetchRecords: self._records,
            Join: self._join,
            Propose: partial(self._ballot, PREPARE),
            Commit: partial(self._ballot, COMMIT),
        }

    @property
    def _about(self) -> dict[type[Message], Callable[[Any], Message]]:
        """What becomes of an honest answer."""
        return {
            Ids: lambda answer: replace(answer, total=answer.total + 5, ids=(self._random(32), *answer.ids[:200])),
            Certificates: lambda answer: replace(answer, certificates=answer.certificates[::-1]),
            Evidence: lambda answer: Evidence(1, (self._random(80),)),
            Standing: lambda answer: Standing(answer.epoch + self.chance.randint(0, 1), 1, 0, 0),
        }

    @property
    def _key(self) -> Any:
        return signer(self.process)

    @property
    def _index(self) -> int:
        return self.world.witnesses.index(self.process)

    def _random(self, size: int) -> bytes:
        return self.chance.randbytes(size)

    def _sign(self, message: Message) -> bytes:
        signed: bytes = self._key.sign(self.world.federation.id, encode(message))
        return signed

    async def _vote(self, book: Bookkeeper, request: RequestVote) -> Message | None:
        """Everybody's darling."""
        order = decode(request.body)
        if not isinstance(order, AccountOrder | Settlement):
            return None
        object_id, version = voted_object(order)
        return Voted(self._index, self._sign(Vote(body_hash(request.body), version, object_id)))

    async def _store(self, book: Bookkeeper, request: StoreCertificate) -> Message | None:
        view = View(book._store)
        return Stored(view.log_length + self.chance.randint(0, 3), view.epoch)

    async def _head(self, book: Bookkeeper, request: FetchHead) -> Message | None:
        return Head(View(book._store).epoch, self.chance.randint(0, 9), self._random(32), b"", b"")

    async def _records(self, book: Bookkeeper, request: FetchRecords) -> Message | None:
        """What it has, with a byte changed here and there."""
        view = View(book._store)
        known = [record for record in map(view.record, request.ids) if record is not None]
        spoilt = [record[:-1] + bytes([record[-1] ^ 1]) for record in known]
        return Records(tuple(spoilt[:8]))

    async def _join(self, book: Bookkeeper, request: Join) -> Message | None:
        """Now this snapshot, now that one, and never was anything prepared."""
        view = View(book._store)
        ids = sorted(self._random(32) for _ in range(self.chance.randint(0, 2)))
        snapshot = Snapshot(request.epoch, previous_checkpoint(self.world.federation, view), len(ids), merkle.root(ids))
        promise = Promise(request.epoch, request.round, 0, NO_HASH)
        signed = self._sign(snapshot), self._sign(promise)
        return Joined(self._index, snapshot.count, snapshot.root, *signed, 0, b"", ())

    async def _ballot(self, phase: int, book: Bookkeeper, request: Propose | Commit) -> Message | None:
        """For whatever is proposed."""
        checkpoint = epochs.open_checkpoint(request.checkpoint)
        ballot = Ballot(phase, checkpoint.epoch - 1, request.round, body_hash(request.checkpoint))
        return Balloted(self._index, self._sign(ballot))

    # --- as a coordinator ---

    async def _end_epochs(self, book: Bookkeeper) -> None:
        """Two proposals in one round, each to some of the others."""
        while True:
            await trio.sleep(self.chance.expovariate(1 / COORDINATE_SECONDS))
            try:
                await self._or_refused(book.epochs.accept())
                await self._or_refused(self._mislead(book))
            except (ProtocolError, ValueError):
                continue

    async def _mislead(self, book: Bookkeeper) -> None:
        view, change = View(book._store), book.epochs
        known = epochs.role(view)
        number = epochs.round_of(self.world.federation, self._index, known.promised + 1 if known else 0)
        request = Join(view.epoch, number)
        joined = await change._all_join(request)
        answers = [answer for answer, _ in joined.values()]
        checkpoint = await change._new_checkpoint(joined)
        opened = epochs.open_checkpoint(checkpoint)
        others = [
            replace(opened, time_ms=opened.time_ms + 1),
            replace(opened, count=opened.count + 1),
            replace(opened, sources=opened.sources[::-1]),
        ]
        async with trio.open_nursery() as nursery:
            for index in range(len(self.world.witnesses)):
                proposed = self.chance.choice([opened, *others])
                nursery.start_soon(self._propose, change, index, epochs.proposal(number, encode(proposed), answers))

    async def _propose(self, change: Any, index: int, request: Propose) -> None:
        """Propose, and commit with ballots of its own making."""
        try:
            await change._quorum.ask(index, request, Balloted)
            ballots = await change._ballots(request, self._prepare_ballot(request))
            await change._quorum.ask(index, Commit(request.round, request.checkpoint, ballots), Balloted)
        except Refused:
            return

    def _prepare_ballot(self, request: Propose) -> Ballot:
        checkpoint: Checkpoint = epochs.open_checkpoint(request.checkpoint)
        return Ballot(PREPARE, checkpoint.epoch - 1, request.round, body_hash(request.checkpoint))


_ALWAYS = (RequestVote,)


async def _main(folder: Path, process: str) -> None:
    Witness.forgot = lambda self, view, certificate: False  # type: ignore[method-assign]  # it knows well what it does
    with hastened():
        async with trio.open_nursery() as nursery:
            await Liar(SmallWorld.open(folder), process, nursery).run()


if __name__ == "__main__":
    trio.run(_main, Path(sys.argv[1]), sys.argv[2])
