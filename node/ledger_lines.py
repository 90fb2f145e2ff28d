"""Every line of an account's balance, from the ledger alone.

Rule: a line is one order or channel and what it has changed in the balance by now. All lines and what stood there when
the kept part of the ledger began add up to the balance exactly; what does not is said, never rounded away. A channel's
line is its net effect: locked and returned amounts cancel, so a refunded hold is a line of 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from protocol.codec import decode
from protocol.errors import Malformed, Refused
from protocol.ids import NodeId
from protocol.ledger.certificates import open_certificate
from protocol.ledger.families import related
from protocol.ledger.genesis import Federation
from protocol.ledger.state import Base, Channel, ChannelStatus, Iterable, View, u64
from protocol.messages import Grant, Hold, Message, Move


class Part(StrEnum):
    """What a line is for its account."""

    GRANTED = "granted"  # received from an issuer
    ISSUED = "issued"  # given by an issuer
    MOVED = "moved"  # between accounts of one owner
    EARNED = "earned"  # a settled channel that paid this account
    SPENT = "spent"  # a settled channel that this account paid
    HELD = "held"  # an open channel that this account will pay
    RETURNED = "returned"  # a hold that came back whole: 0 in all
    PROMISED = "promised"  # an open channel that will pay this account: 0 so far


@dataclass(frozen=True, slots=True)
class Line:
    """One grant, move or channel. `amount` is its net effect on the balance by now, µcredits."""

    part: Part
    id: bytes  # of the order; of a channel its hold
    amount: int
    counterparty: NodeId
    channel: Channel | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """The account when the kept part of the ledger began: 0 in a ledger that forgot nothing."""

    epoch: int
    balance: int
    held: int  # in channels that were open then, and have lines of their own


def order_of(view: View, identity: bytes) -> Message | None:
    """The order with this id, None if no certificate of it is here (or it is a checkpoint's)."""
    record = view.record(identity)
    if record is None:
        return None
    try:
        return decode(open_certificate(record).body)
    except (Refused, Malformed):
        return None


class AccountLines:
    """The lines of one account in one snapshot."""

    def __init__(self, federation: Federation, reader: Iterable, account: NodeId) -> None:
        self._federation = federation
        self._reader = reader
        self._view = View(reader)
        self.account = account
        self.missing: list[str] = []  # filled by `walk`: what keeps the lines from adding up

    @property
    def balance(self) -> int:
        """What the lines have to add up to."""
        return self._view.account(self.account).balance

    def opening(self) -> Opening:
        """Where the lines begin."""
        epoch = self._view.first_epoch
        if epoch == 0:
            return Opening(0, 0, 0)
        base = View(Base(self._reader, epoch))
        held = 0
        for _, channel in self._channels_then(epoch):
            held += channel.amount if channel.payer == self.account else 0
        return Opening(epoch, base.account(self.account).balance, held)

    def walk(self) -> Iterator[Line]:
        """All lines: grants and moves as they happened, then channels in no order."""
        self.missing.clear()
        yield from self._grants()
        yield from self._moves()
        yield from self._channels()
        self._note_lost_channels()

    def in_order(self) -> Iterator[Line]:
        """All lines as this node's log has them; 40 bytes a line are kept in memory."""
        places = sorted(u64(self._view.position(line.id) or 0) + line.id for line in self.walk())
        for place in places:
            line = self.line(place[8:])
            if line is not None:
                yield line

    def line(self, identity: bytes) -> Line | None:
        """The line of one order or channel; None if it is not this account's."""
        channel = self._view.channel(identity)
        if channel is not None:
            return self._channel_line(identity, channel)
        return self._transfer_line(identity, order_of(self._view, identity))

    # --- grants and moves ------------------------------------------------------------------------------

    def _grants(self) -> Iterator[Line]:
        for issuer in self._federation.genesis.issuers:
            yield from self._transfers(issuer)

    def _moves(self) -> Iterator[Line]:
        family = self._family()
        for account in family if len(family) > 1 else ():
            yield from self._transfers(account)

    def _family(self) -> list[bytes]:
        """The account and those of the same owner: credits move between these alone."""
        if self._federation.is_issuer(self.account):
            return []
        return [
            key[1:]
            for key, _ in self._reader.iterate(b"a")
            if key[1:] == self.account or related(self._view, self.account, key[1:])
        ]

    def _transfers(self, chain: bytes) -> Iterator[Line]:
        """What an account's orders gave to this one, or took from it, beside channels."""
        for _, identity in self._reader.iterate(b"b" + chain):
            order = order_of(self._view, identity)
            if order is None:
                self.missing.append(f"the certificate of order {identity.hex()[:12]} is not here")
            line = self._transfer_line(identity, order)
            if line is not None:
                yield line

    def _transfer_line(self, identity: bytes, order: Message | None) -> Line | None:
        if isinstance(order, Grant):
            return self._transfer(identity, order.issuer, order.to, order.amount)
        return self._transfer(identity, order.account, order.to, order.amount) if isinstance(order, Move) else None

    def _transfer(self, identity: bytes, payer: NodeId, payee: NodeId, amount: int) -> Line | None:
        issued = self._federation.is_issuer(payer)
        if payee == self.account:
            return Line(Part.GRANTED if issued else Part.MOVED, identity, amount, payer)
        if payer == self.account:
            return Line(Part.ISSUED if issued else Part.MOVED, identity, -amount, payee)
        return None

    # --- channels --------------------------------------------------------------------------------------

    def _channels(self) -> Iterator[Line]:
        for key, value in self._reader.iterate(b"c"):
            if bytes(self.account) not in value[:64]:  # payer and payee, before anything is decoded
                continue
            line = self._channel_line(key[1:], Channel.decode(value))
            if line is not None:
                yield line

    def _channel_line(self, identity: bytes, channel: Channel) -> Line | None:
        if self.account not in (channel.payer, channel.payee) or self._settled_before(identity, channel):
            return None
        if channel.payer == self.account:
            part = _PAYING[channel.status]
            amount = {Part.HELD: -channel.amount, Part.SPENT: -channel.paid, Part.RETURNED: 0}[part]
            return Line(part, identity, amount, channel.payee, channel)
        part = _PAID[channel.status]
        if part is Part.RETURNED:
            return None  # nothing ever came of it for the payee
        return Line(part, identity, channel.paid, channel.payer, channel)

    def _settled_before(self, identity: bytes, channel: Channel) -> bool:
        """True if the opening balance has the channel's end in it already."""
        if channel.status is not ChannelStatus.CLOSED:
            return False  # what a refund changed cancels out
        place = self._view.position(channel.settled_by)
        if place is None and self._view.first_epoch == 0:
            self.missing.append(f"the order that settled channel {identity.hex()[:12]} is not here")
        return place is None or place < self._view.log_first

    def _channels_then(self, epoch: int) -> Iterator[tuple[bytes, Channel]]:
        """Channels that were open when the kept part began."""
        for key, value in Base(self._reader, epoch).iterate(b"c"):
            if bytes(self.account) in value[:64]:
                yield key[1:], Channel.decode(value)

    def _note_lost_channels(self) -> None:
        epoch = self._view.first_epoch
        for identity, channel in self._channels_then(epoch) if epoch else ():
            if self._view.channel(identity) is None:
                other = channel.payee if channel.payer == self.account else channel.payer
                self.missing.append(
                    f"channel {identity.hex()[:12]} with {other.hex()[:8]} was open when epoch {epoch} began, and its "
                    "end is not here"
                )


_PAYING = {
    ChannelStatus.OPEN: Part.HELD,
    ChannelStatus.CLOSED: Part.SPENT,
    ChannelStatus.REFUNDED: Part.RETURNED,
}
_PAID = {
    ChannelStatus.OPEN: Part.PROMISED,
    ChannelStatus.CLOSED: Part.EARNED,
    ChannelStatus.REFUNDED: Part.RETURNED,
}


def hold_of(view: View, channel: bytes) -> Hold | None:
    """The order that opened a channel; None if it was pruned."""
    order = order_of(view, channel)
    return order if isinstance(order, Hold) else None
