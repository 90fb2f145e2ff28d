"""What makes an order well formed and its owner's own.

Rule: everything that can be said of an order from its bytes, its signature and the hold that it refers to is said
here, before any balance is looked at. `check_order` does not depend on the moment; `check_now` does, and only a vote
needs it: an order that has a certificate stays good for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from protocol import params
from protocol.codec import body_hash, decode
from protocol.errors import BadSignature, ErrorCode, Malformed, Refused
from protocol.ids import ChannelId, NodeId
from protocol.ledger.channels import check_voucher, open_voucher
from protocol.ledger.genesis import Federation
from protocol.ledger.state import Channel, View
from protocol.messages import Close, Grant, Hold, Message, Refund
from protocol.signing import check_public_key

Order = Grant | Hold | Close | Refund


class MissingPredecessor(Refused):
    """The order is good, but one that it builds on is not known here yet: fetch that, then try again."""


@dataclass(frozen=True, slots=True)
class CheckedOrder:
    """An order with a valid owner's signature. A witness votes once for an (`object`, `version`)."""

    order: Order
    body: bytes
    signature: bytes
    hash: bytes
    object: bytes  # an account, or a channel
    version: int  # the account's sequence number, or 0


@contextmanager
def as_refusal() -> Iterator[None]:
    """Bad bytes and bad signatures become `Refused`, so that the peer is told the code."""
    try:
        yield
    except Malformed as error:
        raise Refused(ErrorCode.MALFORMED, str(error)) from None
    except BadSignature as error:
        raise Refused(ErrorCode.BAD_SIGNATURE, str(error)) from None


def check_order(federation: Federation, view: View, body: bytes, signature: bytes) -> CheckedOrder:
    """The order in `body`, with every rule that needs neither clock nor balance.

    Raises `Refused`; `MissingPredecessor` if it settles a channel that is not known here.
    """
    with as_refusal():
        order = decode(body, params.MAX_RECORD_BYTES)
        rule = _RULES.get(type(order))
        if rule is None:
            raise Malformed(f"a {type(order).__name__} is not an order")
        owner, object_id, version = rule(federation, view, order)
        view.verify(owner, federation.id, body, signature)
    return CheckedOrder(order, body, signature, body_hash(body), object_id, version)  # type: ignore[arg-type]


def check_now(order: Order, epoch: int, now_ms: int) -> None:
    """The rules that bind a vote to the moment: epoch, expiry, refund time. Raises `Refused`."""
    if isinstance(order, Grant | Hold) and order.epoch != epoch:
        raise Refused(ErrorCode.STALE_EPOCH, f"the order names epoch {order.epoch}, this is {epoch}")
    if isinstance(order, Hold):
        _check_expiry(order, now_ms)
    if isinstance(order, Refund) and order.time_ms > now_ms:
        raise Refused(ErrorCode.INVALID_REQUEST, "the refund is dated in the future")


def required_channel(view: View, channel: ChannelId) -> Channel:
    """A known channel. Raises `MissingPredecessor` (UNKNOWN_CHANNEL)."""
    known = view.channel(channel)
    if known is None:
        raise MissingPredecessor(ErrorCode.UNKNOWN_CHANNEL, f"no hold {channel.hex()[:16]}… is known here")
    return known


_Facts = tuple[NodeId, bytes, int]  # who must have signed, object, version


def _grant(federation: Federation, view: View, grant: Grant) -> _Facts:
    if not federation.is_issuer(grant.issuer):
        raise Refused(ErrorCode.NOT_ISSUER, "genesis does not name this issuer")
    _check_transfer(grant.issuer, grant.to, grant.amount)
    return grant.issuer, grant.issuer, grant.sequence


def _hold(federation: Federation, view: View, hold: Hold) -> _Facts:
    _check_transfer(hold.payer, hold.payee, hold.amount)
    return hold.payer, hold.payer, hold.sequence


def _close(federation: Federation, view: View, close: Close) -> _Facts:
    channel = required_channel(view, close.channel)
    voucher = open_voucher(close.voucher)
    check_voucher(channel, close.channel, voucher)
    view.verify(channel.payer, federation.id, close.voucher, close.voucher_signature)
    return channel.payee, close.channel, 0


def _refund(federation: Federation, view: View, refund: Refund) -> _Facts:
    channel = required_channel(view, refund.channel)
    if not federation.single or refund.witness not in federation.genesis.witnesses:
        raise Refused(ErrorCode.NOT_A_WITNESS, "a refund is the order of a federation's only witness")
    if refund.time_ms < channel.expiry_ms:
        raise Refused(ErrorCode.INVALID_REQUEST, "a hold is refunded after its expiry, not before")
    return refund.witness, refund.channel, 0


_RULES: dict[type[Message], Callable[[Federation, View, Any], _Facts]] = {
    Grant: _grant,
    Hold: _hold,
    Close: _close,
    Refund: _refund,
}


def _check_transfer(payer: NodeId, payee: NodeId, amount: int) -> None:
    if amount == 0:
        raise Refused(ErrorCode.INVALID_REQUEST, "the amount is 0")
    if payer == payee:
        raise Refused(ErrorCode.INVALID_REQUEST, "an account does not pay itself")
    check_public_key(payee)


def _check_expiry(hold: Hold, now_ms: int) -> None:
    if hold.expiry_ms <= now_ms:
        raise Refused(ErrorCode.EXPIRED, "the hold has expired already")
    if hold.expiry_ms > now_ms + params.MAX_HOLD_LIFETIME + params.CLOCK_SKEW:
        raise Refused(ErrorCode.INVALID_REQUEST, f"a hold lasts at most {params.MAX_HOLD_LIFETIME} ms")
