"""Vouchers and what settles a channel.

Rule: a voucher's amount is exactly the price of its counts, never more than the hold, and no count of a later
voucher is lower than in an earlier one. A channel ends once: closed by its payee, or refunded after its expiry.
"""

from __future__ import annotations

from protocol.codec import decode_as
from protocol.errors import ErrorCode, Refused
from protocol.ids import NO_HASH, ChannelId, FederationId
from protocol.ledger.families import keys_of, verify_any
from protocol.ledger.state import Channel, View
from protocol.messages import Pay, Voucher
from protocol.params import MAX_RECORD_BYTES
from protocol.pricing import channel_cost


def open_voucher(body: bytes) -> Voucher:
    """The voucher in `body`. Raises `Malformed`."""
    return decode_as(Voucher, body, MAX_RECORD_BYTES)


def no_voucher(channel: ChannelId) -> Voucher:
    """What stands before the first voucher: nothing owed, nothing counted."""
    return Voucher(channel, 0, 0, 0, NO_HASH)


def check_voucher(channel: Channel, channel_id: ChannelId, voucher: Voucher) -> None:
    """The rules of one voucher by itself. Raises `Refused` (BAD_VOUCHER, OVERFLOW)."""
    if voucher.channel != channel_id:
        raise Refused(ErrorCode.BAD_VOUCHER, "the voucher is for another channel")
    owed = channel_cost(voucher.units_in, voucher.units_out, channel.price_in, channel.price_out)
    if voucher.cumulative != owed:
        raise Refused(ErrorCode.BAD_VOUCHER, f"the voucher says {voucher.cumulative} µcredits, its counts cost {owed}")
    if voucher.cumulative > channel.amount:
        raise Refused(ErrorCode.BAD_VOUCHER, f"{voucher.cumulative} µcredits, the hold is {channel.amount}")


def check_successor(earlier: Voucher, later: Voucher) -> None:
    """`later` may replace `earlier`. Raises `Refused` (BAD_VOUCHER)."""
    # Prices are fixed, so an amount that follows from its counts cannot fall while they do not.
    if later.units_in < earlier.units_in or later.units_out < earlier.units_out:
        raise Refused(ErrorCode.BAD_VOUCHER, "the voucher goes back behind an earlier one")


def check_pay(
    federation: FederationId, channel_id: ChannelId, channel: Channel, earlier: Voucher, pay: Pay, view: View
) -> Voucher:
    """A voucher that came from the payer: signature, price, bound and order. `view` knows the payer's keys.

    Raises `Refused`, `Malformed` or `BadSignature`.
    """
    voucher = open_voucher(pay.voucher)
    check_voucher(channel, channel_id, voucher)
    check_successor(earlier, voucher)
    verify_any(view, keys_of(view, channel.payer), federation, pay.voucher, pay.signature)
    return voucher
