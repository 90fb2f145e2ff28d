"""How a worker is paid for one query: not at all (own), by a local quota (free), or by vouchers (paid).

Rule: a lane decides how many tokens may be delivered ahead of payment, and nothing else. The worker asks its lane
before it grants the engine more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from node.bookkeeper import Bookkeeper, ChannelView
from node.config import FreeSection
from protocol import params
from protocol.codec import decode_as
from protocol.errors import ErrorCode, Refused
from protocol.exchange import Delivered, transcript_hash
from protocol.ids import ChannelId, NodeId, QueryId
from protocol.messages import Pay, Voucher
from protocol.params import MAX_RECORD_BYTES


@dataclass(frozen=True, slots=True)
class Proof:
    """What was paid of one query: the last voucher and what it covers."""

    pay: Pay
    covered: Delivered
    transcript: bytes
    amount: int  # µcredits of this query
    price_in: int
    price_out: int


class Lane(Protocol):
    """The payment side of one served query."""

    paid: bool
    patience_seconds: float  # an answer that stands at its allowance for longer is ended

    def exhausted(self) -> Refused:
        """Why an answer that stands at its allowance ends."""

    async def begin(self, units_in: int) -> None:
        """The prompt is counted. Raises `Refused` if that is already too much."""

    def allowance(self) -> int:
        """Output tokens that may be delivered in all, as things stand."""

    def delivered(self, point: Delivered) -> None:
        """This much was sent; a voucher may name it."""

    async def take(self, pay: Pay) -> None:
        """A voucher came. Raises `Refused` (BAD_VOUCHER) if it names no point of this answer."""

    def settled(self, point: Delivered) -> bool:
        """True if nothing is owed for what was delivered up to `point`."""

    def cumulative(self) -> int:
        """The channel's total after this query, µcredits; 0 without a channel."""

    def proof(self) -> Proof | None:
        """What was paid; None if nothing was."""

    async def end(self, point: Delivered) -> None:
        """The query is over."""


class OwnLane:
    """This node's own query."""

    paid = True  # the owner's own queries do not wait behind strangers'
    patience_seconds = params.VOUCHER_TIMEOUT / 1_000

    def exhausted(self) -> Refused:
        """Cannot happen: there is no limit."""
        return Refused(ErrorCode.INTERNAL, "an own query has no allowance")

    async def begin(self, units_in: int) -> None:
        """Free of charge."""

    def allowance(self) -> int:
        """No limit."""
        return _UNLIMITED

    def delivered(self, point: Delivered) -> None:
        """Nothing to note."""

    async def take(self, pay: Pay) -> None:
        """Nobody pays here."""
        raise Refused(ErrorCode.BAD_VOUCHER, "this query has no channel")

    def settled(self, point: Delivered) -> bool:
        """Always."""
        return True

    def cumulative(self) -> int:
        """No channel."""
        return 0

    def proof(self) -> Proof | None:
        """Nothing is paid here."""
        return None

    async def end(self, point: Delivered) -> None:
        """Nothing to note."""


class FreeLane(OwnLane):
    """A stranger's query within the local quota: the prompt is charged at the start, the answer at its end."""

    paid = False
    patience_seconds = 0.0  # nothing can come that would lift the quota

    def exhausted(self) -> Refused:
        """The quota ended in the middle of the answer."""
        return Refused(ErrorCode.QUOTA_EXCEEDED, "today's free quota ended here; ask for less, or join the federation")

    def __init__(self, bookkeeper: Bookkeeper, free: FreeSection, peer: NodeId) -> None:
        self._bookkeeper = bookkeeper
        self._free = free
        self._peer = peer
        self._left = 0

    async def begin(self, units_in: int) -> None:
        """Charge the prompt."""
        await self._use(units_in)
        self._left = await self._bookkeeper.free_left(
            self._peer, self._free.tokens_per_day, self._free.total_tokens_per_day
        )

    def allowance(self) -> int:
        """What is left of today's quota."""
        return self._left

    async def end(self, point: Delivered) -> None:
        """Charge the answer; it was kept within the quota, so parallel queries alone can have used it up."""
        await self._use(min(point.units_out, self._left))

    async def _use(self, tokens: int) -> None:
        await self._bookkeeper.use_free(self._peer, tokens, self._free.tokens_per_day, self._free.total_tokens_per_day)


class PaidLane:
    """A channel's query: vouchers are payment and flow control in one."""

    paid = True
    patience_seconds = params.VOUCHER_TIMEOUT / 1_000

    def exhausted(self) -> Refused:
        """The requester stopped to sign."""
        return Refused(ErrorCode.UNPAID, "the voucher for delivered tokens did not come")

    def __init__(self, bookkeeper: Bookkeeper, channel: ChannelView, query_id: QueryId, window: int) -> None:
        self._bookkeeper = bookkeeper
        self._base = channel
        self._query_id = query_id
        self._window = window
        self._points: dict[bytes, Delivered] = {}  # transcript -> what it covers; unpaid ones only
        self._covered: Delivered | None = None
        self._pay: Pay | None = None
        self._cumulative = channel.cumulative

    async def begin(self, units_in: int) -> None:
        """Nothing before the first voucher."""

    def allowance(self) -> int:
        """No output before the prompt is paid, then a window ahead of the last voucher."""
        return 0 if self._covered is None else self._covered.units_out + self._window

    def delivered(self, point: Delivered) -> None:
        """Remember the point, so that a voucher for it can be recognised."""
        self._points[self._transcript(point)] = point

    async def take(self, pay: Pay) -> None:
        """Check the voucher against what was delivered, store it (synced), and open the window further."""
        voucher = decode_as(Voucher, pay.voucher, MAX_RECORD_BYTES)
        point = self._points.get(voucher.transcript)
        if point is None:
            raise Refused(ErrorCode.BAD_VOUCHER, "the voucher's transcript is none of this answer's")
        if point == self._covered:
            return  # the same again is worth nothing, not even a write
        self._cumulative = await self._bookkeeper.take_voucher(
            ChannelId(self._base.channel),
            pay,
            self._base.units_in + point.units_in,
            self._base.units_out + point.units_out,
            voucher.transcript,
        )
        self._covered = point
        self._pay = pay
        self._forget_older(voucher.transcript)

    def settled(self, point: Delivered) -> bool:
        """True if the last voucher covers all of it, or nothing was delivered."""
        return self._covered == point or point.units_in == point.units_out == 0

    def cumulative(self) -> int:
        """The channel's total as of the last voucher."""
        return self._cumulative

    def proof(self) -> Proof | None:
        """The last voucher of this query."""
        if self._pay is None or self._covered is None:
            return None
        amount = self._cumulative - self._base.cumulative
        transcript = self._transcript(self._covered)
        return Proof(self._pay, self._covered, transcript, amount, self._base.price_in, self._base.price_out)

    async def end(self, point: Delivered) -> None:
        """The vouchers are stored already."""

    def _transcript(self, point: Delivered) -> bytes:
        return transcript_hash(self._base.transcript, self._query_id, point)

    def _forget_older(self, transcript: bytes) -> None:
        for older in list(self._points):
            if older == transcript:
                return
            del self._points[older]


_UNLIMITED = 2**31
