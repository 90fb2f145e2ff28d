"""The node's accounts: pays, gets paid, witnesses, and explains it all.

Rule: the single writer of the ledger, and nothing that depends on a signature leaves before the disk has it. The local
ledger is checked whole before anything is signed. It is a prefix of the witness's log: an own order is stored at the
witness first and then fetched from there, so every replica applies the same orders in the same sequence.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from node import free_quota
from node.journal import Journal, Json, history, show
from node.journal import Receipt as Receipt
from node.ledger_writer import LedgerWriter
from node.store import Snapshot, Store, StoreDamaged
from node.witness import Witness
from node.witness_port import WitnessPort, WitnessUnreachable
from protocol import params
from protocol.codec import body_hash, decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import ChannelId, FederationId, NodeId
from protocol.ledger.audit import Report, verify_log
from protocol.ledger.certificates import certify, check_vote
from protocol.ledger.channels import check_pay, check_successor, check_voucher, no_voucher, open_voucher
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import CheckedOrder, as_refusal, check_order
from protocol.ledger.state import Channel, Draft, Reader, View, voucher_key
from protocol.messages import (
    Certificates,
    Close,
    FetchCertificates,
    Genesis,
    Grant,
    Hold,
    Pay,
    Rejected,
    RequestVote,
    StoreCertificate,
    Stored,
    Voted,
    Voucher,
    WitnessSignature,
)
from protocol.pricing import channel_cost, format_credits
from protocol.signing import Signer, verify

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.ledger")

LEASE_MARGIN = params.SETTLE_MARGIN + params.MAX_DEADLINE  # the longest query still ends before its worker must settle
DOUBT_AFTER = 5 * params.SECONDS  # a channel idle for longer may be closed by now: look before using it
HOUSEKEEPING_SECONDS = 5.0
APPLIED_AT_ONCE = 32  # fetched certificates in one commit: signatures to check between two turns of other tasks
WITNESS_RETRY = 5 * params.SECONDS

_SCHEMA_KEY, _SCHEMA = b"m:schema", b"1"
_GENESIS_KEY = b"m:genesis"
_PENDING = b"m:pending:"  # + account: its order that was signed and is not yet known to be applied


class LedgerDamaged(Exception):
    """The stored ledger is not true. The message names the fix. Nothing was signed or changed."""


class Prices(NamedTuple):
    """µcredits for 1,000 tokens."""

    price_in: int
    price_out: int


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


@dataclass(frozen=True, slots=True)
class ChannelView:
    """A channel as its worker finds it before a query."""

    channel: ChannelId
    payer: NodeId
    amount: int
    price_in: int
    price_out: int
    expiry_ms: int
    cumulative: int
    units_in: int
    units_out: int
    transcript: bytes

    @property
    def remaining(self) -> int:
        """µcredits that vouchers may still add."""
        return self.amount - self.cumulative


class ChannelLease:
    """A channel that one query has for itself. Counts are the channel's, as they stood before the query."""

    def __init__(self, bookkeeper: Bookkeeper, channel: ChannelId, state: Channel, last: Voucher) -> None:
        self._bookkeeper = bookkeeper
        self._state = state
        self._first = self._last = self._confirmed = last
        self.spoiled = False
        self.channel = channel
        self.prices = Prices(state.price_in, state.price_out)
        self.units_in = last.units_in
        self.units_out = last.units_out
        self.transcript = last.transcript
        self.cumulative = last.cumulative

    @property
    def remaining(self) -> int:
        """µcredits that vouchers may still add."""
        return self._state.amount - self._last.cumulative

    @property
    def spent(self) -> int:
        """µcredits that this query signed for."""
        return self._last.cumulative - self.cumulative

    @property
    def clean(self) -> bool:
        """True if both sides stand at the same voucher, so that another query may follow."""
        return not self.spoiled and self._confirmed == self._last

    @property
    def used(self) -> bool:
        """True if this query signed anything. If not, the worker may have refused the channel."""
        return self._last != self._first

    async def sign(self, units_in: int, units_out: int, transcript: bytes) -> Pay:
        """A voucher for the channel's counts so far (those before this query included), stored before it is returned.

        Raises `Refused`, INSUFFICIENT_FUNDS beyond the hold.
        """
        cumulative = channel_cost(units_in, units_out, *self.prices)
        if cumulative > self._state.amount:
            raise Refused(
                ErrorCode.INSUFFICIENT_FUNDS,
                f"{format_credits(cumulative)} are due, {format_credits(self._state.amount)} are held",
            )
        voucher = Voucher(self.channel, cumulative, units_in, units_out, transcript)
        self._last = voucher  # if storing it is interrupted, the channel counts as not clean
        return await self._bookkeeper.sign_voucher(self._state, voucher)

    def confirm(self, cumulative: int) -> None:
        """The worker says that it stored the voucher of this amount."""
        if cumulative == self._last.cumulative:
            self._confirmed = self._last

    def spoil(self) -> None:
        """Do not use this channel again: the worker refused it."""
        self.spoiled = True


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
        self._witnesses = witnesses
        self._settings = settings or Settings()
        owners = {signer.node} | ({self._issuer.node} if self._issuer else set())
        self._journal = Journal(frozenset(owners), signer.node)
        self._writer = LedgerWriter(store, self._note_channels)
        self._witness = Witness(federation, store, self._writer, signer, self._journal, clock)
        self._open: dict[ChannelId, Channel] = {}  # channels that this node pays or is paid by
        self._used_ms: dict[ChannelId, int] = {}  # when a channel was last used in this life
        self._doubtful: set[ChannelId] = set()  # the two sides may stand at different vouchers
        self._leased: set[ChannelId] = set()
        self._serving: set[ChannelId] = set()
        self._ordering = trio.Lock()  # one account's orders are made one after the other
        self._syncing = trio.Lock()
        self._head_known = self._is_only_witness

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
        if self._is_only_witness:
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
        self._note_channels(dict(self._store.iterate(b"c")))
        self._doubtful.update(channel for channel in self._open if self._store.get(voucher_key(channel)) is not None)

    def _note_channels(self, written: Mapping[bytes, bytes | None]) -> None:
        """Keep the list of this node's open channels in step with what was written."""
        for key, value in written.items():
            if key[:1] != b"c" or value is None:
                continue
            channel, state = ChannelId(key[1:]), Channel.decode(value)
            if state.open and self._signer.node in (state.payer, state.payee):
                self._open[channel] = state
            else:
                self._open.pop(channel, None)

    # --- paying --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lease(
        self, payee: NodeId, price_in: int, price_out: int, quote: bytes, need: int
    ) -> AsyncIterator[ChannelLease]:
        """A channel to `payee` at these prices with at least `need` µcredits left, for one query alone.

        Raises `Refused`: INSUFFICIENT_FUNDS, or OVERLOADED while the witness cannot be reached.
        """
        prices = Prices(price_in, price_out)
        await self._look_if_doubtful(payee)
        channel = self._idle_channel(payee, prices, need)
        if channel is None:
            channel = await self._open_channel(payee, prices, quote, need)
        state = self._open[channel]
        self._leased.add(channel)
        lease = ChannelLease(self, channel, state, _last_voucher(self._store, channel))
        try:
            yield lease
        finally:
            self._leased.discard(channel)
            self._used_ms[channel] = self._clock() if lease.used else 0
            if not lease.clean:
                self._doubtful.add(channel)

    def _idle_channel(self, payee: NodeId, prices: Prices, need: int) -> ChannelId | None:
        now = self._clock()
        for channel, state in self._open.items():
            free = channel not in self._leased and channel not in self._doubtful
            fits = (state.payer, state.payee) == (self._signer.node, payee)
            priced = (state.price_in, state.price_out) == prices
            if free and fits and priced and state.expiry_ms - now > LEASE_MARGIN:
                last = _last_voucher(self._store, channel)
                if state.amount - last.cumulative >= need:
                    return channel
        return None

    async def _look_if_doubtful(self, payee: NodeId) -> None:
        """Fetch what is new if a channel to `payee` was idle long enough to be closed by it."""
        now = self._clock()
        idle = (
            now - self._used_ms.get(channel, 0)
            for channel, state in self._open.items()
            if state.payee == payee and channel not in self._leased
        )
        if max(idle, default=0) > DOUBT_AFTER:
            await self._looked()

    async def _looked(self) -> bool:
        """Fetch what is new. False if the witness could not be asked."""
        try:
            await self.sync()
        except Refused as refusal:
            log.info("going on with what is known: %s", refusal)
            return False
        return True

    async def _open_channel(self, payee: NodeId, prices: Prices, quote: bytes, need: int) -> ChannelId:
        async with self._ordering:
            await self._ready_to_order(self._signer)
            finished = self._idle_channel(payee, prices, need)
            if finished is not None:  # an order of before, whose answer was lost
                self._leased.add(finished)
                return finished
            account = View(self._store).account(self._signer.node)
            if account.balance < max(need, 1):
                raise Refused(
                    ErrorCode.INSUFFICIENT_FUNDS,
                    f"the answer may cost {format_credits(need)}, the balance is {format_credits(account.balance)}",
                )
            hold = Hold(
                payer=self._signer.node,
                sequence=account.next_sequence,
                previous=account.head,
                payee=payee,
                amount=min(max(self._settings.hold, need), account.balance),
                price_in=prices.price_in,
                price_out=prices.price_out,
                expiry_ms=self._clock() + params.HOLD_LIFETIME,
                quote=quote,
                epoch=View(self._store).epoch,
            )
            body = encode(hold)
            channel = ChannelId(body_hash(body))
            self._leased.add(channel)  # it is for the caller, and for nobody who looks in the meantime
            self._used_ms[channel] = self._clock()
            try:
                await self._order(self._signer, body)
            except BaseException:
                self._leased.discard(channel)
                raise
        return channel

    async def sign_voucher(self, state: Channel, voucher: Voucher) -> Pay:
        """Sign and store a lease's voucher. Raises `Refused`."""
        body = encode(voucher)
        pay = Pay(body, self._signer.sign(self.federation, body))

        def decide(draft: Draft) -> None:
            check_voucher(state, voucher.channel, voucher)
            check_successor(_last_voucher(draft, voucher.channel), voucher)
            draft.update({voucher_key(voucher.channel): encode(pay)})

        await self._writer.commit(decide)
        return pay

    # --- being paid ----------------------------------------------------------------------------------

    async def cover(self, channel: ChannelId, payer: NodeId) -> ChannelView:
        """An open channel from `payer` to this node, fetched from the witness if it is not known here.

        Raises `Refused`: UNKNOWN_CHANNEL, CHANNEL_CLOSED, EXPIRED, or OVERLOADED while the witness cannot be reached.
        """
        if View(self._store).channel(channel) is None:
            await self.sync()
        state = self._incoming(channel)
        if state.payer != payer:
            raise Refused(ErrorCode.UNKNOWN_CHANNEL, "this channel is another payer's")
        self._check_time(state)
        last = _last_voucher(self._store, channel)
        return ChannelView(
            channel,
            state.payer,
            state.amount,
            state.price_in,
            state.price_out,
            state.expiry_ms,
            last.cumulative,
            last.units_in,
            last.units_out,
            last.transcript,
        )

    @asynccontextmanager
    async def serving(self, channel: ChannelId) -> AsyncIterator[None]:
        """Have the channel for one query. Raises `Refused` (INVALID_REQUEST) if another query or a close has it."""
        if channel in self._serving:
            raise Refused(ErrorCode.INVALID_REQUEST, "the channel has another query; open one channel for each")
        self._serving.add(channel)
        try:
            yield
        finally:
            self._serving.discard(channel)

    async def take_voucher(
        self, channel: ChannelId, pay: Pay, expect_units_in: int, expect_units_out: int, expect_transcript: bytes
    ) -> int:
        """Check and store a voucher for these counts (the channel's) and this transcript.

        Returns its cumulative µcredits once it is on the disk. Raises `Refused`.
        """
        expected = (expect_units_in, expect_units_out, expect_transcript)

        def decide(draft: Draft) -> int:
            state = self._incoming(channel, draft)
            self._check_time(state)
            with as_refusal():
                earlier = _last_voucher(draft, channel)
                voucher = check_pay(self.federation, channel, state, earlier, pay, verify)
            if (voucher.units_in, voucher.units_out, voucher.transcript) != expected:
                raise Refused(ErrorCode.BAD_VOUCHER, "the voucher is not for what was delivered")
            draft.update({voucher_key(channel): encode(pay)})
            return voucher.cumulative

        cumulative = await self._writer.commit(decide)
        self._used_ms[channel] = self._clock()
        return cumulative

    async def close(self, channel: ChannelId) -> None:
        """Settle a channel by its best voucher. Raises `Refused`."""
        async with self.serving(channel):
            self._incoming(channel)
            stored = self._store.get(voucher_key(channel))
            if stored is None:
                raise Refused(ErrorCode.BAD_VOUCHER, "no voucher: there is nothing to settle")
            pay = decode_as(Pay, stored)
            body = encode(Close(channel, pay.voucher, pay.signature))
            await self._submit(body, self._signer.sign(self.federation, body))

    async def close_idle(self, idle_ms: int) -> int:
        """Settle all channels that owe this node and are idle for `idle_ms` or near their expiry. How many were."""
        closed = 0
        for channel in [channel for channel in self._open if self._to_settle(channel, idle_ms)]:
            try:
                await self.close(channel)
            except Refused as refusal:
                log.warning("channel %s is not settled yet: %s", channel.hex()[:12], refusal)
                if refusal.code is ErrorCode.OVERLOADED or not await self._looked():
                    break
            else:
                closed += 1
        return closed

    def _to_settle(self, channel: ChannelId, idle_ms: int) -> bool:
        state, now = self._open[channel], self._clock()
        owing = state.payee == self._signer.node and self._store.get(voucher_key(channel)) is not None
        idle = now - self._used_ms.get(channel, 0) >= idle_ms
        return owing and channel not in self._serving and (idle or state.expiry_ms - now <= params.SETTLE_MARGIN)

    def _incoming(self, channel: ChannelId, reader: Reader | None = None) -> Channel:
        state = View(reader or self._store).channel(channel)
        if state is None or state.payee != self._signer.node:
            raise Refused(ErrorCode.UNKNOWN_CHANNEL, "no hold with this id is open for this node")
        if not state.open:
            raise Refused(ErrorCode.CHANNEL_CLOSED, "the channel is settled")
        return state

    def _check_time(self, state: Channel) -> None:
        if state.expiry_ms - self._clock() <= params.SETTLE_MARGIN:
            raise Refused(ErrorCode.EXPIRED, "the hold expires too soon to be settled; open a new channel")

    # --- orders --------------------------------------------------------------------------------------

    async def grant(self, to: NodeId, amount: int) -> str:
        """Give credits out of nothing, as the issuer. The order's id in hex. Raises `Refused`."""
        issuer = self._issuer
        if issuer is None:
            raise Refused(ErrorCode.NOT_ISSUER, "this node holds no issuer's key of this federation")
        async with self._ordering:
            await self._ready_to_order(issuer)
            view = View(self._store)
            account = view.account(issuer.node)
            body = encode(Grant(issuer.node, account.next_sequence, account.head, to, amount, view.epoch))
            await self._order(issuer, body)
        return body_hash(body).hex()

    async def _ready_to_order(self, owner: Signer) -> None:
        """Know the account's true head, and finish the order that an earlier life left behind."""
        if not self._head_known:
            await self.sync()
            self._head_known = True
        stored = self._store.get(_PENDING + owner.node)
        if stored is not None:
            pending = decode_as(RequestVote, stored)
            try:
                await self._submit(pending.body, pending.signature)
            except Refused as refusal:
                if refusal.code is ErrorCode.OVERLOADED:
                    raise
                log.warning("an order of an earlier run was refused and is dropped: %s", refusal)
            await self._forget_pending(owner)

    async def _order(self, owner: Signer, body: bytes) -> None:
        """Sign an account's next order, store it, and have it certified and applied. Raises `Refused`."""
        request = RequestVote(body, owner.sign(self.federation, body))
        check_order(self._federation, View(self._store), request.body, request.signature)
        await self._writer.commit(lambda draft: draft.update({_PENDING + owner.node: encode(request)}))
        try:
            await self._submit(request.body, request.signature)
        except Refused as refusal:
            if refusal.code is not ErrorCode.OVERLOADED:
                await self._forget_pending(owner)
                self._head_known = self._is_only_witness
            raise
        await self._forget_pending(owner)

    async def _forget_pending(self, owner: Signer) -> None:
        await self._writer.commit(lambda draft: draft.update({_PENDING + owner.node: None}))

    async def _submit(self, body: bytes, signature: bytes) -> None:
        """Votes, certificate, stored by a quorum, applied here. Raises `Refused`."""
        checked = check_order(self._federation, View(self._store), body, signature)
        if View(self._store).certificate(checked.hash) is not None:
            return
        certificate = certify(checked, await self._collect_votes(checked))
        await self._store_at_witnesses(certificate)
        if not self._federation.single:
            await self._writer.commit(lambda draft: self._witness.apply(draft, certificate))
        await self.sync()

    async def _collect_votes(self, checked: CheckedOrder) -> list[WitnessSignature]:
        request = RequestVote(checked.body, checked.signature)
        votes: list[WitnessSignature] = []
        failure = _unreachable("no witness was asked")
        for index in range(len(self.genesis.witnesses)):
            try:
                answer = await self._ask_vote(index, request)
                vote = WitnessSignature(index, answer.signature)
                check_vote(self._federation, View(self._store), checked, vote)
                votes.append(vote)
            except Refused as refusal:
                failure = refusal
            if len(votes) == self._federation.quorum:
                return votes
        raise failure

    async def _ask_vote(self, index: int, request: RequestVote) -> Voted:
        try:
            own = index == self._federation.witness_index(self._signer.node)
            answer = await (self.vote(request) if own else self._witnesses.vote(index, request))
        except WitnessUnreachable as error:
            raise _unreachable(str(error)) from None
        if isinstance(answer, Rejected):
            raise _refused(answer)
        return answer

    async def _store_at_witnesses(self, certificate: bytes) -> None:
        request, stored = StoreCertificate(certificate), 0
        failure = _unreachable("no witness was asked")
        for index in range(len(self.genesis.witnesses)):
            try:
                await self._ask_store(index, request)
                stored += 1
            except Refused as refusal:
                failure = refusal
        if stored < self._federation.quorum:
            raise failure

    async def _ask_store(self, index: int, request: StoreCertificate) -> Stored:
        try:
            own = index == self._federation.witness_index(self._signer.node)
            answer = await (self.store(request) if own else self._witnesses.store(index, request))
        except WitnessUnreachable as error:
            raise _unreachable(str(error)) from None
        if isinstance(answer, Rejected):
            raise _refused(answer)
        return answer

    # --- the replica ---------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Fetch what is new in the witness's log and apply it in its order. Raises `Refused`."""
        if self._is_only_witness:
            return
        async with self._syncing:
            while await self._fetch_some():
                pass

    async def _fetch_some(self) -> bool:
        """Apply the next part of the log. True if there is more."""
        known = View(self._store).log_length
        start = max(0, known - 1)  # the last one that is known here too: the logs must agree on it
        answer = await self._ask_log(FetchCertificates(start, params.MAX_CERTIFICATES))
        if known:
            self._check_same_log(answer, known)
        fresh = answer.certificates[known - start :]
        for first in range(0, len(fresh), APPLIED_AT_ONCE):
            await self._writer.commit(partial(self._apply_all, fresh[first : first + APPLIED_AT_ONCE]))
        return bool(fresh) and View(self._store).log_length < answer.total

    def _check_same_log(self, answer: Certificates, known: int) -> None:
        mine = View(self._store).logged(known - 1)
        if answer.total < known or not answer.certificates or answer.certificates[0] != mine:
            raise Refused(
                ErrorCode.INTERNAL,
                f"the witness's log ({answer.total} certificates) does not contain certificate {known - 1} of this "
                "node's: the witness was set back or has forked its log. Nothing was signed; ask its operator",
            )

    def _apply_all(self, certificates: tuple[bytes, ...], draft: Draft) -> None:
        for certificate in certificates:
            self._witness.apply(draft, certificate)

    async def _ask_log(self, request: FetchCertificates) -> Certificates:
        try:
            answer = await self._witnesses.fetch(0, request)
        except WitnessUnreachable as error:
            raise _unreachable(str(error)) from None
        if isinstance(answer, Rejected):
            raise _refused(answer)
        return answer

    @property
    def _is_only_witness(self) -> bool:
        return self._federation.single and self.is_witness

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


def _refused(answer: Rejected) -> Refused:
    """A witness's refusal as an exception; a code that this version does not know counts as INTERNAL."""
    known = {int(code) for code in ErrorCode}
    return Refused(ErrorCode(answer.code) if answer.code in known else ErrorCode.INTERNAL, answer.reason)


def _unreachable(why: str) -> Refused:
    return Refused(
        ErrorCode.OVERLOADED,
        f"the federation's witness cannot be reached ({why}); open channels go on, new ones must wait",
        WITNESS_RETRY,
    )


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
        promised = _promised(reader, ChannelId(key[1:])) if channel.open else 0
        paying = channel.payer == account
        held += channel.amount if paying and channel.open else 0
        owed += promised if paying else 0
        spent += channel.paid if paying else 0
        pending += 0 if paying else promised
        earned += 0 if paying else channel.paid
    return Balance(View(reader).account(account).balance, held, earned, spent, pending, owed)


def _promised(reader: Snapshot, channel: ChannelId) -> int:
    return _last_voucher(reader, channel).cumulative


def _last_voucher(reader: Reader, channel: ChannelId) -> Voucher:
    stored = reader.get(voucher_key(channel))
    return no_voucher(channel) if stored is None else open_voucher(decode_as(Pay, stored).voucher)
