"""A large made-up ledger on disk, and how long it takes to check it and to start with it.

Rule: every certificate in it was signed by the code that signs real ones, in several processes. It is a member's copy:
no vote locks, no journal. A copy that was made once is used again as long as its numbers are the same.
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import trio
from ledger_orders import CREATED_MS, Parties, channels, grants, key, parties, voted
from ledger_witnesses import folder_bytes

from node.bookkeeper import Bookkeeper
from node.ledger_peers import Answer, LedgerPeers, PeerUnreachable
from node.migrations import SCHEMA, SCHEMA_KEY
from node.signature_pool import verify_on_all_cores
from node.store import LevelStore
from protocol.codec import body_hash, decode_as, encode
from protocol.ids import NodeId
from protocol.ledger import epochs
from protocol.ledger.audit import Report
from protocol.ledger.certificates import apply, trusting
from protocol.ledger.checkpoints import adopt, epoch_orders, leaves, outcome
from protocol.ledger.state import Base, Draft, View, checkpoint_key
from protocol.messages import Ballot, Close, Join, Message, Pay, Rejected, WitnessSignature

PAYERS, WORKERS = 512, 64
GRANT = 10**12
PART = 1_000  # certificates handed on at once
EPOCH_MS = 7 * 24 * 3_600_000
_GENESIS_KEY = b"m:genesis"


@dataclass(frozen=True, slots=True)
class Plan:
    """What the ledger is made of."""

    certificates: int
    witnesses: int
    epochs: int  # ended ones, and the one in force

    @property
    def channels_a_payer(self) -> int:
        """Each is two certificates."""
        return max(self.epochs, self.certificates // 2 // PAYERS)

    @property
    def who(self) -> Parties:
        """Everybody."""
        return parties(self.witnesses, PAYERS, WORKERS)

    def folder(self, cache: Path) -> Path:
        """Where it lies."""
        return cache / f"ledger-{self.certificates}-{self.witnesses}-{self.epochs}"


# --- making -------------------------------------------------------------------------------------------------


def made(plan: Plan, cache: Path, processes: int) -> Path:
    """The ledger's folder; made if it is not there."""
    folder = plan.folder(cache)
    if not folder.exists():
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        store = LevelStore(unfinished)
        _fill(plan, store, processes)
        store.close()
        unfinished.rename(folder)
    return folder


def _fill(plan: Plan, store: LevelStore, processes: int) -> None:
    who, draft = plan.who, Draft(store)
    draft.update({SCHEMA_KEY: SCHEMA, _GENESIS_KEY: who.federation.id})
    _append(who, store, draft, [voted(who, order) for order in grants(who, GRANT)])
    with _signing(plan, processes) as signers:
        for epoch in range(plan.epochs):
            for signer in signers:
                while part := signer.recv():
                    _append(who, store, draft, part)
            if epoch < plan.epochs - 1:
                _end_epoch(who, store, epoch)


def _append(who: Parties, store: LevelStore, draft: Draft, certificates: list[bytes]) -> None:
    view = View(draft, trusting)
    for data in certificates:
        draft.update(apply(who.federation, view, data).puts)
    store.write(draft.puts, sync=False)
    draft.puts.clear()


class _signing:
    """The processes that sign, and the pipes from them."""

    def __init__(self, plan: Plan, processes: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        pipes = [spawn.Pipe(duplex=False) for _ in range(processes)]
        self._receiving = [receiving for receiving, _ in pipes]
        self._processes = [
            spawn.Process(target=sign_part, args=(plan, number, processes, sending), daemon=True)
            for number, (_, sending) in enumerate(pipes)
        ]

    def __enter__(self) -> list[Connection]:
        for process in self._processes:
            process.start()
        return self._receiving

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def sign_part(plan: Plan, number: int, of: int, to: Connection) -> None:
    """Sign the certificates of every `of`-th payer: parts, and an empty one at the end of each epoch."""
    who, count = plan.who, plan.channels_a_payer
    walks = [channels(who, payer, count, 1, plan.epochs) for payer in range(number, PAYERS, of)]
    part: list[bytes] = []
    for sequence in range(count):
        for walk in walks:
            part += [voted(who, order) for order in next(walk)]
            if len(part) >= PART:
                to.send(part)
                part = []
        if (sequence + 1) * plan.epochs // count > sequence * plan.epochs // count:
            to.send(part)
            if part:
                to.send([])
            part = []


def _end_epoch(who: Parties, store: LevelStore, epoch: int) -> None:
    """The decision that all witnesses would come to, and going over to the next epoch."""
    view, federation = View(store), who.federation
    seats = [epochs.Seat(federation, witness, index) for index, witness in enumerate(who.witnesses)]
    joined = [epochs.join(seat, store, Join(epoch, 0), 0, willing=True)[0] for seat in seats[: federation.quorum]]
    union, time_ms = epoch_orders(store), CREATED_MS + (epoch + 1) * EPOCH_MS
    checkpoint = epochs.new_checkpoint(federation, view, joined, outcome(federation, store, union, time_ms), time_ms)
    ballot = Ballot(epochs.COMMIT, epoch, 0, body_hash(checkpoint))
    commits = [WitnessSignature(seat.index, seat.sign(ballot)) for seat in seats]
    store.write(adopt(federation, store, epochs.decision(federation, checkpoint, 0, commits), union).puts)


# --- measuring ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checked:
    """One check of the whole ledger."""

    report: Report
    seconds: float
    core_seconds: float  # of all processes

    @property
    def per_second(self) -> float:
        """Certificates."""
        return self.report.certificates / self.seconds


def checked(plan: Plan, folder: Path, *, signatures: bool) -> Checked:
    """Check it. Raises `SystemExit` if it is not true: then nothing was measured."""
    store = LevelStore(folder)
    began, used = time.perf_counter(), _core_seconds()
    report = verify_on_all_cores(plan.who.federation, store.snapshot(), signatures=signatures)
    seconds, used = time.perf_counter() - began, _core_seconds() - used
    store.close()
    if not report.verified:
        raise SystemExit(f"the ledger is not true: {report.problems}")
    return Checked(report, seconds, used)


def _core_seconds() -> float:
    """Processor time of this process and of those that it has ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Nobody(LedgerPeers):
    """No other node."""

    async def ask(self, node: NodeId, request: Message, expected: type[Answer]) -> Answer | Rejected:
        """See `LedgerPeers`."""
        raise PeerUnreachable("there is none")

    def connected(self) -> list[NodeId]:
        """See `LedgerPeers`."""
        return []


def start_seconds(plan: Plan, folder: Path) -> float:
    """From opening the database until a member's node may sign."""

    async def start() -> float:
        began = time.perf_counter()
        member, federation = key("member"), plan.who.federation
        book = Bookkeeper(LevelStore(folder), member, federation, None, lambda: CREATED_MS, Nobody())
        async with trio.open_nursery() as nursery:
            await nursery.start(book.run)
            seconds = time.perf_counter() - began
            nursery.cancel_scope.cancel()
        return seconds

    return trio.run(start)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes."""

    database: int
    log_certificates: int
    hold: int  # a certificate of it, as it travels and as it is stored
    close: int
    voucher: int  # as it travels, with its signature
    checkpoint: int  # with its decision; 0 without an ended epoch
    state: int  # the leaves of the last checkpoint
    accounts: int


def sizes(plan: Plan, folder: Path) -> Sizes:
    """What the ledger takes."""
    store, who = LevelStore(folder), plan.who
    view = View(store)
    identity = store.get(checkpoint_key(view.epoch))
    decision = (view.record(identity) or b"") if identity else b""
    orders = next(channels(who, 0, 1, 1))
    hold, close = (len(voted(who, order)) for order in orders)
    settled = decode_as(Close, orders[1].body)
    voucher = len(encode(Pay(settled.voucher, settled.voucher_signature)))
    found = leaves(Base(store, view.epoch)) if decision else []
    certificates = view.log_length - view.epoch
    store.close()
    return Sizes(
        folder_bytes(folder), certificates, hold, close, voucher, len(decision), sum(map(len, found)), len(found)
    )


def peak_mib() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
