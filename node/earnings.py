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

import trio

from node.ledger_writer import LedgerWriter
from node.open_channels import OpenChannels, last_voucher
from node.ordering import Ordering
from node.replica import Replica
from node.store import Store
from protocol import params
from protocol.codec import decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import ChannelId, FederationId, NodeId
from protocol.ledger.channels import check_pay, open_voucher
from protocol.ledger.families import may_use
from protocol.ledger.orders import as_refusal
from protocol.ledger.state import Channel, Draft, Reader, View, voucher_key
from protocol.messages import Close, Pay, RequestVote
from protocol.signing import Signer

log = logging.getLogger("mtor.ledger")

LOOK_WINDOW = 10 * params.SECONDS
LOOKS_A_PAYER = 64  # channels that one payer may name in that time and that no witness knows

_CLOSING = b"m:closing:"  # + channel: the close that was signed for it


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
        replica: Replica,
        channels: OpenChannels,
        clock: Callable[[], int],
    ) -> None:
        self._signer = signer
        self._federation = federation
        self._store = store
        self._writer = writer
        self._ordering = ordering
        self._replica = replica
        self._channels = channels
        self._clock = clock
        self._serving: set[ChannelId] = set()
        self._settling = trio.Lock()
        self._looks: dict[NodeId, list[int]] = {}  # when each payer made this node look, and nothing was found

    async def cover(self, channel: ChannelId, payer: NodeId) -> ChannelView:
        """An open channel that `payer` may use, final, fetched from the witnesses if it is not known here.

        Raises `Refused`: UNKNOWN_CHANNEL, CHANNEL_CLOSED, EXPIRED, or OVERLOADED while no quorum can be reached.
        """
        if View(self._store).channel(channel) is None:
            await self._look(payer, channel)
        state = self._incoming(channel)
        self._check_payer(state, payer)
        self._check_time(state)
        certificate = View(self._store).record(channel)  # none if it was pruned: then a checkpoint has it
        if certificate is not None and not self._ordering.is_final(channel):
            await self._ordering.make_final(channel, certificate)
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
                voucher = check_pay(self._federation, channel, state, earlier, pay, View(draft))
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
        self._check_payer(state, payer)
        with as_refusal():
            voucher = check_pay(self._federation, channel, state, last_voucher(draft, channel), pay, View(draft))
        draft.update({voucher_key(channel): encode(pay)})
        return voucher.cumulative

    async def close(self, channel: ChannelId) -> None:
        """Settle a channel by its best voucher. Raises `Refused`.

        From the first try on it takes no more vouchers: a second close would contradict the first.
        """
        async with self.serving(channel):
            if channel not in self._channels.states:
                self._incoming(channel)  # says why it cannot be closed
            request = await self._writer.commit(partial(self._decide_close, channel))
            await self._ordering.submit(request.body, request.signature)
            await self._writer.commit(lambda draft: draft.update({_CLOSING + channel: None}))

    def _decide_close(self, channel: ChannelId, draft: Draft) -> RequestVote:
        signed = draft.get(_CLOSING + channel)
        if signed is not None:
            return decode_as(RequestVote, signed)
        self._incoming(channel, draft)
        stored = draft.get(voucher_key(channel))
        if stored is None:
            raise Refused(ErrorCode.BAD_VOUCHER, "no voucher: there is nothing to settle")
        pay = decode_as(Pay, stored)
        body = encode(Close(channel, pay.voucher, pay.signature))
        request = RequestVote(body, self._signer.sign(self._federation, body))
        draft.update({_CLOSING + channel: encode(request)})
        return request

    async def close_idle(self, idle_ms: int) -> int:
        """Settle all channels that owe this node and are idle for `idle_ms` or near their expiry. How many were.

        One round at a time: whoever asks to settle must not be told that it is done while another round is at it.
        """
        async with self._settling:
            return await self._close_idle(idle_ms)

    async def _close_idle(self, idle_ms: int) -> int:
        closed = 0
        for channel in [channel for channel in self._channels.states if self._to_settle(channel, idle_ms)]:
            try:
                await self.close(channel)
            except Refused as refusal:
                log.warning("channel %s is not settled yet: %s", channel.hex()[:12], refusal)
                if refusal.code is ErrorCode.OVERLOADED or not await self._replica.looked():
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
        if not state.open or (reader or self._store).get(_CLOSING + channel) is not None:
            raise Refused(ErrorCode.CHANNEL_CLOSED, "the channel is settled, or being settled")
        return state

    def _check_payer(self, state: Channel, payer: NodeId) -> None:
        if not may_use(View(self._store), payer, state.payer):
            raise Refused(ErrorCode.UNKNOWN_CHANNEL, "this channel is another payer's")

    async def _look(self, payer: NodeId, channel: ChannelId) -> None:
        """Ask the witnesses for a channel. A stranger's ids cost a look each, so only so many may lead to nothing: an
        honest payer's are holds, however many it opens at once. Raises `Refused` (OVERLOADED)."""
        now = self._clock()
        self._looks = {peer: looks for peer, looks in self._looks.items() if looks and now - looks[-1] < LOOK_WINDOW}
        looks = [look for look in self._looks.get(payer, []) if now - look < LOOK_WINDOW]
        if len(looks) >= LOOKS_A_PAYER:
            raise Refused(ErrorCode.OVERLOADED, "too many channels that no witness knows", LOOK_WINDOW)
        self._looks[payer] = [*looks, now]
        await self._replica.fetch_channel(channel)
        if View(self._store).channel(channel) is not None and now in self._looks.get(payer, []):
            self._looks[payer].remove(now)

    def _check_time(self, state: Channel) -> None:
        if state.expiry_ms - self._clock() <= params.SETTLE_MARGIN:
            raise Refused(ErrorCode.EXPIRED, "the hold expires too soon to be settled; open a new channel")
