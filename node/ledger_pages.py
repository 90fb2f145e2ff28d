"""What others read of this node's ledger.

Rule: everybody may read everything that was certified, in parts that fit into one answer. A part is read from what is
here now, so whoever reads on asks for what comes next; long lists are worked out once.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.checkpoint_keeper import CheckpointKeeper
from node.paging import KeptAnswer, fitting, page
from node.store import Store
from protocol.errors import ErrorCode, Refused
from protocol.ledger.checkpoints import epoch_range, leaves, orders_between
from protocol.ledger.state import Base, View
from protocol.messages import (
    Certificates,
    FetchCertificates,
    FetchEpoch,
    FetchIds,
    FetchRecords,
    FetchState,
    Ids,
    Records,
    StateLeaves,
)


class LedgerPages:
    """Answers about one store."""

    def __init__(self, store: Store, checkpoints: CheckpointKeeper) -> None:
        self._store = store
        self._checkpoints = checkpoints
        self._epoch_ids = KeptAnswer[Sequence[bytes]]()
        self._leaves = KeptAnswer[Sequence[bytes]]()

    def certificates(self, request: FetchCertificates) -> Certificates:
        """A part of the log, as much as fits."""
        view = View(self._store)
        total = view.log_length
        places = range(request.start, min(total, request.start + request.limit))
        chosen = fitting(view.logged(position) for position in places)
        return Certificates(request.start, total, chosen)

    def ids(self, request: FetchIds) -> Ids:
        """Ids of the log. Pruned places are left out: nobody can be given what they held."""
        view = View(self._store)
        start = max(request.start, view.log_first)
        found = []
        for position in range(start, min(view.log_length, start + request.limit)):
            identity = view.id_at(position)
            if identity is None:
                break
            found.append(identity)
        return Ids(start, view.log_length, tuple(found))

    def records(self, request: FetchRecords) -> Records:
        """Records by their ids."""
        found = (self._record(identity) for identity in request.ids)
        return Records(fitting(record for record in found if record is not None))

    def _record(self, identity: bytes) -> bytes | None:
        return View(self._store).record(identity) or self._checkpoints.prepared_record(identity)

    async def epoch_ids(self, request: FetchEpoch) -> Ids:
        """A closed epoch's ids; of the one in force, those that this witness prepared. Raises `Refused`."""
        snapshot = self._store.snapshot()  # while this reads, the writer may go over to another epoch
        if request.epoch == View(snapshot).epoch:
            return page(self._checkpoints.prepared(snapshot), request)
        places = epoch_range(View(snapshot), request.epoch)
        if places is None or places[0] < View(snapshot).log_first:
            raise Refused(ErrorCode.STALE_EPOCH, f"the orders of epoch {request.epoch} are not here")
        return page(
            await self._epoch_ids.get(request.epoch, lambda: orders_between(snapshot, *places).ids),
            request,
        )

    async def state(self, request: FetchState) -> StateLeaves:
        """The state at the beginning of the epoch in force."""
        snapshot = self._store.snapshot()  # see `epoch_ids`
        view = View(snapshot)
        identity = view.checkpoint(view.epoch)
        decision = view.record(identity) if identity is not None else None
        if identity is None or decision is None:
            return StateLeaves(b"", 0, request.start, 0, ())
        found = await self._leaves.get(view.epoch, lambda: leaves(Base(snapshot, view.epoch)))
        position = view.position(identity) or 0
        chosen = tuple(found[request.start : request.start + request.limit])
        return StateLeaves(decision, position, request.start, len(found), chosen)
