"""The node's accounts: pays, gets paid, witnesses, and explains it all.

Rule: the single writer of the ledger, and nothing that depends on a signature leaves before the disk has it. The local
ledger is checked whole before anything is signed. This file puts the parts together and is all that others see of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from node import free_quota
from node.earnings import ChannelView as ChannelView
from node.earnings import Earnings
from node.journal import Journal, Json, history, show
from node.journal import Receipt as Receipt
from node.leases import ChannelLease as ChannelLease
from node.leases import Leases
from node.leases import Prices as Prices
from node.ledger_writer import LedgerWriter
from node.open_channels import OpenChannels, last_voucher
from node.ordering import Ordering
from node.store import Snapshot, Store, StoreDamaged
from node.witness import Witness
from node.witness_port import WitnessPort
from protocol import params
from protocol.codec import body_hash, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import ChannelId, FederationId, NodeId
from protocol.ledger.audit import Report, verify_log
from protocol.ledger.genesis import Federation
from protocol.ledger.state import Channel, Draft, View
from protocol.messages import (
    Certificates,
    FetchCertificates,
    Genesis,
    Grant,
    Pay,
    Rejected,
    RequestVote,
    StoreCertificate,
    Stored,
    Voted,
)
from protocol.signing import Signer

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.ledger")

HOUSEKEEPING_SECONDS = 5.0
_SCHEMA_KEY, _SCHEMA = b"m:schema", b"1"
_GENESIS_KEY = b"m:genesis"


class LedgerDamaged(Exception):
    """The stored ledger is not true. The message names the fix. Nothing was signed or changed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator decides."""

    hold: int = 2_000_000  # µcredits locked for a worker at a time
    close_after_ms: int = 60 * params.SECONDS  # a worker settles a channel idle for this long


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
        witnesses: WitnessPort,
        settings: Settings | None = None,
    ) -> None:
        self._store = store
        self._signer = signer
        self._federation = federation
        self._issuer = issuer if issuer is not None and federation.is_issuer(issuer.node) else None
        self._clock = clock
        self._settings = settings or Settings()
        owners = {signer.node} | ({self._issuer.node} if self._issuer else set())
        self._journal = Journal(frozenset(owners), signer.node)
        self._channels = OpenChannels(signer.node)
        self._writer = LedgerWriter(store, self._channels.note)
        self._witness = Witness(federation, store, self._writer, signer, self._journal, clock)
        self._ordering = Ordering(federation, store, self._writer, self._witness, witnesses, signer)
        shared = (signer, federation.id, store, self._writer, self._ordering, self._channels, clock)
        self._leases = Leases(*shared, self._settings.hold)
        self._earnings = Earnings(*shared)

    # --- what it is ----------------------------------------------------------------------------------

    @property
    def federation(self) -> FederationId:
        """The federation's id."""
        return self._federation.id

    @property
    def genesis(self) -> Genesis:
        """The federation's constitution."""
        return self._federation.genesis

    @property
    def genesis_body(self) -> bytes:
        """Its exact bytes."""
        return self._federation.body

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

        Raises `LedgerDamaged` before anything is signed.
        """
        try:
            await self._check_before_signing()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._writer.run)
                await self._writer.commit(self._begin)
                task_status.started()
                while True:
                    await trio.sleep(HOUSEKEEPING_SECONDS)
                    await self.keep_house()
        finally:
            self._store.close()

    async def keep_house(self) -> None:
        """Settle idle and expiring channels that owe this node; as the witness, refund expired holds."""
        await self.close_idle(self._settings.close_after_ms)
        if self._ordering.is_only_witness:
            for channel in await trio.to_thread.run_sync(self._witness.expired):
                await self._refund(channel)

    async def _check_before_signing(self) -> None:
        schema, genesis = self._store.get(_SCHEMA_KEY), self._store.get(_GENESIS_KEY)
        if schema not in (None, _SCHEMA):
            raise LedgerDamaged(f"the ledger has schema {schema!r}, this program knows {_SCHEMA!r}; use a newer one")
        if genesis not in (None, self.federation):
            raise LedgerDamaged("the ledger belongs to another federation; give this one a folder of its own")
        try:
            report = await self.verify(signatures=bool(self._store.damaged))
        except StoreDamaged as error:
            raise LedgerDamaged(_damage(self.is_witness, str(error))) from None
        if not report.verified:
            raise LedgerDamaged(_damage(self.is_witness, "; ".join(report.problems[:3])))
        if self._store.damaged and self.is_witness:
            raise LedgerDamaged(_damage(True, f"records may be lost: {self._store.damaged}"))

    def _begin(self, draft: Draft) -> None:
        draft.update({_SCHEMA_KEY: _SCHEMA, _GENESIS_KEY: self.federation})
        today = free_quota.quota_day(self._clock())
        draft.update({key: None for key, _ in self._store.iterate(b"q") if not key.startswith(today)})
        self._channels.note(dict(self._store.iterate(b"c")))
        self._leases.begin()

    # --- paying --------------------------------------------------------------------------------------

    def lease(
        self, payee: NodeId, price_in: int, price_out: int, quote: bytes, need: int
    ) -> AbstractAsyncContextManager[ChannelLease]:
        """A channel to `payee` at these prices with at least `need` µcredits left, for one query alone.

        Raises `Refused`: INSUFFICIENT_FUNDS, or OVERLOADED while the witness cannot be reached.
        """
        return self._leases.lease(payee, Prices(price_in, price_out), quote, need)

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

    async def grant(self, to: NodeId, amount: int) -> str:
        """Give credits out of nothing, as the issuer. The order's id in hex. Raises `Refused`."""
        issuer = self._issuer
        if issuer is None:
            raise Refused(ErrorCode.NOT_ISSUER, "this node holds no issuer's key of this federation")
        async with self._ordering.turn(issuer) as view:
            account = view.account(issuer.node)
            body = encode(Grant(issuer.node, account.next_sequence, account.head, to, amount, view.epoch))
            await self._ordering.order(issuer, body)
        return body_hash(body).hex()

    async def sync(self) -> None:
        """Fetch what is new in the witness's log and apply it in its order. Raises `Refused`."""
        await self._ordering.sync()

    # --- serving others ------------------------------------------------------------------------------

    async def vote(self, request: RequestVote) -> Voted | Rejected:
        """As a witness: a vote, synced before it is returned."""
        return await self._witness.vote(request)

    async def store(self, request: StoreCertificate) -> Stored | Rejected:
        """As a witness: apply a certificate. Only a witness takes certificates; others fetch them in order."""
        if not self.is_witness:
            return Rejected(int(ErrorCode.NOT_A_WITNESS), "this node follows its witness's log")
        return await self._witness.store(request)

    def fetch(self, request: FetchCertificates) -> Certificates:
        """A part of the local log, for anybody."""
        return self._witness.fetch(request)

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

    async def history(self, limit: int = 20, before: str = "") -> list[Json]:
        """The newest entries first, older than the position `before`. Raises `Refused` (INVALID_REQUEST)."""
        return await trio.to_thread.run_sync(history, self._store.snapshot(), limit, before)

    async def show(self, id_prefix: str) -> Json:
        """One entry with its explanation. Raises `Refused` (INVALID_REQUEST)."""
        return await trio.to_thread.run_sync(show, self._store.snapshot(), id_prefix)

    async def verify(self, signatures: bool = False) -> Report:
        """Replay the whole local ledger and compare."""
        check = partial(verify_log, self._federation, self._store.snapshot(), signatures=signatures)
        return await trio.to_thread.run_sync(check)

    # --- the free lane -------------------------------------------------------------------------------

    async def use_free(self, peer: NodeId, tokens: int, per_peer_limit: int, total_limit: int) -> None:
        """Count tokens given for nothing today (UTC). Raises `Refused` (QUOTA_EXCEEDED), and counts nothing then."""
        now = self._clock()
        await self._writer.commit(lambda draft: free_quota.use(draft, peer, tokens, per_peer_limit, total_limit, now))

    async def free_left(self, peer: NodeId, per_peer_limit: int, total_limit: int) -> int:
        """Tokens that `peer` may still have for nothing today."""
        return free_quota.left(self._store, peer, per_peer_limit, total_limit, self._clock())


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
    """Walks all channels."""
    held = earned = spent = pending = owed = 0
    for key, value in reader.iterate(b"c"):
        channel = Channel.decode(value)
        if account not in (channel.payer, channel.payee):
            continue
        promised = last_voucher(reader, ChannelId(key[1:])).cumulative if channel.open else 0
        paying = channel.payer == account
        held += channel.amount if paying and channel.open else 0
        owed += promised if paying else 0
        spent += channel.paid if paying else 0
        pending += 0 if paying else promised
        earned += 0 if paying else channel.paid
    return Balance(View(reader).account(account).balance, held, earned, spent, pending, owed)
