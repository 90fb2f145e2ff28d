"""The node's accounts: pays, gets paid, witnesses, and explains it all.

Rule: the single writer of the ledger, and nothing that depends on a signature leaves before the disk has it. The local
ledger is checked whole before anything is signed. This file puts the parts together and is all that others see of them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from node import free_quota
from node.account_orders import AccountOrders
from node.checkpoint_keeper import CheckpointKeeper, Retention
from node.clock import now_ms
from node.earnings import ChannelView as ChannelView
from node.earnings import Earnings
from node.epoch_change import EpochChange
from node.evidence_keeper import EvidenceKeeper
from node.federation import accounts_path, load_issuer, memory_path
from node.journal import Journal, Json, history
from node.journal import Receipt as Receipt
from node.leases import ChannelLease as ChannelLease
from node.leases import Leases
from node.leases import Prices as Prices
from node.ledger_audit import audit
from node.ledger_desk import LedgerDesk
from node.ledger_export import ExportFile
from node.ledger_import import Import, Imported
from node.ledger_pages import LedgerPages
from node.ledger_peers import LedgerPeers
from node.ledger_reports import LedgerReports
from node.ledger_writer import LedgerWriter
from node.migrations import SCHEMA, SCHEMA_KEY, SchemaError, migrate
from node.open_channels import OpenChannels, last_voucher
from node.ordering import Ordering
from node.quorum import Quorum
from node.replica import Replica
from node.signature_memo import SignatureMemo
from node.signature_pool import verify_on_all_cores
from node.store import Snapshot, Store, StoreDamaged, StoreFailed
from node.wallet import Wallet
from node.witness import Witness
from node.witness_memory import MemoryDamaged, WitnessMemory
from protocol import params
from protocol.errors import Refused
from protocol.ids import ChannelId, FederationId, NodeId
from protocol.ledger.audit import Report
from protocol.ledger.genesis import Federation
from protocol.ledger.state import EPOCH, Account, Draft, View, channel_key, open_channels
from protocol.messages import Genesis, Message, Pay
from protocol.signing import Signer, verify

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.ledger")

HOUSEKEEPING_SECONDS = 5.0
LOOK_SECONDS = 1.0  # between two looks of a witness that lacks something
_GENESIS_KEY = b"m:genesis"


class LedgerDamaged(Exception):
    """The stored ledger is not true. The message names the fix. Nothing was signed or changed."""


Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator decides."""

    hold: int = 2_000_000  # µcredits locked for a worker at a time
    close_after_ms: int = 60 * params.SECONDS  # a worker settles a channel idle for this long
    keep_epochs: int = 0  # ended epochs whose orders are kept; 0: all


@dataclass(frozen=True, slots=True)
class Balance:
    """One account, in µcredits."""

    balance: int  # free to spend
    held: int  # locked in open channels
    earned: int  # by settled channels
    spent: int  # by settled channels
    pending: int  # promised to this account by vouchers, not yet settled; known to the two parties only
    owed: int  # promised by it, out of `held`


class Bookkeeper:
    """See the module. Construct, then `run`; every other method needs it running."""

    def __init__(
        self,
        store: Store,
        signer: Signer,
        federation: Federation,
        issuer: Signer | None,
        clock: Callable[[], int],
        peers: LedgerPeers,
        settings: Settings | None = None,
        wallet: Wallet | None = None,
        memory: WitnessMemory | None = None,
    ) -> None:
        """`wallet` holds this node's keys, by default its own alone. `memory` tells a witness that its ledger was set
        back; without it only the votes that it meets do."""
        self._store = store
        self._signer = signer
        self._federation = federation
        self._issuer = issuer if issuer is not None and federation.is_issuer(issuer.node) else None
        self._clock = clock
        self._settings = settings or Settings()
        self._background: trio.Nursery | None = None
        self._lacking = trio.Event()
        check = SignatureMemo(verify)
        self.wallet = wallet or Wallet(signer)
        self._memory = memory
        self._journal = Journal(_Owners(self.wallet, self._issuer), signer.node)
        self._channels = OpenChannels(self.wallet)
        self._writer = LedgerWriter(store, self._note_written)
        self.evidence = EvidenceKeeper(federation, store, self._writer, check)
        self._witness = Witness(
            federation,
            store,
            self._writer,
            signer,
            self._journal,
            clock,
            check,
            lambda: self._lacking.set(),
            self.evidence.found,
        )
        self._checkpoints = CheckpointKeeper(
            federation,
            store,
            self._writer,
            self._journal,
            clock,
            check,
            Retention(self._settings.keep_epochs),
            self._witness.forgot,
            self._note_channels,
        )
        self._replica = Replica(federation, signer.node, store, self._writer, self._witness, self._checkpoints, peers)
        self._quorum = Quorum(federation, signer.node, peers, self._answer_own)
        self.epochs = EpochChange(
            federation,
            store,
            self._writer,
            signer,
            self._quorum,
            self._replica,
            self._checkpoints,
            clock,
            check,
        )
        self._ordering = Ordering(
            federation,
            store,
            self._writer,
            self._witness,
            self._quorum,
            self._replica,
            clock,
            check,
            lambda: self._background,
        )
        shared = (federation.id, store, self._writer, self._ordering, self._replica, self._channels, clock)
        self._leases = Leases(self.wallet, *shared, self._settings.hold)
        self._earnings = Earnings(signer, *shared)
        self.accounts = AccountOrders(federation.id, store, self._ordering, self._replica, self.wallet, self._issuer)
        self._desk = LedgerDesk(
            federation,
            store,
            self._witness,
            self._replica,
            LedgerPages(store, self._checkpoints),
            self._checkpoints,
            self.epochs,
            self.evidence,
            self._earnings,
        )

    async def _answer_own(self, request: Message) -> Message:
        """What this node as a witness answers itself."""
        return await self._desk.answer(self._signer.node, request)

    def _note_written(self, puts: Mapping[bytes, bytes | None]) -> None:
        """What was written, before any answer that rests on it leaves."""
        if EPOCH in puts:  # not earlier: a crash in between would look like a ledger that was set back
            self._note_epoch()
        self._channels.note(puts)

    def _note_epoch(self) -> None:
        """Before anything is signed in the epoch in force."""
        if self._memory is not None and self.is_witness:
            try:
                self._memory.note(View(self._store).epoch)
            except OSError as error:
                raise StoreFailed(
                    f"this witness cannot note the epoch that it signs in ({error}), so it stops. Make room on the "
                    "disk, then start the node again"
                ) from None

    def _note_channels(self) -> None:
        keys = (channel_key(key[1:]) for key, _ in self._store.iterate(b"o"))
        self._channels.note({key: self._store.get(key) for key in keys})

    # --- what it is ----------------------------------------------------------------------------------

    @property
    def federation(self) -> FederationId:
        """The federation's id."""
        return self._federation.id

    @property
    def node(self) -> NodeId:
        """This node's id, which is its main account."""
        return self._signer.node

    @property
    def quorum(self) -> int:
        """How many witnesses have to agree."""
        return self._federation.quorum

    @property
    def genesis(self) -> Genesis:
        """The federation's constitution."""
        return self._federation.genesis

    @property
    def is_witness(self) -> bool:
        """True if genesis names this node."""
        return self._federation.witness_index(self._signer.node) is not None

    @property
    def is_issuer(self) -> bool:
        """True if this node holds an issuer's key."""
        return self._issuer is not None

    @property
    def empty(self) -> bool:
        """True before the first certificate."""
        return View(self._store).log_length == 0

    # --- running -------------------------------------------------------------------------------------

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Check the ledger, then keep it until cancelled, then close the store.

        Raises `LedgerDamaged` before anything is signed, `StoreFailed` if the disk takes nothing at the start, or takes
        no note of what a witness signs.
        """
        async with self.opened() as nursery:
            self._background = nursery
            nursery.start_soon(self._keep_up)
            task_status.started()
            while True:
                await trio.sleep(HOUSEKEEPING_SECONDS)
                await self.keep_house()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[trio.Nursery]:
        """The ledger checked and writable, without housekeeping: enough for what needs no peers. Closes the store.

        Raises `LedgerDamaged` or `StoreFailed` before anything is signed.
        """
        try:
            await self._check_before_signing()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._writer.run)
                await self._write_beginning()
                self._note_epoch()
                yield nursery
                nursery.cancel_scope.cancel()
        finally:
            self._background = None
            self._store.close()

    async def _keep_up(self) -> None:
        """A witness that was asked for what builds on more than it knows looks at once, but not all the time."""
        while True:
            await self._lacking.wait()
            self._lacking = trio.Event()
            await self._replica.looked()
            await trio.sleep(LOOK_SECONDS)

    async def keep_house(self) -> None:
        """Settle idle and expiring channels that owe this node; as a witness, refund expired holds and end epochs."""
        await self.close_idle(self._settings.close_after_ms)
        if self._replica.is_only_witness:
            for channel in await trio.to_thread.run_sync(self._witness.expired):
                await self._refund(channel)
        await self.epochs.keep()

    async def _check_before_signing(self) -> None:
        genesis = self._store.get(_GENESIS_KEY)
        if genesis not in (None, self.federation):
            raise LedgerDamaged("the ledger belongs to another federation; give this one a folder of its own")
        try:
            if self._memory is not None:
                self._memory.check()
            await trio.to_thread.run_sync(migrate, self._store)
            report = await self.verify(signatures=bool(self._store.damaged), from_checkpoint=not self._store.damaged)
        except (SchemaError, MemoryDamaged) as error:
            raise LedgerDamaged(str(error)) from None
        except StoreDamaged as error:
            raise LedgerDamaged(_damage(self.is_witness, str(error))) from None
        if not report.verified:
            raise LedgerDamaged(_damage(self.is_witness, "; ".join(report.problems[:3])))
        if self._store.damaged and self.is_witness:
            raise LedgerDamaged(_damage(True, f"records may be lost: {self._store.damaged}"))

    async def _write_beginning(self) -> None:
        try:
            await self._writer.commit(self._begin)
        except Refused as refusal:
            raise StoreFailed(refusal.message) from None

    def _begin(self, draft: Draft) -> None:
        draft.update({SCHEMA_KEY: SCHEMA, _GENESIS_KEY: self.federation})
        if self._memory is not None and self.is_witness and self._memory.begin(draft):
            log.error("this witness's ledger was set back: it abstains until an epoch that it has not signed in")
        today = free_quota.quota_day(self._clock())
        draft.update({key: None for key, _ in self._store.iterate(b"q") if not key.startswith(today)})
        self._note_channels()
        self._leases.begin()

    # --- paying --------------------------------------------------------------------------------------

    def lease(
        self, payee: NodeId, price_in: int, price_out: int, quote: bytes, need: int, payer: NodeId | None = None
    ) -> AbstractAsyncContextManager[ChannelLease]:
        """A channel to `payee` at these prices with at least `need` µcredits left, for one query alone.

        Raises `Refused`: INSUFFICIENT_FUNDS, or OVERLOADED while no quorum of witnesses can be reached.
        """
        return self._leases.lease(payee, Prices(price_in, price_out), quote, need, payer)

    # --- being paid ----------------------------------------------------------------------------------

    async def cover(self, channel: ChannelId, payer: NodeId) -> ChannelView:
        """See `Earnings.cover`."""
        return await self._earnings.cover(channel, payer)

    def serving(self, channel: ChannelId) -> AbstractAsyncContextManager[None]:
        """See `Earnings.serving`."""
        return self._earnings.serving(channel)

    async def take_voucher(
        self, channel: ChannelId, pay: Pay, expect_units_in: int, expect_units_out: int, expect_transcript: bytes
    ) -> int:
        """See `Earnings.take_voucher`."""
        return await self._earnings.take_voucher(channel, pay, expect_units_in, expect_units_out, expect_transcript)

    async def hear_voucher(self, pay: Pay, payer: NodeId) -> int:
        """See `Earnings.hear_voucher`."""
        return await self._earnings.hear_voucher(pay, payer)

    def unheard_vouchers(self) -> list[tuple[NodeId, ChannelId, Pay]]:
        """See `Leases.unheard`."""
        return self._leases.unheard()

    def voucher_heard(self, channel: ChannelId, cumulative: int) -> None:
        """See `Leases.heard`."""
        self._leases.heard(channel, cumulative)

    async def close(self, channel: ChannelId) -> None:
        """See `Earnings.close`."""
        await self._earnings.close(channel)

    async def close_idle(self, idle_ms: int) -> int:
        """See `Earnings.close_idle`."""
        return await self._earnings.close_idle(idle_ms)

    # --- the issuer, and the replica -----------------------------------------------------------------

    async def grant(self, to: NodeId, amount: int, *, only_first: bool = False) -> str:
        """See `AccountOrders.grant`."""
        return await self.accounts.grant(to, amount, only_first=only_first)

    async def ask_witness(self, index: int, request: Message, expected: type[Answer]) -> Answer:
        """One question to one witness. Raises `Refused`."""
        return await self._quorum.ask(index, request, expected)

    async def sync(self) -> None:
        """Learn what is new. Raises `Refused` if too few witnesses could be read."""
        await self._replica.sync()

    async def restore(self) -> int:
        """As a witness that was set back: take back what connected members have. How many records were new."""
        return await self._replica.restore()

    # --- serving others ------------------------------------------------------------------------------

    async def answer(self, peer: NodeId, request: Message) -> Message:
        """The answer to a peer's request to this ledger."""
        return await self._desk.answer(peer, request)

    async def _refund(self, channel: ChannelId) -> None:
        try:
            await self._witness.refund(channel)
        except Refused as refusal:
            log.warning("channel %s is not refunded: %s", channel.hex()[:12], refusal)

    # --- reading -------------------------------------------------------------------------------------

    async def record_receipt(self, receipt: Receipt) -> str:
        """Keep what one query was; its id in hex, the same on both sides."""
        return await self._writer.commit(lambda draft: self._journal.record_receipt(draft, receipt))

    async def balance(self, account: NodeId | None = None) -> Balance:
        """An account's standing in the local ledger; this node's own by default."""
        return await trio.to_thread.run_sync(_balance, self._store.snapshot(), account or self._signer.node)

    def channel_counts(self) -> tuple[int, int]:
        """How many open channels this node's accounts pay by, and are paid by."""
        states = self._channels.states.values()
        paying = sum(state.payer in self.wallet for state in states)
        return paying, sum(state.payee in self.wallet for state in states)

    def standing(self, account: NodeId) -> Account:
        """An account in the local ledger: its owner, keys and chain."""
        return View(self._store).account(account)

    async def history(self, limit: int = 20, before: str = "") -> list[Json]:
        """The newest entries first, older than the position `before`. Raises `Refused` (INVALID_REQUEST)."""
        return await trio.to_thread.run_sync(history, self._store.snapshot(), limit, before)

    async def show(self, id_prefix: str) -> Json:
        """One entry with its explanation. Raises `Refused` (INVALID_REQUEST)."""
        return await trio.to_thread.run_sync(self.reports().explain, id_prefix)

    def reports(self) -> LedgerReports:
        """Explanations from the ledger as it is now. They read the disk: ask them in a worker thread."""
        owners = frozenset({*self.wallet, *((self._issuer.node,) if self._issuer else ())})
        return LedgerReports(self._federation, self._store.snapshot(), self._signer.node, owners)

    async def audit(self, signatures: bool = False) -> Json:
        """Everything that this replica can say about its federation."""
        check = partial(audit, self._federation, self._store.snapshot(), self._clock(), signatures=signatures)
        return await trio.to_thread.run_sync(check)

    def snapshot(self) -> tuple[Federation, Snapshot]:
        """The ledger as it is now, for what reads it in a worker thread."""
        return self._federation, self._store.snapshot()

    async def bring_in(self, file: ExportFile, tell: Callable[[Imported], Awaitable[None]]) -> Imported:
        """Take what is new in an exported ledger, each record verified. `tell` hears of progress. Raises `Refused`."""
        taking = Import(self._federation, self._store, self._writer, self._witness, self._checkpoints)
        return await taking.take(file, tell)

    async def verify(self, signatures: bool = False, *, from_checkpoint: bool = False) -> Report:
        """Make the local ledger's state anew and compare; with `from_checkpoint` the epoch in force alone."""
        snapshot = self._store.snapshot()
        given = {"signatures": signatures, "from_checkpoint": from_checkpoint}
        return await trio.to_thread.run_sync(partial(verify_on_all_cores, self._federation, snapshot, **given))

    # --- the free lane -------------------------------------------------------------------------------

    async def use_free(self, peer: NodeId, tokens: int, per_peer_limit: int, total_limit: int) -> None:
        """Count tokens given for nothing today (UTC). Raises `Refused` (QUOTA_EXCEEDED), and counts nothing then."""
        now = self._clock()
        await self._writer.commit(lambda draft: free_quota.use(draft, peer, tokens, per_peer_limit, total_limit, now))

    def free_used(self) -> int:
        """Tokens given for nothing today (UTC), to all peers together."""
        return free_quota.used(self._store, self._clock())

    async def free_left(self, peer: NodeId, per_peer_limit: int, total_limit: int) -> int:
        """Tokens that `peer` may still have for nothing today."""
        return free_quota.left(self._store, peer, per_peer_limit, total_limit, self._clock())


def bookkeeper_of(
    data: Path,
    federation: Federation,
    signer: Signer,
    store: Store,
    peers: LedgerPeers,
    settings: Settings | None = None,
) -> Bookkeeper:
    """The bookkeeper of a data folder, with its issuer's key, its further keys and a witness's memory that lie there.

    Raises `IdentityError`, or `WalletError` for a file of keys that cannot be read.
    """
    return Bookkeeper(
        store,
        signer,
        federation,
        load_issuer(data, federation),
        now_ms,
        peers,
        settings,
        Wallet(signer, accounts_path(data)),
        WitnessMemory(memory_path(data, federation)),
    )


class _Owners:
    """The accounts whose orders this node's owner reads about."""

    def __init__(self, wallet: Wallet, issuer: Signer | None) -> None:
        self._wallet = wallet
        self._issuer = None if issuer is None else issuer.node

    def __contains__(self, account: object) -> bool:
        return account in self._wallet or (self._issuer is not None and account == self._issuer)


def _damage(witness: bool, what: str) -> str:
    fix = (
        "This node is the witness: restore the ledger folder as it was, for votes that were given must not be "
        "forgotten; if it is lost, create a new federation"
        if witness
        else "Move the ledger folder away and start again: the node then fetches the log from its witness. "
        "Vouchers that were not settled are lost with it"
    )
    return f"the local ledger is damaged: {what}. Nothing was signed or changed. {fix}"


def _balance(reader: Snapshot, account: NodeId) -> Balance:
    """Walks the open channels."""
    view = View(reader)
    held = pending = owed = 0
    for identity, channel in open_channels(reader):
        if account not in (channel.payer, channel.payee):
            continue
        promised = last_voucher(reader, identity).cumulative
        paying = channel.payer == account
        held += channel.amount if paying else 0
        owed += promised if paying else 0
        pending += 0 if paying else promised
    standing = view.account(account)
    return Balance(standing.balance, held, standing.earned, standing.spent, pending, owed)
