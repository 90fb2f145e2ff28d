"""A witness's part in ending an epoch, and its turn to coordinate.

Rule: what this witness signs, `protocol.ledger.epochs` decides, and it is on the disk before it leaves, with the orders
behind it. A coordinator is believed in nothing: every snapshot, order and ballot is checked again. A change that was
begun is brought to its end: a witness that stays frozen coordinates a later round itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from node.checkpoint_keeper import CheckpointKeeper
from node.ledger_writer import LedgerWriter
from node.paging import KeptAnswer, page
from node.quorum import Quorum
from node.replica import Replica
from node.store import Snapshot, Store
from protocol import params
from protocol.codec import body_hash
from protocol.errors import ErrorCode, Refused
from protocol.ids import NodeId, short
from protocol.ledger import epochs, merkle
from protocol.ledger.checkpoints import Union, epoch_orders, last_checkpoint_ms, outcome
from protocol.ledger.epochs import COMMIT, PREPARE, ROLE, Seat
from protocol.ledger.genesis import Federation
from protocol.ledger.state import ABSTAIN, EPOCH, LOG_LENGTH, Draft, Puts, Verify, View, number, u64
from protocol.messages import (
    Ballot,
    Balloted,
    Commit,
    FetchSnapshot,
    FetchStanding,
    Ids,
    Join,
    Joined,
    Propose,
    Standing,
    StoreCertificate,
    Stored,
    WitnessSignature,
)
from protocol.signing import Signer

log = logging.getLogger("mtor.ledger")

ATTEMPTS = 5  # at a ledger that keeps moving, or at rounds that others have joined
PATIENCE_SECONDS = 30.0  # a witness that is frozen for so long coordinates itself, one a little later than another
STAGGER_SECONDS = 15.0
ROUND_SECONDS = 3.0  # a coordinator's second round comes no sooner
MAX_ROUND_SECONDS = 600.0
MAX_AHEAD = 1_000_000  # orders that another witness's snapshot may have beyond one's own
SPREAD_SECONDS = 10.0  # for telling the others what was decided

_CONSENT = b"m:consent"  # the epoch (u64) + 1 whose end this witness's operator agreed to

Signed = TypeVar("Signed")

_OwnOrders = KeptAnswer[tuple[Union, bytes]]  # what this witness's log holds of the epoch, and its root


class _Moved(Exception):
    """The ledger changed while an answer was worked out."""


@dataclass(frozen=True, slots=True)
class EpochStatus:
    """Where this node stands. Times in Unix ms."""

    epoch: int
    began_ms: int
    due_ms: int
    due: bool
    witness: bool
    frozen: bool
    round: int  # the last one joined
    prepared: int  # round + 1 of the checkpoint that it prepared last; 0: none
    agreed: bool  # the operator said `accept`
    abstaining: bool
    first_epoch: int  # the first whose orders are here


@dataclass(frozen=True, slots=True)
class _Pace:
    """What this witness has joined of one coordinator. Each further round waits twice as long, so that none of
    them can break off the others' rounds for ever."""

    epoch: int
    round: int = -1
    rounds: int = 0
    next: float = 0.0  # when another one may begin

    def after(self, round_: int, now: float) -> _Pace:
        """When this round was joined."""
        if round_ == self.round:
            return self
        wait = min(ROUND_SECONDS * 2**self.rounds, MAX_ROUND_SECONDS)
        return _Pace(self.epoch, round_, self.rounds + 1, now + wait)


class EpochChange:
    """One node's side of `Join`, `Propose`, `Commit`, and the coordinator's."""

    def __init__(
        self,
        federation: Federation,
        store: Store,
        writer: LedgerWriter,
        signer: Signer,
        quorum: Quorum,
        replica: Replica,
        checkpoints: CheckpointKeeper,
        clock: Callable[[], int],
        verify: Verify,
    ) -> None:
        self._federation = federation
        self._store = store
        self._writer = writer
        self._quorum = quorum
        self._replica = replica
        self._checkpoints = checkpoints
        self._clock = clock
        self._verify = verify
        index = federation.witness_index(signer.node)
        self._seat = None if index is None else Seat(federation, signer, index)
        self._collected: dict[int, Union] = {}  # for this node's own proposal, by witness
        self._own_snapshot = KeptAnswer[Sequence[bytes]]()
        self._frozen_since = 0.0
        self._paces: dict[int, _Pace] = {}  # by coordinator
        self._coordinating = trio.Lock()

    def status(self) -> EpochStatus:
        """Where this node stands."""
        view = View(self._store)
        known = epochs.role(view)
        began = last_checkpoint_ms(self._federation, view)
        return EpochStatus(
            view.epoch,
            began,
            began + self._federation.genesis.epoch_length_ms,
            epochs.due(self._federation, view, self._clock()),
            self._seat is not None,
            known is not None,
            known.promised if known else 0,
            known.prepared if known else 0,
            self._agreed(view),
            view.abstaining,
            view.first_epoch,
        )

    async def accept(self) -> int:
        """The operator agrees that the epoch in force ends, due or not. Which one it is. Raises `Refused`."""
        self._own_seat()

        def decide(draft: Draft) -> int:
            epoch = View(draft).epoch
            draft.update({_CONSENT: u64(epoch + 1)})
            return epoch

        return await self._writer.commit(decide)

    def _agreed(self, view: View) -> bool:
        value = view.reader.get(_CONSENT)
        return value is not None and number(value) == view.epoch + 1

    def _own_seat(self) -> Seat:
        if self._seat is None:
            raise Refused(ErrorCode.NOT_A_WITNESS, "only a witness takes part in ending an epoch")
        return self._seat

    # --- the witness ---------------------------------------------------------------------------------

    def standing(self, request: FetchStanding) -> Standing:
        """Where this witness stands. Raises `Refused` (NOT_A_WITNESS)."""
        self._own_seat()
        view = View(self._store)
        return epochs.standing(self._federation, view, self._clock(), agreed=self._agreed(view))

    async def join(self, request: Join, peer: NodeId) -> Joined:
        """Freeze and promise, if the epoch is due or the operator agreed. Raises `Refused`."""
        seat, coordinator = self._own_seat(), self._coordinator(peer)
        self._check_pace(request, coordinator)

        def work(snapshot: Snapshot) -> tuple[Joined, Puts]:
            view = View(snapshot, self._verify)
            known = epochs.standing(self._federation, view, self._clock(), agreed=self._agreed(view))
            return epochs.join(seat, snapshot, request, coordinator, willing=bool(known.willing))

        joined = await self._signed(work)
        self._paces[coordinator] = self._pace(request, coordinator).after(request.round, trio.current_time())
        log.info("epoch %d ends: joined round %d", request.epoch, request.round)
        return joined

    async def propose(self, request: Propose, peer: NodeId) -> Balloted:
        """Check a proposal, and ballot for it. Raises `Refused`."""
        seat, coordinator = self._own_seat(), self._coordinator(peer)
        union = await self._examine(request, peer) if epochs.needs_union(request) else None
        checkpoint = epochs.open_checkpoint(request.checkpoint)

        def work(snapshot: Snapshot) -> tuple[Balloted, Puts]:
            view = View(snapshot, self._verify)
            found = None if union is None else outcome(self._federation, snapshot, union, checkpoint.time_ms)
            answer, puts = epochs.prepare(seat, view, request, coordinator, self._clock(), found)
            return answer, puts | (self._checkpoints.keep_prepared(snapshot, union) if union is not None else {})

        return await self._signed(work)

    async def commit(self, request: Commit, peer: NodeId) -> Balloted:
        """Commit to what a quorum prepared. Raises `Refused`."""
        seat, coordinator = self._own_seat(), self._coordinator(peer)

        def work(snapshot: Snapshot) -> tuple[Balloted, Puts]:
            return epochs.commit(seat, View(snapshot, self._verify), request, coordinator)

        return await self._signed(work)

    async def snapshot_ids(self, request: FetchSnapshot) -> Ids:
        """The ids behind a source: this witness's own, or one that it collected as coordinator. Raises `Refused`."""
        own = self._seat is not None and request.witness == self._seat.index
        return page(await self._own_ids() if own else self._collected_ids(request.witness), request)

    async def _own_ids(self) -> Sequence[bytes]:
        """What this witness signed that it holds. While it is frozen its log does not move."""
        snapshot = self._store.snapshot()
        view = View(snapshot)
        if epochs.role(view) is None:
            raise Refused(ErrorCode.INVALID_REQUEST, "this witness has signed no snapshot of this epoch")
        return await self._own_snapshot.get((view.epoch, view.log_length), lambda: epoch_orders(snapshot).ids)

    def _collected_ids(self, witness: int) -> Sequence[bytes]:
        union = self._collected.get(witness)
        if union is None:
            raise Refused(ErrorCode.INVALID_REQUEST, "this node has not collected that snapshot")
        return union.ids

    def _check_pace(self, request: Join, coordinator: int) -> None:
        """One coordinator cannot run through the rounds and leave the others no time."""
        pace = self._pace(request, coordinator)
        if request.round != pace.round and trio.current_time() < pace.next:
            raise Refused(ErrorCode.OVERLOADED, "give the round before some time", int(ROUND_SECONDS * params.SECONDS))

    def _pace(self, request: Join, coordinator: int) -> _Pace:
        known = self._paces.get(coordinator)
        return known if known is not None and known.epoch == request.epoch else _Pace(request.epoch)

    def _coordinator(self, peer: NodeId) -> int:
        index = self._federation.witness_index(peer)
        if index is None:
            raise Refused(ErrorCode.NOT_A_WITNESS, "only witnesses coordinate the end of an epoch")
        return index

    async def _signed(self, work: Callable[[Snapshot], tuple[Signed, Puts]]) -> Signed:
        """Work an answer out beside the running node; it leaves once what it rests on is written and still true."""
        for _ in range(ATTEMPTS):
            snapshot = self._store.snapshot()
            answer, puts = await trio.to_thread.run_sync(work, snapshot)
            try:
                await self._writer.commit(partial(self._put_if_unmoved, snapshot, puts))
            except _Moved:
                continue
            return answer
        raise Refused(ErrorCode.OVERLOADED, "the ledger moves too fast to freeze", params.SECONDS)

    def _put_if_unmoved(self, snapshot: Snapshot, puts: Puts, draft: Draft) -> None:
        if any(draft.get(key) != snapshot.get(key) for key in (ROLE, LOG_LENGTH, EPOCH, ABSTAIN)):
            raise _Moved
        draft.update(puts)

    async def _examine(self, propose: Propose, peer: NodeId) -> Union:
        """The union of a proposal's sources, each checked. Raises `Refused`."""
        self._check_signed(propose)
        found: dict[bytes, bytes] = {}
        own = _OwnOrders()
        for source in epochs.open_checkpoint(propose.checkpoint).sources:
            known = self._collected.get(source.witness) if self._is_own(peer) else None
            union = known or await self._collect(peer, source.witness, source.count, source.root, own)
            found |= union.certificates
        return Union(found)

    def _check_signed(self, propose: Propose) -> None:
        """What can be said of a proposal before anything is fetched for it: only then it is worth the work."""
        view, checkpoint = View(self._store, self._verify), epochs.open_checkpoint(propose.checkpoint)
        if checkpoint.epoch != view.epoch + 1:
            raise Refused(ErrorCode.STALE_EPOCH, f"checkpoint {checkpoint.epoch}; epoch {view.epoch} is in force here")
        if epochs.role(view) is None:
            raise Refused(ErrorCode.BAD_SEQUENCE, "this witness has not joined")
        epochs.check_justified(self._federation, view, propose, view.epoch)
        for source in checkpoint.sources:
            epochs.check_snapshot(self._federation, view, source, view.epoch, checkpoint.previous)

    def _is_own(self, peer: NodeId) -> bool:
        return self._seat is not None and peer == self._seat.signer.node

    async def _collect(self, peer: NodeId, witness: int, count: int, root: bytes, own: _OwnOrders) -> Union:
        """The orders behind a snapshot, from `peer`: all there, all signed, closed and solvent. `own` are this
        witness's, which all snapshots of one round are compared with. Raises `Refused`."""
        snapshot = self._store.snapshot()
        view = View(snapshot)
        orders, own_root = await own.get((view.epoch, view.log_length), lambda: _with_root(epoch_orders(snapshot)))
        if (len(orders.certificates), own_root) == (count, root):
            return orders
        if self._is_own(peer):
            raise Refused(ErrorCode.BAD_QUORUM, "this witness's log is not what it signed")
        if count > len(orders.certificates) + MAX_AHEAD:
            raise Refused(ErrorCode.BAD_QUORUM, f"witness {witness} says that it holds {count:,} orders of this epoch")
        ids = await self._replica.fetch_ids(peer, count, partial(_snapshot_page, witness))
        if len(ids) != count or not await trio.to_thread.run_sync(_is_snapshot, ids, root):
            raise Refused(ErrorCode.BAD_QUORUM, f"the snapshot of witness {witness} is not what it signed")
        return await self._checkpoints.gather(snapshot, orders, ids, self._replica.source(peer))

    # --- the coordinator -----------------------------------------------------------------------------

    async def keep(self) -> None:
        """What has to be done by itself: end a due epoch where this witness is the only one; end what was begun."""
        if self._seat is None:
            return
        status = self.status()
        if self._federation.single and status.due and not status.abstaining:
            await self._try_to_end()
        elif status.frozen:
            self._frozen_since = self._frozen_since or trio.current_time()
            waited = trio.current_time() - self._frozen_since
            if waited > PATIENCE_SECONDS + STAGGER_SECONDS * self._seat.index:
                self._frozen_since = trio.current_time()
                await self._try_to_end()
        else:
            self._frozen_since = 0.0

    async def _try_to_end(self) -> None:
        try:
            await self.end()
        except Refused as refusal:
            log.warning("the epoch is not ended yet: %s", refusal)

    async def end(self, *, after_restore: bool = False) -> int:
        """Coordinate the end of the epoch in force. The epoch that is in force then. Raises `Refused`.

        `after_restore`: the only witness was set back, has taken back what members had, and begins anew.
        """
        seat = self._own_seat()
        async with self._coordinating:
            if after_restore and self._federation.single:
                await self._writer.commit(lambda draft: draft.update({ABSTAIN: None}))
            self._check_memory()
            await self._check_willing(seat, View(self._store).epoch)
            began = await self.accept()
            after = 0
            for attempt in range(ATTEMPTS):
                known = epochs.role(View(self._store))
                after = epochs.round_of(self._federation, seat.index, max(after, known.promised + 1 if known else 0))
                try:
                    await self._round(seat, began, after)
                    break
                except Refused as refusal:
                    if refusal.code is not ErrorCode.BAD_SEQUENCE:
                        raise
                    after += 2**attempt  # others have joined a round that this witness does not know of
                    await trio.sleep(ROUND_SECONDS)
            self._collected = {}
            return View(self._store).epoch

    def _check_memory(self) -> None:
        if View(self._store).abstaining:
            fix = (
                "`mtor ledger epoch propose --after-restore` takes back what members have, and begins anew"
                if self._federation.single
                else "propose the end of the epoch on another witness"
            )
            raise Refused(ErrorCode.ABSTAINING, f"this witness's ledger was set back, and it signs nothing: {fix}")

    async def _check_willing(self, seat: Seat, epoch: int) -> None:
        """A witness that joins stays frozen until the epoch has ended: ask first whether enough would. Raises
        `Refused` (EPOCH_CHANGING)."""
        unwilling: list[str] = []

        async def one(index: int) -> Standing:
            answer = await self._quorum.ask(index, FetchStanding(), Standing)
            if index == seat.index:
                return answer  # its operator agrees by proposing
            if not answer.willing or answer.epoch != epoch:
                unwilling.append(short(self._quorum.witnesses[index]))
                raise Refused(ErrorCode.EPOCH_CHANGING, "has not agreed")
            return answer

        try:
            await self._quorum.gather(one, "would end the epoch")
        except Refused as refusal:
            if not unwilling:
                raise
            raise Refused(
                ErrorCode.EPOCH_CHANGING,
                f"too few witnesses would end epoch {epoch}: {', '.join(unwilling)} not. Their operators run "
                "`mtor ledger epoch accept`, or wait until it is due; nothing has changed",
            ) from refusal

    async def _round(self, seat: Seat, epoch: int, number_: int) -> None:
        """One round, to its decision. Raises `Refused`."""
        joined = await self._all_join(Join(epoch, number_))
        answers = [answer for answer, _ in joined.values()]
        before = epochs.prepared_before(answers)
        checkpoint = before.checkpoint if before else await self._new_checkpoint(joined)
        propose = epochs.proposal(number_, checkpoint, answers)
        ballots = await self._ballots(propose, Ballot(PREPARE, epoch, number_, body_hash(checkpoint)))
        request = Commit(number_, checkpoint, ballots)
        commits = await self._ballots(request, Ballot(COMMIT, epoch, number_, body_hash(checkpoint)))
        await self._decided(seat, epochs.decision(self._federation, checkpoint, number_, commits))

    async def _all_join(self, request: Join) -> dict[int, tuple[Joined, Union]]:
        """A quorum's answers, each with the orders of its snapshot. Raises `Refused`."""
        return await self._quorum.gather(partial(self._ask_join, request, _OwnOrders()), "joined")

    async def _ask_join(self, request: Join, own: _OwnOrders, index: int) -> tuple[Joined, Union]:
        joined = await self._quorum.ask(index, request, Joined)
        epochs.check_joined(self._federation, View(self._store, self._verify), joined, request)
        if joined.witness != index:
            raise Refused(ErrorCode.NOT_A_WITNESS, f"witness {index} answered as {joined.witness}")
        if joined.prepared:
            return joined, Union({})
        witness = self._quorum.witnesses[index]
        union = await self._collect(witness, index, joined.count, joined.root, own)
        self._collected[index] = union
        return joined, union

    async def _new_checkpoint(self, joined: dict[int, tuple[Joined, Union]]) -> bytes:
        answers = sorted((answer for answer, _ in joined.values()), key=lambda answer: answer.witness)
        answers = answers[: self._federation.quorum]
        found: dict[bytes, bytes] = {}
        for answer in answers:
            found |= joined[answer.witness][1].certificates
        now, snapshot = self._clock(), self._store.snapshot()
        time_ms = max(now, last_checkpoint_ms(self._federation, View(snapshot)) + 1)
        result = await trio.to_thread.run_sync(outcome, self._federation, snapshot, Union(found), time_ms)
        return epochs.new_checkpoint(self._federation, View(snapshot), answers, result, time_ms)

    async def _ballots(self, request: Propose | Commit, ballot: Ballot) -> tuple[WitnessSignature, ...]:
        async def one(index: int) -> WitnessSignature:
            balloted = await self._quorum.ask(index, request, Balloted)
            if balloted.witness != index:
                raise Refused(ErrorCode.NOT_A_WITNESS, f"witness {index} answered as {balloted.witness}")
            return epochs.check_balloted(self._federation, View(self._store, self._verify), balloted, ballot)

        ballots = await self._quorum.gather(one, "balloted")
        return tuple(ballots[index] for index in sorted(ballots))

    async def _decided(self, seat: Seat, decision: bytes) -> None:
        """Adopt, then tell the others; who is not reached now learns of it in the log."""
        await self._checkpoints.adopt(decision, self._replica.source())
        with trio.move_on_after(SPREAD_SECONDS):
            async with trio.open_nursery() as nursery:
                for index in range(len(self._quorum.witnesses)):
                    if index != seat.index:
                        nursery.start_soon(self._tell, index, decision)

    async def _tell(self, index: int, decision: bytes) -> None:
        try:
            await self._quorum.ask(index, StoreCertificate(decision), Stored)
        except Refused as refusal:
            log.info("witness %d does not take the decision yet: %s", index, refusal)


def _with_root(orders: Union) -> tuple[Union, bytes]:
    return orders, orders.root


def _snapshot_page(witness: int, start: int) -> FetchSnapshot:
    return FetchSnapshot(witness, start, params.MAX_IDS)


def _is_snapshot(ids: list[bytes], root: bytes) -> bool:
    """Ascending, each once, under that root."""
    return ids == sorted(set(ids)) and merkle.root(ids) == root
