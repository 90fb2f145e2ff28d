"""Going over to the next epoch: adopting decisions, and forgetting what they have summed up.

Rule: a decision is adopted whole or not at all. The work is done beside the running node, on a snapshot; it is written
only if the ledger did not move in the meantime, and done again if it did.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import trio

from node.journal import Journal
from node.ledger_writer import LedgerWriter
from node.store import Snapshot, Store
from protocol import params
from protocol.errors import ErrorCode, Refused
from protocol.ledger import merkle
from protocol.ledger.checkpoints import (
    Adoption,
    Union,
    adopt,
    begin_from,
    check_signatures,
    epoch_orders,
    merged,
    record_id,
)
from protocol.ledger.epochs import open_decision
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import MissingPredecessor
from protocol.ledger.pruning import prunable, prune
from protocol.ledger.state import ABSTAIN, Base, Draft, Puts, Verify, View, u64
from protocol.messages import Checkpoint

log = logging.getLogger("mtor.ledger")

ATTEMPTS = 5  # at a ledger that keeps moving


_PREPARED = b"m:union"  # root of the union that this witness prepared last
_UNION = b"u"  # + root: ids of a union that it prepared, one after the other: a later round may go back to it
_RECORD = b"x"  # + id: an order of one of them that is not in the log


class UnionSource(Protocol):
    """Where the orders of a checkpoint come from."""

    async def union(self, checkpoint: Checkpoint) -> Sequence[bytes]:
        """Their ids, ascending, as the checkpoint's root names them. Raises `Refused`."""

    async def records(self, ids: Sequence[bytes]) -> list[bytes]:
        """Their certificates, as many as can be had."""


class _Moved(Exception):
    """The ledger changed while an adoption was worked out."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How many ended epochs stay verifiable here; 0: all."""

    epochs: int = 0


class CheckpointKeeper:
    """Moves one store from epoch to epoch."""

    def __init__(
        self,
        federation: Federation,
        store: Store,
        writer: LedgerWriter,
        journal: Journal,
        clock: Callable[[], int],
        verify: Verify,
        retention: Retention,
        forgot: Callable[[View, bytes], bool],
        changed: Callable[[], None],
    ) -> None:
        """`forgot`: a certificate has a vote of this node that it does not remember. `changed` is told when an epoch
        has begun here."""
        self._federation = federation
        self._store = store
        self._writer = writer
        self._journal = journal
        self._clock = clock
        self._verify = verify
        self._retention = retention
        self._forgot = forgot
        self._changed = changed
        self._adopting = trio.Lock()

    async def adopt(self, data: bytes, source: UnionSource) -> bool:
        """Go over to the epoch that a decision opens. False if that epoch is in force already.

        Raises `Refused`: not decided, orders that cannot be had, or `MissingPredecessor` if an epoch is left out.
        """
        async with self._adopting:
            _, checkpoint = open_decision(self._federation, View(self._store, self._verify), data)
            epoch = View(self._store).epoch
            if checkpoint.epoch <= epoch:
                return False
            if checkpoint.epoch > epoch + 1:
                raise MissingPredecessor(ErrorCode.STALE_EPOCH, f"epoch {epoch} is in force here")
            for _ in range(ATTEMPTS):
                union = await self._union(checkpoint, source)
                try:
                    await self._write(data, union)
                    break
                except _Moved:
                    continue
            else:
                raise Refused(ErrorCode.OVERLOADED, "the ledger moves too fast to change epochs", params.SECONDS)
        log.info("epoch %d has begun: %d orders in the one before", checkpoint.epoch, checkpoint.count)
        self._changed()
        await self.forget()
        return True

    async def _union(self, checkpoint: Checkpoint, source: UnionSource) -> Union:
        """The orders of the epoch that ends: what is here, and what is fetched for the rest."""
        snapshot = self._store.snapshot()
        own = await trio.to_thread.run_sync(epoch_orders, snapshot)
        root = await trio.to_thread.run_sync(lambda: own.root)
        if (len(own.certificates), root) == (checkpoint.count, checkpoint.orders):
            return own
        ids: Sequence[bytes] = _ids(snapshot, checkpoint.orders)
        if merkle.root(ids) != checkpoint.orders:
            ids = await source.union(checkpoint)
        return await self.gather(snapshot, own, ids, source)

    async def gather(self, snapshot: Snapshot, own: Union, ids: Sequence[bytes], source: UnionSource) -> Union:
        """The orders with these ids, fetched where they are not here, each verified. Raises `Refused`."""
        found = {identity: data for identity in ids if (data := snapshot.get(_RECORD + identity)) is not None}
        wanted = [identity for identity in ids if identity not in own.certificates and identity not in found]
        found |= {record_id(record): record for record in await source.records(wanted)} if wanted else {}
        lost = [identity for identity in wanted if identity not in found]
        if lost:
            raise Refused(ErrorCode.BAD_QUORUM, f"{len(lost)} orders of the epoch were not to be had")
        union = Union({identity: own.certificates.get(identity) or found[identity] for identity in ids})
        fresh = Union({identity: data for identity, data in union.certificates.items() if identity in found})
        await trio.to_thread.run_sync(self._check_fresh, snapshot, union, fresh)
        return union

    def keep_prepared(self, snapshot: Snapshot, union: Union) -> Puts:
        """What keeps a union available to all who adopt it: a quorum prepares, so f+1 honest witnesses keep it."""
        view = View(snapshot)
        root = union.root
        puts: Puts = {_PREPARED: root, _UNION + root: b"".join(union.ids)}
        for identity, data in union.certificates.items():
            if view.position(identity) is None:
                puts[_RECORD + identity] = data
        return puts

    def prepared(self, snapshot: Snapshot) -> tuple[bytes, ...]:
        """The ids of the union that this witness prepared last, ascending."""
        return _ids(snapshot, snapshot.get(_PREPARED) or b"")

    def prepared_record(self, identity: bytes) -> bytes | None:
        """An order of that union that is not in the log."""
        return self._store.get(_RECORD + identity)

    def _check_fresh(self, snapshot: Snapshot, union: Union, fresh: Union) -> None:
        epoch = View(snapshot).epoch
        state = merged(self._federation, Base(snapshot, epoch), union, epoch)
        check_signatures(self._federation, View(state, self._verify), fresh)

    async def _write(self, data: bytes, union: Union) -> None:
        snapshot = self._store.snapshot()
        before = View(snapshot)
        length, epoch = before.log_length, before.epoch
        keep = max(0, epoch + 1 - self._retention.epochs) if self._retention.epochs else None
        work = partial(adopt, self._federation, snapshot, data, union, keep)
        adoption = await trio.to_thread.run_sync(work)
        if not before.abstaining and any(self._forgot(before, data) for data in adoption.missing.certificates.values()):
            log.error("this witness's storage was set back: it votes for no close of a channel that is open now")
            await self._writer.commit(lambda draft: draft.update({ABSTAIN: u64(epoch)}))
            raise _Moved

        def decide(draft: Draft) -> None:
            view = View(draft)
            if (view.log_length, view.epoch) != (length, epoch):
                raise _Moved
            draft.update(adoption.puts)
            kept = (key for kind in (_RECORD, _UNION) for key, _ in snapshot.iterate(kind))
            draft.update(dict.fromkeys((*kept, _PREPARED)))
            self._journal.record_checkpoint(draft, data, self._clock())
            self._explain(draft, adoption)

        await self._writer.commit(decide)

    def _explain(self, draft: Draft, adoption: Adoption) -> None:
        """Write down what the change did to this node's owner."""
        now = self._clock()
        for identity in adoption.void.certificates:
            if View(draft).record(identity) is None:
                self._journal.record_void(draft, identity, now)
        for identity, data in adoption.missing.certificates.items():
            self._journal.record_certificate(draft, identity, data, now)
        for channel in adoption.refunded:
            self._journal.record_checkpoint_refund(draft, channel, now)

    async def begin_from(self, data: bytes, leaves: Sequence[bytes], position: int) -> bool:
        """Begin anew with a decision and the state that it names, if epochs are left out. Raises `Refused`."""
        _, checkpoint = open_decision(self._federation, View(self._store, self._verify), data)
        async with self._adopting:
            snapshot = self._store.snapshot()
            if checkpoint.epoch <= View(snapshot).epoch + (View(snapshot).log_length > 0):
                return False
            puts = await trio.to_thread.run_sync(begin_from, snapshot, data, leaves, position)

            def begin(draft: Draft) -> None:
                draft.update(puts)
                self._journal.record_checkpoint(draft, data, self._clock())

            await self._writer.commit(begin)
        self._changed()
        return True

    async def forget(self) -> int:
        """Prune what the operator does not want to keep. The first epoch that is left."""
        view = View(self._store)
        wanted = view.epoch - self._retention.epochs if self._retention.epochs else view.first_epoch
        if wanted >= view.first_epoch and wanted > 0 and prunable(self._store, wanted):
            for puts in prune(self._store.snapshot(), wanted):
                await self._writer.commit(lambda draft, puts=puts: draft.update(puts))  # type: ignore[misc]
                await trio.lowlevel.checkpoint()
        return View(self._store).first_epoch


def _ids(snapshot: Snapshot, root: bytes) -> tuple[bytes, ...]:
    """The ids of a union that this witness prepared, ascending; none if it did not."""
    value = snapshot.get(_UNION + root) or b""
    return tuple(value[at : at + params.HASH_BYTES] for at in range(0, len(value), params.HASH_BYTES))
