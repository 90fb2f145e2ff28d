"""Being paid: channels that others opened for this node.

Rule: a channel serves one query at a time. A voucher is checked against what was delivered and is on the disk before it
counts. What is owed is settled when its channel is idle, and in any case before its hold expires.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from node.ledger_writer import LedgerWriter
from node.open_channels import OpenChannels, last_voucher
from node.ordering import Ordering
from node.store import Store
from protocol import params
from protocol.codec import decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import ChannelId, FederationId, NodeId
from protocol.ledger.channels import check_pay, open_voucher
from protocol.ledger.orders import as_refusal
from protocol.ledger.state import Channel, Draft, Reader, View, voucher_key
from protocol.messages import Close, Pay
from protocol.signing import Signer, verify

log = logging.getLogger("mtor.ledger")


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


class Earnings:
    """The paid side of one node."""

    def __init__(
        self,
        signer: Signer,
        federation: FederationId,
        store: Store,
        writer: LedgerWriter,
        ordering: Ordering,
        channels: OpenChannels,
        clock: Callable[[], int],
    ) -> None:
        self._signer = signer
        self._federation = federation
        self._store = store
        self._writer = writer
        self._ordering = ordering
        self._channels = channels
        self._clock = clock
        self._serving: set[ChannelId] = set()

    async def cover(self, channel: ChannelId, payer: NodeId) -> ChannelView:
        """An open channel from `payer` to this node, fetched from the witness if it is not known here.

        Raises `Refused`: UNKNOWN_CHANNEL, CHANNEL_CLOSED, EXPIRED, or OVERLOADED while the witness cannot be reached.
        """
        if View(self._store).channel(channel) is None:
            await self._ordering.sync()
        state = self._incoming(channel)
        if state.payer != payer:
            raise Refused(ErrorCode.UNKNOWN_CHANNEL, "this channel is another payer's")
        self._check_time(state)
        last = last_voucher(self._store, channel)
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
                earlier = last_voucher(draft, channel)
                voucher = check_pay(self._federation, channel, state, earlier, pay, verify)
            if (voucher.units_in, voucher.units_out, voucher.transcript) != expected:
                raise Refused(ErrorCode.BAD_VOUCHER, "the voucher is not for what was delivered")
            draft.update({voucher_key(channel): encode(pay)})
            return voucher.cumulative

        cumulative = await self._writer.commit(decide)
        self._channels.use(channel, self._clock())
        return cumulative

    async def hear_voucher(self, pay: Pay, payer: NodeId) -> int:
        """A voucher outside of a query: its payer makes sure that a promise was not lost with a connection.

        It can only raise what this node is owed. Returns its cumulative µcredits, stored. Raises `Refused`.
        """
        with as_refusal():
            channel = open_voucher(pay.voucher).channel
        async with self.serving(channel):
            return await self._writer.commit(partial(self._decide_heard, channel, pay, payer))

    def _decide_heard(self, channel: ChannelId, pay: Pay, payer: NodeId, draft: Draft) -> int:
        state = self._incoming(channel, draft)
        if state.payer != payer:
            raise Refused(ErrorCode.UNKNOWN_CHANNEL, "this channel is another payer's")
        with as_refusal():
            voucher = check_pay(self._federation, channel, state, last_voucher(draft, channel), pay, verify)
        draft.update({voucher_key(channel): encode(pay)})
        return voucher.cumulative

    async def close(self, channel: ChannelId) -> None:
        """Settle a channel by its best voucher. Raises `Refused`."""
        async with self.serving(channel):
            self._incoming(channel)
            stored = self._store.get(voucher_key(channel))
            if stored is None:
                raise Refused(ErrorCode.BAD_VOUCHER, "no voucher: there is nothing to settle")
            pay = decode_as(Pay, stored)
            body = encode(Close(channel, pay.voucher, pay.signature))
            await self._ordering.submit(body, self._signer.sign(self._federation, body))

    async def close_idle(self, idle_ms: int) -> int:
        """Settle all channels that owe this node and are idle for `idle_ms` or near their expiry. How many were."""
        closed = 0
        for channel in [channel for channel in self._channels.states if self._to_settle(channel, idle_ms)]:
            try:
                await self.close(channel)
            except Refused as refusal:
                log.warning("channel %s is not settled yet: %s", channel.hex()[:12], refusal)
                if refusal.code is ErrorCode.OVERLOADED or not await self._ordering.looked():
                    break
            else:
                closed += 1
        return closed

    def _to_settle(self, channel: ChannelId, idle_ms: int) -> bool:
        state, now = self._channels.states[channel], self._clock()
        owing = state.payee == self._signer.node and self._store.get(voucher_key(channel)) is not None
        idle = self._channels.idle_ms(channel, now) >= idle_ms
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
