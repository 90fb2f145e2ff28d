"""Paying: channels that this node opened, lent to one query at a time.

Rule: a query has a channel for itself, so concurrent queries use parallel channels. A channel is used again only while
both sides stand at the same voucher. No voucher leaves before it is on the disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from node.ledger_writer import LedgerWriter
from node.open_channels import OpenChannels, last_voucher
from node.ordering import Ordering
from node.replica import Replica
from node.store import Store
from node.wallet import Wallet
from protocol import params
from protocol.codec import body_hash, decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import ChannelId, FederationId, NodeId
from protocol.ledger.channels import check_successor, check_voucher
from protocol.ledger.state import Channel, Draft, View, voucher_key
from protocol.messages import Hold, Pay, Voucher
from protocol.pricing import channel_cost, format_credits

LEASE_MARGIN = params.SETTLE_MARGIN + params.MAX_DEADLINE  # the longest query still ends before its worker must settle
EPOCHS_IN_A_ROW = 3  # that a hold may fall into while it is opened
DOUBT_AFTER = 5 * params.SECONDS  # a channel idle for longer may be closed by now: look before using it


class Prices(NamedTuple):
    """µcredits for 1,000 tokens."""

    price_in: int
    price_out: int


class ChannelLease:
    """A channel that one query has for itself. Counts are the channel's, as they stood before the query."""

    def __init__(self, leases: Leases, channel: ChannelId, state: Channel, last: Voucher) -> None:
        self._leases = leases
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
        return await self._leases.sign_voucher(self._state, voucher)

    def confirm(self, cumulative: int) -> None:
        """The worker says that it stored the voucher of this amount."""
        if cumulative == self._last.cumulative:
            self._confirmed = self._last

    def spoil(self) -> None:
        """Do not use this channel again: the worker refused it."""
        self.spoiled = True


class Leases:
    """The paying side of one node."""

    def __init__(
        self,
        wallet: Wallet,
        federation: FederationId,
        store: Store,
        writer: LedgerWriter,
        ordering: Ordering,
        replica: Replica,
        channels: OpenChannels,
        clock: Callable[[], int],
        hold: int,
    ) -> None:
        """`hold`: µcredits that a new channel locks, if no more is needed and the balance allows it."""
        self._wallet = wallet
        self._replica = replica
        self._federation = federation
        self._store = store
        self._writer = writer
        self._ordering = ordering
        self._channels = channels
        self._clock = clock
        self._hold = hold
        self._leased: set[ChannelId] = set()
        self._doubtful: set[ChannelId] = set()  # the two sides may stand at different vouchers

    def begin(self) -> None:
        """At the start: channels with vouchers of an earlier life are not used again."""
        channels = self._channels.states
        self._doubtful.update(channel for channel in channels if self._store.get(voucher_key(channel)) is not None)

    @asynccontextmanager
    async def lease(
        self, payee: NodeId, prices: Prices, quote: bytes, need: int, payer: NodeId | None = None
    ) -> AsyncIterator[ChannelLease]:
        """A channel to `payee` at these prices with at least `need` µcredits left, for one query alone, paid by the
        account `payer` (this node's own if none is named).

        Raises `Refused`: INSUFFICIENT_FUNDS, or OVERLOADED while no quorum of witnesses can be reached.
        """
        account = payer or self._wallet.main
        await self._look_if_doubtful(payee)
        channel = self._idle_channel(account, payee, prices, need)
        if channel is None:
            channel = await self._open_channel(account, payee, prices, quote, need)
        state = self._channels.states[channel]
        self._leased.add(channel)
        lease = ChannelLease(self, channel, state, last_voucher(self._store, channel))
        try:
            yield lease
        finally:
            self._leased.discard(channel)
            self._channels.use(channel, self._clock() if lease.used else 0)
            if not lease.clean:
                self._doubtful.add(channel)
            self._doubtful.intersection_update(self._channels.states)

    def unheard(self) -> list[tuple[NodeId, ChannelId, Pay]]:
        """(worker, channel, last voucher) where the worker may not have that voucher, and no query is under way."""
        found = []
        for channel in self._doubtful - self._leased:
            state, stored = self._channels.states.get(channel), self._store.get(voucher_key(channel))
            if state is not None and state.payer in self._wallet and stored is not None:
                found.append((state.payee, channel, decode_as(Pay, stored)))
        return found

    def heard(self, channel: ChannelId, cumulative: int) -> None:
        """The worker has the last voucher: both sides stand at the same one again."""
        if last_voucher(self._store, channel).cumulative == cumulative:
            self._doubtful.discard(channel)

    def _idle_channel(self, payer: NodeId, payee: NodeId, prices: Prices, need: int) -> ChannelId | None:
        now = self._clock()
        for channel, state in self._channels.states.items():
            free = channel not in self._leased and channel not in self._doubtful
            fits = (state.payer, state.payee) == (payer, payee)
            priced = (state.price_in, state.price_out) == prices
            if free and fits and priced and state.expiry_ms - now > LEASE_MARGIN:
                last = last_voucher(self._store, channel)
                if state.amount - last.cumulative >= need:
                    return channel
        return None

    async def _look_if_doubtful(self, payee: NodeId) -> None:
        """Fetch what is new if a channel to `payee` was idle long enough to be closed by it."""
        now = self._clock()
        idle = (
            self._channels.idle_ms(channel, now)
            for channel, state in self._channels.states.items()
            if state.payee == payee and channel not in self._leased
        )
        if max(idle, default=0) > DOUBT_AFTER:
            await self._replica.looked()

    async def _open_channel(self, payer: NodeId, payee: NodeId, prices: Prices, quote: bytes, need: int) -> ChannelId:
        """A new hold; once more if the epoch changed while it was under way."""
        for _ in range(EPOCHS_IN_A_ROW):
            try:
                return await self._hold_once(payer, payee, prices, quote, need)
            except Refused as refusal:
                if refusal.code is not ErrorCode.STALE_EPOCH:
                    raise
        raise Refused(ErrorCode.OVERLOADED, "the federation changes epochs; try again soon", params.SECONDS)

    async def _hold_once(self, payer: NodeId, payee: NodeId, prices: Prices, quote: bytes, need: int) -> ChannelId:
        signer = self._wallet.signer(payer, View(self._store))
        async with self._ordering.turn(payer, signer) as view:
            finished = self._idle_channel(payer, payee, prices, need)
            if finished is not None:  # an order of before, whose answer was lost
                self._leased.add(finished)
                return finished
            account = view.account(payer)
            if account.balance < max(need, 1):
                raise Refused(
                    ErrorCode.INSUFFICIENT_FUNDS,
                    f"the answer may cost {format_credits(need)}, the balance is {format_credits(account.balance)}"
                    + self._held_too(payer),
                )
            hold = Hold(
                payer=payer,
                sequence=account.next_sequence,
                previous=account.head,
                payee=payee,
                amount=min(max(self._hold, need), account.balance),
                price_in=prices.price_in,
                price_out=prices.price_out,
                expiry_ms=self._clock() + params.HOLD_LIFETIME,
                quote=quote,
                epoch=view.epoch,
            )
            body = encode(hold)
            channel = ChannelId(body_hash(body))
            self._leased.add(channel)  # it is for the caller, and for nobody who looks in the meantime
            try:
                await self._ordering.order(payer, signer, body)
            except BaseException:
                self._leased.discard(channel)
                raise
        return channel

    def _held_too(self, payer: NodeId) -> str:
        held = sum(state.amount for state in self._channels.states.values() if state.payer == payer)
        return f" ({format_credits(held)} are held in open channels)" if held else ""

    async def sign_voucher(self, state: Channel, voucher: Voucher) -> Pay:
        """Sign and store a lease's voucher. Raises `Refused`."""
        body = encode(voucher)
        pay = Pay(body, self._wallet.signer(state.payer, View(self._store)).sign(self._federation, body))

        def decide(draft: Draft) -> None:
            check_voucher(state, voucher.channel, voucher)
            check_successor(last_voucher(draft, voucher.channel), voucher)
            draft.update({voucher_key(voucher.channel): encode(pay)})

        await self._writer.commit(decide)
        return pay
