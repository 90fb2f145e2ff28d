"""Orders from signature to finality.

Rule: an account's orders are made one after the other, by this node alone. An order is stored before it is sent, and
once it was sent no other order gets its number in that epoch: it is sent again until its fate is known. An order is
final when a quorum of witnesses has stored its certificate in one epoch; only then is it acted upon.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from node.ledger_writer import LedgerWriter
from node.quorum import Quorum
from node.replica import Replica
from node.store import Store
from node.witness import Witness
from protocol import params
from protocol.codec import decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import NodeId
from protocol.ledger.certificates import certify, check_vote
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import AccountOrder, CheckedOrder, MissingPredecessor, check_order
from protocol.ledger.state import Verify, View
from protocol.ledger.votes import check_first
from protocol.messages import (
    FetchHead,
    FetchIds,
    Head,
    Ids,
    RequestVote,
    StoreCertificate,
    Stored,
    Voted,
    WitnessSignature,
)
from protocol.signing import Signer

log = logging.getLogger("mtor.ledger")

BEHIND = (
    ErrorCode.BAD_SEQUENCE,
    ErrorCode.UNKNOWN_CHANNEL,
    ErrorCode.INSUFFICIENT_FUNDS,
    ErrorCode.NOT_RELATED,
    ErrorCode.SUPPLY_CAP,
)  # what a witness says that has not heard of everything yet
LATE_STORES = 64  # certificates on their way to witnesses that were slower than a quorum
FINAL_REMEMBERED = 10_000

Answer = TypeVar("Answer")

_PENDING = b"m:pending:"  # + account: its order that was signed and is not yet known to be applied


class Ordering:
    """Makes orders for the keys of one node."""

    def __init__(
        self,
        federation: Federation,
        store: Store,
        writer: LedgerWriter,
        witness: Witness,
        quorum: Quorum,
        replica: Replica,
        clock: Callable[[], int],
        verify: Verify,
        background: Callable[[], trio.Nursery | None],
    ) -> None:
        """`background` is where certificates go on to slow witnesses; None while the node starts or stops."""
        self._federation = federation
        self._store = store
        self._writer = writer
        self._witness = witness
        self._quorum = quorum
        self._replica = replica
        self._clock = clock
        self._verify = verify
        self._background = background
        self._late = 0
        self._turns: dict[NodeId, trio.Lock] = {}
        self._known: set[NodeId] = set()  # accounts whose true head is known here
        self._final: dict[bytes, int] = {}  # orders known to be final, and in which epoch

    @asynccontextmanager
    async def turn(self, account: NodeId, signer: Signer) -> AsyncIterator[View]:
        """Have the account to oneself, its true head known and no order of before in flight. Raises `Refused`."""
        async with self._turns.setdefault(account, trio.Lock()):
            await self._ready_to_order(account, signer)
            yield View(self._store)

    async def _ready_to_order(self, account: NodeId, signer: Signer) -> None:
        """Know the account's true head, and finish the order that an earlier life left behind."""
        if account not in self._known:
            await self._replica.sync()
            await self._learn_head(account, signer)
            self._known.add(account)
        await self._finish_pending(account)

    async def _learn_head(self, account: NodeId, signer: Signer) -> None:
        """Ask a quorum: whoever has voted for an order of ours that is not known here gives it back."""
        heads = await self._quorum.gather(lambda index: self._quorum.ask(index, FetchHead(account), Head), "answered")
        standing = View(self._store).account(account)
        for head in heads.values():
            if not head.body or head.next_sequence != standing.next_sequence:
                continue
            request = RequestVote(head.body, head.signature)
            try:
                found = check_order(self._federation, View(self._store, self._verify), request.body, request.signature)
            except Refused:
                continue
            asked_for = (found.object, found.version) == (account, standing.next_sequence)  # not somebody else's
            if asked_for and self._store.get(_PENDING + account) is None:
                log.warning("an order of this account was found at a witness, and is sent again")
                await self._remember(account, request)

    async def _finish_pending(self, account: NodeId) -> None:
        stored = self._store.get(_PENDING + account)
        if stored is None:
            return
        pending = decode_as(RequestVote, stored)
        try:
            await self.submit(pending.body, pending.signature)
        except Refused as refusal:
            if not await self._superseded(account, pending):
                raise
            log.warning("an order of before has become void: %s", refusal)
        await self._forget(account)

    async def _superseded(self, account: NodeId, pending: RequestVote) -> bool:
        """True if the order can never count any more: its epoch is over, or its number is taken."""
        await self._replica.looked()
        view = View(self._store)
        try:
            checked = check_order(self._federation, view, pending.body, pending.signature)
        except Refused:
            return True
        assert isinstance(checked.order, AccountOrder)
        return checked.order.epoch < view.epoch or checked.version < view.account(account).next_sequence

    async def order(self, account: NodeId, signer: Signer, body: bytes) -> None:
        """Sign an account's next order, store it, and have it certified, final and applied. Raises `Refused`."""
        request = RequestVote(body, signer.sign(self._federation.id, body))
        view = View(self._store, self._verify)
        checked = check_order(self._federation, view, request.body, request.signature)
        check_first(self._federation, view, checked, self._clock())  # after it has left there is no other
        await self._remember(account, request)
        try:
            await self.submit(request.body, request.signature)
        except Refused as refusal:
            if refusal.code is not ErrorCode.OVERLOADED and await self._superseded(account, request):
                await self._forget(account)
            raise
        await self._forget(account)

    def is_pending(self, account: NodeId) -> bool:
        """True if an order of the account is signed and its fate is not known."""
        return self._store.get(_PENDING + account) is not None

    async def _remember(self, account: NodeId, request: RequestVote) -> None:
        await self._writer.commit(lambda draft: draft.update({_PENDING + account: encode(request)}))

    async def _forget(self, account: NodeId) -> None:
        await self._writer.commit(lambda draft: draft.update({_PENDING + account: None}))

    async def submit(self, body: bytes, signature: bytes) -> None:
        """Votes, certificate, stored by a quorum, applied here. Raises `Refused`."""
        checked = check_order(self._federation, View(self._store, self._verify), body, signature)
        known = View(self._store).record(checked.hash)
        if known is not None and self._federation.single:
            return
        certificate = known or certify(checked, await self._collect_votes(checked))
        await self.make_final(checked.hash, certificate)
        if self._federation.single:
            await self._replica.sync()
        else:
            await self._apply(certificate)

    async def _apply(self, certificate: bytes) -> None:
        """Apply what is final here, too; what it builds on comes first."""
        try:
            await self._writer.commit(lambda draft: self._witness.apply(draft, certificate))
        except MissingPredecessor:
            await self._replica.looked()
            await self._writer.commit(lambda draft: self._witness.apply(draft, certificate))

    # --- votes ---------------------------------------------------------------------------------------

    async def _collect_votes(self, checked: CheckedOrder) -> list[WitnessSignature]:
        request = RequestVote(checked.body, checked.signature)

        async def one(index: int) -> WitnessSignature:
            voted = await self._asking(index, lambda: self._quorum.ask(index, request, Voted))
            vote = WitnessSignature(index, voted.signature)
            check_vote(self._federation, View(self._store, self._verify), checked, vote)
            return vote

        return list((await self._quorum.gather(one, "voted")).values())

    async def _asking(self, index: int, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """A witness that has not heard of everything yet is told what it lacks, and asked again."""
        try:
            return await ask()
        except Refused as refusal:
            if refusal.code not in BEHIND or self._federation.single:
                raise
        await self._tell(index)
        return await ask()

    async def _tell(self, index: int) -> None:
        """Hand a witness what of the newest part of this node's log it has not. Raises `Refused`."""
        total = (await self._quorum.ask(index, FetchIds(0, 1), Ids)).total
        page = await self._quorum.ask(index, FetchIds(max(0, total - params.MAX_IDS), params.MAX_IDS), Ids)
        known, view = set(page.ids), View(self._store)
        start = max(view.epoch_start, view.log_length - params.MAX_IDS)
        for position in range(start, view.log_length):
            identity = view.id_at(position)
            record = view.record(identity) if identity is not None and identity not in known else None
            if record is not None:
                await self._quorum.ask(index, StoreCertificate(record), Stored)

    # --- finality ------------------------------------------------------------------------------------

    def is_final(self, identity: bytes) -> bool:
        """True if this node has seen to it that a quorum stored the order in the epoch in force, or it is in a
        checkpoint."""
        view = View(self._store)
        position = view.position(identity)
        closed = position is not None and position < view.epoch_start
        return self._federation.single or closed or self._final.get(identity) == view.epoch

    async def make_final(self, identity: bytes, certificate: bytes) -> None:
        """Have a certificate stored by a quorum, all in one epoch. Raises `Refused`."""
        if self.is_final(identity) and not self._federation.single:
            return
        request = StoreCertificate(certificate)
        stored: dict[int, Stored] = {}

        async def one(index: int) -> Stored:
            answer = await self._asking(index, lambda: self._quorum.ask(index, request, Stored))
            stored[index] = answer
            return answer

        acknowledged = await self._quorum.gather(one, "stored it", lambda answer: answer.epoch)
        self._note_final(identity, next(iter(acknowledged.values())).epoch)
        for index in range(len(self._quorum.witnesses)):
            if index not in stored:
                self._tell_late(index, request)

    def _note_final(self, identity: bytes, epoch: int) -> None:
        if len(self._final) >= FINAL_REMEMBERED:
            self._final.clear()
        self._final[identity] = epoch

    def _tell_late(self, index: int, request: StoreCertificate) -> None:
        """A witness that was slower than a quorum gets the certificate all the same, if there is room."""
        nursery = self._background()
        if nursery is not None and self._late < LATE_STORES:
            self._late += 1
            nursery.start_soon(self._store_late, index, request)

    async def _store_late(self, index: int, request: StoreCertificate) -> None:
        try:
            await self._quorum.ask(index, request, Stored)
        except Refused as refusal:
            log.debug("witness %d did not store a certificate: %s", index, refusal)
        finally:
            self._late -= 1
