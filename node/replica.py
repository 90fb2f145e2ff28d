"""How this node's copy of the ledger learns what is new.

Rule: a record is believed for what is signed in it, whoever brought it. With one witness the copy is a prefix of the
witness's log, place by place, so a log that was set back or forked is seen. With several it is the union of what the
witnesses have: each one's log is read on from where it was left, and only records that are not here are asked for.
What cannot be applied yet waits for what it builds on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import trio

from node.checkpoint_keeper import CheckpointKeeper, UnionSource
from node.ledger_peers import LedgerPeers
from node.ledger_writer import LedgerWriter
from node.quorum import RETRY, ask_peer
from node.store import Store
from node.witness import Witness
from protocol import params
from protocol.errors import ErrorCode, Refused
from protocol.ids import ChannelId, NodeId, short
from protocol.ledger import merkle
from protocol.ledger.checkpoints import is_decision, record_id
from protocol.ledger.epochs import open_decision
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import MissingPredecessor
from protocol.ledger.state import Draft, View, read_number, u64
from protocol.messages import (
    Certificates,
    Checkpoint,
    FetchCertificates,
    FetchEpoch,
    FetchIds,
    FetchRecords,
    FetchState,
    Ids,
    Message,
    Records,
    StateLeaves,
    StoreCertificate,
    Stored,
)

log = logging.getLogger("mtor.ledger")

APPLIED_AT_ONCE = 32  # fetched certificates in one commit: signatures to check between two turns of other tasks
MAX_UNUSABLE = 4 * params.MAX_IDS  # entries of a log that give nothing: orders that became void, hardly so many
MAX_WAITING = 8 * params.MAX_IDS  # records that build on others which have not come yet
MAX_LEAVES = 1_000_000  # accounts and open channels that a newcomer begins with
MAX_STATE_BYTES = 256 * params.MIB  # of those leaves
PART_SECONDS = 15.0  # for one node to give one part of what it was asked for: nobody waits for drops
RETURNED_AT_ONCE = 1_024  # certificates that a witness lost, given back by one member in one sync

Answer = TypeVar("Answer", bound=Message)

_CURSOR = b"m:cursor:"  # + node: how far its log was read


class Replica:
    """Reads other nodes' logs into the local one."""

    def __init__(
        self,
        federation: Federation,
        own: NodeId,
        store: Store,
        writer: LedgerWriter,
        witness: Witness,
        checkpoints: CheckpointKeeper,
        peers: LedgerPeers,
    ) -> None:
        self._federation = federation
        self._own = own
        self._store = store
        self._writer = writer
        self._witness = witness
        self._checkpoints = checkpoints
        self._peers = peers
        self._syncing = trio.Lock()
        self._looked_once = False

    @property
    def is_only_witness(self) -> bool:
        """True if this node's log is the federation's."""
        return self._federation.single and self._own in self._federation.genesis.witnesses

    @property
    def _others(self) -> list[NodeId]:
        return [witness for witness in self._federation.genesis.witnesses if witness != self._own]

    # --- learning ------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Learn what is new. Raises `Refused` if fewer than a quorum of witnesses could be read."""
        if not self.is_only_witness:
            async with self._syncing:
                await self._follow_to_the_end() if self._federation.single else await self._read_all()
        self._looked_once = True

    async def _follow_to_the_end(self) -> None:
        while await self._follow():
            pass

    async def ready_to_sign(self) -> None:
        """Before this witness signs anything in this life it has read a quorum's logs once: a vote of its own that it
        finds there and does not remember tells it that its storage was set back. Raises `Refused` (OVERLOADED)."""
        if not self._looked_once:
            await self.sync()

    async def looked(self) -> bool:
        """Learn what is new. False if that was not possible."""
        try:
            await self.sync()
        except Refused as refusal:
            log.info("going on with what is known: %s", refusal)
            return False
        return True

    async def restore(self) -> int:
        """Take from connected members what this witness may have lost. How many records were new."""
        before = View(self._store).log_length
        async with self._syncing:
            for peer in self._peers.connected():
                try:
                    await self._read_log(peer, from_start=True)
                except Refused as refusal:
                    log.info("nothing restored from %s: %s", short(peer), refusal)
        return View(self._store).log_length - before

    async def ask(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer:
        """One question to a peer's ledger. Raises `Refused`, OVERLOADED without an answer."""
        return await ask_peer(self._peers, node, request, expected, short(node))

    # --- several witnesses ---------------------------------------------------------------------------

    async def _read_all(self) -> None:
        """Read the witnesses' logs on, all at once, until a quorum was read."""
        reached = [self._own] if self._own in self._federation.genesis.witnesses else []
        failures: list[str] = []

        async def read(witness: NodeId) -> None:
            try:
                await self._read_log(witness)
                reached.append(witness)
                if len(reached) >= self._federation.quorum:  # whatever is final, one of them has; a slow one can wait
                    nursery.cancel_scope.cancel()
            except Refused as refusal:
                failures.append(refusal.message)

        async with trio.open_nursery() as nursery:
            for witness in self._others:
                nursery.start_soon(read, witness)
        if len(reached) < self._federation.quorum:
            await self._read_peers()
            total = len(self._federation.genesis.witnesses)
            raise Refused(
                ErrorCode.OVERLOADED,
                f"{len(reached)} of the federation's {total} witnesses could be read, {self._federation.quorum} are "
                f"needed to be sure ({'; '.join(failures[:3])}); open channels go on, new ones must wait",
                RETRY,
            )

    async def _read_peers(self) -> None:
        """Better than nothing: any member's log. It can leave things out, and cannot lie."""
        for peer in self._peers.connected():
            if peer not in self._federation.genesis.witnesses:
                try:
                    await self._read_log(peer)
                except Refused as refusal:
                    log.debug("log of %s: %s", short(peer), refusal)

    async def _read_log(self, node: NodeId, *, from_start: bool = False) -> None:
        """Read a node's log on from where it was left. Raises `Refused`."""
        cursor_key = _CURSOR + node
        cursor = 0 if from_start else read_number(self._store, cursor_key)
        waiting: list[bytes] = []
        named = 0
        while True:
            page = await self.ask(node, FetchIds(cursor, params.MAX_IDS), Ids)
            if page.total < cursor:  # it has begun anew
                cursor = 0
                continue
            if page.ids and not cursor <= page.start <= page.total - len(page.ids):
                raise Refused(ErrorCode.INTERNAL, "it answers with another part of its log than was asked for")
            waiting = await self._take(node, [*waiting, *page.ids])
            cursor = page.start + len(page.ids)
            named += len(page.ids)
            self._check_worth(named, waiting)
            if not waiting and not from_start:
                await self._writer.commit(partial(_put, cursor_key, u64(cursor)))
            if len(page.ids) < params.MAX_IDS:  # its end; or it gives drops, and is asked again another time
                break
        if waiting and await self._join_late(node):
            await self._read_log(node, from_start=from_start)

    def _check_worth(self, named: int, waiting: Sequence[bytes]) -> None:
        """A log that names more and more must also give it: nobody is read for ever. Raises `Refused`."""
        if len(waiting) > MAX_WAITING or named > View(self._store).log_length + len(waiting) + MAX_UNUSABLE:
            raise Refused(ErrorCode.INTERNAL, "its log names more records than it gives, or none that can be used")

    async def _take(self, node: NodeId, ids: Sequence[bytes]) -> list[bytes]:
        """Fetch and apply those that are not here; which of them still wait for something."""
        unknown = [identity for identity in ids if View(self._store).position(identity) is None]
        waiting: list[bytes] = []
        for first in range(0, len(unknown), params.MAX_CERTIFICATES):
            part = tuple(unknown[first : first + params.MAX_CERTIFICATES])
            waiting += await self.take_records(node, await self.fetch_records(node, part))
        return waiting

    async def take_records(self, node: NodeId, records: Sequence[bytes]) -> list[bytes]:
        """Apply records in the order given; the ids of those that wait for something. Bad ones are left out."""
        waiting: list[bytes] = []
        batch: list[bytes] = []

        async def flush() -> None:
            if batch:
                waiting.extend(await self._writer.commit(partial(self._apply_each, tuple(batch))))
            batch.clear()

        for record in records:
            if is_decision(record):
                await flush()
                if await self._adopted(node, record):
                    waiting.clear()  # in the union, or void
                else:
                    waiting.append(record_id(record))
            else:
                batch.append(record)
                if len(batch) == APPLIED_AT_ONCE:
                    await flush()
        await flush()
        return waiting

    def _apply_each(self, certificates: tuple[bytes, ...], draft: Draft) -> list[bytes]:
        """Apply what can be; the ids of those that wait for something."""
        waiting = []
        for certificate in certificates:
            try:
                self._witness.apply(draft, certificate)
            except MissingPredecessor:
                waiting.append(record_id(certificate))
            except Refused as refusal:
                log.debug("a certificate was not taken: %s", refusal)
        return waiting

    async def _adopted(self, node: NodeId, decision: bytes) -> bool:
        """Go over to the next epoch. False if one before it is not known here. Raises `Refused`."""
        try:
            await self._checkpoints.adopt(decision, self.source(node))
        except MissingPredecessor:
            return False
        return True

    def source(self, *first: NodeId) -> UnionSource:
        """Where orders of a checkpoint come from: these nodes, then the witnesses, then whoever is connected."""
        nodes = dict.fromkeys((*first, *self._others, *self._peers.connected()))
        return _Source(self, [node for node in nodes if node != self._own])

    async def fetch_ids(self, node: NodeId, count: int, request: Callable[[int], Message]) -> list[bytes]:
        """`count` ids, as a node gives them in pages; `request` asks for those from a place on. Raises `Refused`."""
        ids: list[bytes] = []
        while len(ids) < count:
            page = await self.ask(node, request(len(ids)), Ids)
            ids += page.ids
            if len(page.ids) < params.MAX_IDS:
                break
        return ids

    async def fetch_records(self, node: NodeId, ids: Sequence[bytes]) -> list[bytes]:
        """The records with these ids, as many as the node gives, in the order of the ids. Raises `Refused`."""
        found: list[bytes] = []
        for first in range(0, len(ids), params.MAX_CERTIFICATES):
            with trio.move_on_after(PART_SECONDS) as patience:
                found += await self._fetch_part(node, ids[first : first + params.MAX_CERTIFICATES])
            if patience.cancelled_caught:
                raise Refused(ErrorCode.OVERLOADED, f"{short(node)} takes too long for a few records", RETRY)
        return found

    async def _fetch_part(self, node: NodeId, left: Sequence[bytes]) -> list[bytes]:
        found: list[bytes] = []
        while left:
            answer = await self.ask(node, FetchRecords(tuple(left)), Records)
            given = {record_id(record): record for record in answer.records}
            wanted = [identity for identity in left if identity in given]
            found += [given[identity] for identity in wanted]
            left = [identity for identity in left if identity not in given] if wanted else []
        return found

    async def fetch_channel(self, channel: ChannelId) -> None:
        """Learn of one hold, from whoever has it first; of everything new, if it builds on more."""
        if self._federation.single:
            await self.sync()
            return
        answered: list[NodeId] = []
        async with trio.open_nursery() as nursery:

            async def fetch(witness: NodeId) -> None:
                try:
                    answer = await self.ask(witness, FetchRecords((channel,)), Records)
                    await self.take_records(witness, answer.records)
                    answered.append(witness)
                except Refused as refusal:
                    log.debug("hold not fetched: %s", refusal)
                if View(self._store).channel(channel) is not None or len(answered) >= self._federation.quorum:
                    nursery.cancel_scope.cancel()

            for witness in self._others:
                nursery.start_soon(fetch, witness)
        if View(self._store).channel(channel) is None:
            await self.sync()

    async def _join_late(self, node: NodeId) -> bool:
        """What this node lacks was pruned: begin anew with the state of the last checkpoint. Raises `Refused`."""
        found: list[bytes] = []
        size = 0
        while True:
            page = await self.ask(node, FetchState(len(found), params.MAX_CERTIFICATES), StateLeaves)
            if not page.decision:
                return False
            if not found:
                open_decision(self._federation, View(self._store), page.decision)
            found += page.leaves
            size += sum(map(len, page.leaves))
            if len(page.leaves) < params.MAX_CERTIFICATES:
                break
            if len(found) > MAX_LEAVES or size > MAX_STATE_BYTES:
                raise Refused(ErrorCode.INTERNAL, f"its state has more than {MAX_LEAVES:,} accounts and channels")
        position = page.position if self._federation.single else 0
        return await self._checkpoints.begin_from(page.decision, found, position)

    # --- one witness ---------------------------------------------------------------------------------

    async def _follow(self) -> bool:
        """Apply the next part of the only witness's log. True if there is more."""
        witness = self._federation.genesis.witnesses[0]
        known = View(self._store).log_length
        start = max(0, known - 1)  # the last one that is known here too: the logs must agree on it
        answer = await self.ask(witness, FetchCertificates(start, params.MAX_CERTIFICATES), Certificates)
        if answer.total > known and not answer.certificates and known:  # pruned there; what follows may be there
            start = known
            answer = await self.ask(witness, FetchCertificates(start, params.MAX_CERTIFICATES), Certificates)
        if answer.total > known and not answer.certificates:
            return await self._join_late(witness)
        if known and answer.total < known:
            await self._give_back(witness, answer.total)
        if start < known:
            self._check_same_log(answer, known)
        fresh = answer.certificates[known - start :]
        for record in _runs(fresh):
            if is_decision(record[0]):
                await self._adopted(witness, record[0])
            else:
                await self._writer.commit(partial(self._apply_all, record))
        return bool(fresh) and View(self._store).log_length < answer.total

    def _apply_all(self, certificates: tuple[bytes, ...], draft: Draft) -> None:
        for certificate in certificates:
            self._witness.apply(draft, certificate)

    def _check_same_log(self, answer: Certificates, known: int) -> None:
        mine = View(self._store).logged(known - 1)
        if answer.total < known or not answer.certificates or answer.certificates[0] != mine:
            raise Refused(
                ErrorCode.INTERNAL,
                f"the witness's log ({answer.total} certificates) does not contain certificate {known - 1} of this "
                "node's: the witness was set back or has forked its log. Nothing was signed; ask its operator",
            )

    async def _give_back(self, witness: NodeId, total: int) -> None:
        """The witness lost the end of its log: what is here beyond it bears its own votes, and is offered to it."""
        view = View(self._store)
        agreed = total == 0
        if total:
            page = await self.ask(witness, FetchIds(total - 1, 1), Ids)
            agreed = page.ids == (view.id_at(total - 1),)
        for position in range(total, min(view.log_length, total + RETURNED_AT_ONCE) if agreed else total):
            record = view.logged(position)
            if record is not None:
                await self._offer(witness, record)

    async def _offer(self, witness: NodeId, record: bytes) -> None:
        try:
            await self.ask(witness, StoreCertificate(record), Stored)
        except Refused as refusal:
            if refusal.code is not ErrorCode.ABSTAINING:  # that it keeps it is enough
                raise


class _Source:
    """Orders of a checkpoint, from one of several nodes."""

    def __init__(self, replica: Replica, nodes: Sequence[NodeId]) -> None:
        self._replica = replica
        self._nodes = nodes

    async def union(self, checkpoint: Checkpoint) -> Sequence[bytes]:
        """See `UnionSource`."""

        def request(start: int) -> FetchEpoch:
            return FetchEpoch(checkpoint.epoch - 1, start, params.MAX_IDS)

        for node in self._nodes:
            try:
                ids = await self._replica.fetch_ids(node, checkpoint.count, request)
            except Refused as refusal:
                log.debug("no union from %s: %s", short(node), refusal)
                continue
            if len(ids) == checkpoint.count and merkle.root(ids) == checkpoint.orders:
                return ids
        raise Refused(ErrorCode.OVERLOADED, "nobody has the orders of the checkpoint", RETRY)

    async def records(self, ids: Sequence[bytes]) -> list[bytes]:
        """See `UnionSource`."""
        found: dict[bytes, bytes] = {}
        for node in self._nodes:
            left = [identity for identity in ids if identity not in found]
            if not left:
                break
            try:
                found |= {record_id(record): record for record in await self._replica.fetch_records(node, left)}
            except Refused as refusal:
                log.debug("no records from %s: %s", short(node), refusal)
        return list(found.values())


def _put(key: bytes, value: bytes, draft: Draft) -> None:
    draft.update({key: value})


def _runs(records: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """Certificates in groups to be applied at once; each decision by itself."""
    runs: list[tuple[bytes, ...]] = []
    run: list[bytes] = []
    for record in records:
        if is_decision(record) or len(run) == APPLIED_AT_ONCE:
            runs += [tuple(run)] if run else []
            run = []
        if is_decision(record):
            runs.append((record,))
        else:
            run.append(record)
    return runs + ([tuple(run)] if run else [])
