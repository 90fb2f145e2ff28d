"""Taking in a ledger from a file.

Rule: a record counts for what is signed in it, as if a peer had sent it; the file is believed in nothing. What is here
already is left alone, so importing twice changes nothing. Epochs that have ended here are closed: the file must agree
about their checkpoints, and nothing is added to them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import trio

from node.checkpoint_keeper import CheckpointKeeper
from node.ledger_export import ExportFile
from node.ledger_writer import LedgerWriter
from node.replica import APPLIED_AT_ONCE
from node.store import Store
from node.witness import Witness
from protocol import params
from protocol.codec import decode_as, is_a
from protocol.errors import ErrorCode, Malformed, Refused
from protocol.ledger import merkle
from protocol.ledger.checkpoints import record_id
from protocol.ledger.epochs import open_checkpoint, open_decision
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import MissingPredecessor
from protocol.ledger.state import Draft, View
from protocol.messages import Certificate, Checkpoint, Decision, Genesis, StateLeaves

READ_AT_ONCE = 256  # frames between two looks of other tasks
MAX_PROBLEMS = 5  # that are named


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file's records so far."""

    done_bytes: int = 0
    total_bytes: int = 0
    fresh: int = 0
    known: int = 0
    closed: int = 0  # of epochs that have ended here, and not among their orders
    refused: int = 0
    waiting: int = 0  # build on what is neither here nor in the file
    epochs: int = 0  # begun by it
    began_anew: bool = False  # with the state of a checkpoint
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Record:
    """One certificate."""

    place: int  # in the file
    number: int  # in the log that it was exported from, if nothing there became void
    data: bytes


@dataclass(slots=True)
class _Reading:
    """Where in the file we are."""

    epoch: int = 0
    epoch_place: int = 0  # where its records begin
    number: int = 0  # records so far: where the next one stands in the log
    batch: list[_Record] = field(default_factory=list)
    waiting: list[_Record] = field(default_factory=list)  # for what they build on; without data
    leaves: list[bytes] = field(default_factory=list)


class Import:
    """One file into one ledger."""

    def __init__(
        self,
        federation: Federation,
        store: Store,
        writer: LedgerWriter,
        witness: Witness,
        checkpoints: CheckpointKeeper,
    ) -> None:
        self._federation = federation
        self._store = store
        self._writer = writer
        self._witness = witness
        self._checkpoints = checkpoints
        self._so_far = Imported()

    async def take(self, file: ExportFile, tell: Callable[[Imported], Awaitable[None]]) -> Imported:
        """All of it, as far as it can be taken. Raises `Refused` if it contradicts this ledger, `ExportError`."""
        self._so_far = Imported(total_bytes=file.size)
        reading, frames = _Reading(), file.frames()
        while part := await trio.to_thread.run_sync(_some, frames):
            for place, message in part:
                await self._message(file, reading, place, message)
            self._count(done_bytes=part[-1][0] - self._so_far.done_bytes)
            await tell(self._so_far)
        await self._flush(reading)
        await self._try_again(file, reading)
        self._count(waiting=len(reading.waiting), done_bytes=file.size - self._so_far.done_bytes)
        return self._so_far

    async def _message(self, file: ExportFile, reading: _Reading, place: int, message: bytes) -> None:
        if is_a(Certificate, message):
            reading.batch.append(_Record(place, reading.number, message))
            reading.number += 1
            if len(reading.batch) == APPLIED_AT_ONCE:
                await self._flush(reading)
        elif is_a(Decision, message):
            await self._flush(reading)
            await self._decision(file, reading, place, message)
            reading.number += 1
        elif is_a(StateLeaves, message):
            await self._leaves(reading, message)
        elif not is_a(Genesis, message):
            raise Refused(ErrorCode.MALFORMED, f"what stands at byte {place} of the file is no record of a ledger")

    # --- certificates ----------------------------------------------------------------------------------

    async def _flush(self, reading: _Reading) -> None:
        batch, reading.batch = reading.batch, []
        if batch:
            reading.waiting += await self._writer.commit(partial(self._apply_each, tuple(batch), reading.epoch))

    def _apply_each(self, batch: tuple[_Record, ...], epoch: int, draft: Draft) -> list[_Record]:
        """Apply what is new; the records that build on more than is here."""
        waiting, counted = [], self._so_far
        for record in batch:
            try:
                what = self._apply(record, epoch, draft)
                counted = replace(counted, **{what: getattr(counted, what) + 1})
            except Refused as refusal:
                if self._federation.single:  # its log is one row: what comes after builds on this
                    raise
                if isinstance(refusal, MissingPredecessor):
                    waiting.append(replace(record, data=b""))
                    continue
                counted = replace(counted, refused=counted.refused + 1, problems=_noted(counted, record, refusal))
        self._so_far = counted
        return waiting

    def _apply(self, record: _Record, epoch: int, draft: Draft) -> str:
        """What became of a record. Raises `Refused`."""
        view = View(draft)
        known = view.position(record_id(record.data))
        if known is None and epoch < view.epoch:
            return "closed"
        if self._federation.single and record.number != (view.log_length if known is None else known):
            raise MissingPredecessor(
                ErrorCode.BAD_SEQUENCE,
                f"the only witness's log has record {record.number} of the file in another place than this ledger: one "
                "of the two is of a log that was set back; ask the witness's owner which one goes on",
            )
        if known is None:
            self._witness.apply(draft, record.data)
        return "fresh" if known is None else "known"

    async def _try_again(self, file: ExportFile, reading: _Reading) -> None:
        """What came before the credits or keys that it builds on has them now."""
        before = len(reading.waiting) + 1
        while 0 < len(reading.waiting) < before:
            before = len(reading.waiting)
            left, reading.waiting = reading.waiting, []
            for first in range(0, before, APPLIED_AT_ONCE):
                part = left[first : first + APPLIED_AT_ONCE]
                reading.batch = await trio.to_thread.run_sync(_read_again, file, part)
                await self._flush(reading)

    # --- epochs ----------------------------------------------------------------------------------------

    async def _decision(self, file: ExportFile, reading: _Reading, place: int, record: bytes) -> None:
        """Go over to the epoch that it opens, if that is the next one here."""
        checkpoint = self._checkpoint(record)
        if checkpoint.epoch == View(self._store).epoch + 1:
            await self._checkpoints.adopt(record, _FileOrders(file, reading.epoch_place, place))
            self._count(fresh=1, epochs=1)
        else:
            self._check_agrees(checkpoint, record)
            self._count(known=1)
        reading.epoch, reading.epoch_place, reading.waiting = checkpoint.epoch, place, []

    def _checkpoint(self, record: bytes) -> Checkpoint:
        try:
            return open_checkpoint(decode_as(Decision, record, params.MAX_RECORD_BYTES).body)
        except Malformed as error:
            raise Refused(ErrorCode.MALFORMED, str(error)) from None

    def _check_agrees(self, checkpoint: Checkpoint, record: bytes) -> None:
        """The file tells of the same past. Raises `Refused`."""
        view = View(self._store)
        if checkpoint.epoch > view.epoch:
            raise Refused(
                ErrorCode.STALE_EPOCH,
                f"the file leaves out how epoch {view.epoch} ended, in which this ledger is; use one that reaches "
                "further back, or let the node read its witnesses",
            )
        mine = view.checkpoint(checkpoint.epoch)
        if mine is not None and mine != record_id(record):
            open_decision(self._federation, view, record)  # a forged one is not worth the alarm
            raise Refused(
                ErrorCode.BAD_QUORUM,
                f"the file has another checkpoint of epoch {checkpoint.epoch} than this ledger, and both are signed: "
                "more witnesses than the federation can stand have lied; ask its members before you go on",
            )

    async def _leaves(self, reading: _Reading, message: bytes) -> None:
        """The state that the file begins with, because what was before is pruned there."""
        try:
            page = decode_as(StateLeaves, message)
        except Malformed as error:
            raise Refused(ErrorCode.MALFORMED, str(error)) from None
        reading.leaves += page.leaves
        if len(reading.leaves) < page.total:
            return
        reading.epoch = self._checkpoint(page.decision).epoch
        position = page.position if self._federation.single else 0
        reading.number = page.position + 1
        if await self._checkpoints.begin_from(page.decision, reading.leaves, position):
            self._count(fresh=1, epochs=1)
            self._so_far = replace(self._so_far, began_anew=True)
        elif View(self._store).epoch < reading.epoch:
            await self._checkpoints.adopt(page.decision, _Nothing())
            self._count(fresh=1, epochs=1)
        else:
            self._check_agrees(self._checkpoint(page.decision), page.decision)
        reading.leaves = []

    def _count(self, **more: int) -> None:
        added = {name: getattr(self._so_far, name) + amount for name, amount in more.items()}
        self._so_far = replace(self._so_far, **added)


def _noted(counted: Imported, record: _Record, refusal: Refused) -> tuple[str, ...]:
    noted = f"the record at byte {record.place}: {refusal}"
    return counted.problems if len(counted.problems) == MAX_PROBLEMS else (*counted.problems, noted)


class _FileOrders:
    """The orders of an epoch, read from the file again: nothing is kept in memory until it is asked for."""

    def __init__(self, file: ExportFile, start: int, end: int) -> None:
        self._file = file
        self._start = start
        self._end = end

    async def union(self, checkpoint: Checkpoint) -> Sequence[bytes]:
        """See `UnionSource`."""
        ids = await trio.to_thread.run_sync(lambda: sorted(identity for identity, _ in self._orders()))
        if len(ids) != checkpoint.count or merkle.root(ids) != checkpoint.orders:
            raise Refused(
                ErrorCode.BAD_QUORUM,
                f"the file does not hold the {checkpoint.count} orders of epoch {checkpoint.epoch - 1} whole",
            )
        return ids

    async def records(self, ids: Sequence[bytes]) -> list[bytes]:
        """See `UnionSource`."""
        wanted = frozenset(ids)
        return await trio.to_thread.run_sync(
            lambda: [record for identity, record in self._orders() if identity in wanted]
        )

    def _orders(self) -> list[tuple[bytes, bytes]]:
        found = []
        for place, message in self._file.frames(self._start):
            if place >= self._end:
                break
            if is_a(Certificate, message):
                found.append((record_id(message), message))
        return found


class _Nothing:
    """No orders but those that are here."""

    async def union(self, checkpoint: Checkpoint) -> Sequence[bytes]:
        """See `UnionSource`."""
        raise Refused(
            ErrorCode.STALE_EPOCH,
            f"the file begins with epoch {checkpoint.epoch}, and this ledger lacks orders of the one before; use one "
            "that reaches further back, or let the node read its witnesses",
        )

    async def records(self, ids: Sequence[bytes]) -> list[bytes]:
        """See `UnionSource`."""
        return []


def _some(frames: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The next frames."""
    return list(islice(frames, READ_AT_ONCE))


def _read_again(file: ExportFile, records: Sequence[_Record]) -> list[_Record]:
    """The same with their data."""
    return [replace(record, data=next(file.frames(record.place))[1]) for record in records]
