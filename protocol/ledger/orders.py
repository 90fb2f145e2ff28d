"""What makes an order well formed and its owner's own.

Rule: everything that can be said of an order from its bytes, its signature and the hold that it refers to is said
here, before any balance is looked at. `check_order` does not depend on the moment; `check_now` does, and only a vote
needs it: an order that has a certificate stays good for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from protocol import params
from protocol.codec import body_hash, decode, encode
from protocol.errors import BadSignature, ErrorCode, Malformed, Refused
from protocol.ids import ChannelId, NodeId
from protocol.ledger.channels import check_voucher, open_voucher
from protocol.ledger.families import keys_of, related, verify_any
from protocol.ledger.genesis import Federation
from protocol.ledger.state import Channel, View
from protocol.messages import Attach, Close, Consent, Grant, Hold, Message, Move, Recovery, Refund, Rotate
from protocol.signing import check_public_key

AccountOrder = Grant | Hold | Attach | Move | Recovery | Rotate  # numbered in their owner's chain
Settlement = Close | Refund  # ends a channel
Order = AccountOrder | Settlement


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


def owner_of(order: AccountOrder) -> NodeId:
    """The account in whose chain an order stands."""
    return NodeId(getattr(order, _OWNER_FIELDS[type(order)]))


def voted_object(order: Order) -> tuple[bytes, int]:
    """What a witness votes for once: an account and its number, or a channel and 0."""
    return (owner_of(order), order.sequence) if isinstance(order, AccountOrder) else (order.channel, 0)


_OWNER_FIELDS: dict[type[Message], str] = {
    Grant: "issuer",
    Hold: "payer",
    Attach: "account",
    Move: "account",
    Recovery: "account",
    Rotate: "account",
}


def check_order(federation: Federation, view: View, body: bytes, signature: bytes) -> CheckedOrder:
    """The order in `body`, with every rule that needs neither clock nor balance.

    Raises `Refused`; `MissingPredecessor` if it settles a channel that is not known here.
    """
    with as_refusal():
        order = decode(body, params.MAX_RECORD_BYTES)
        rule = _RULES.get(type(order))
        if rule is None:
            raise Malformed(f"a {type(order).__name__} is not an order")
        keys, object_id, version = rule(federation, view, order)
        _check_signature(federation, view, keys, body, signature, object_id, version)
    return CheckedOrder(order, body, signature, body_hash(body), object_id, version)  # type: ignore[arg-type]


def _check_signature(
    federation: Federation,
    view: View,
    keys: Sequence[NodeId],
    body: bytes,
    signature: bytes,
    object_id: bytes,
    version: int,
) -> None:
    try:
        verify_any(view, keys, federation.id, body, signature)
    except BadSignature:
        if version > view.account(object_id).next_sequence:  # perhaps by a key that an order before it names
            raise MissingPredecessor(
                ErrorCode.BAD_SEQUENCE, f"order {version} of an account whose orders before it are not known here"
            ) from None
        raise


def check_now(order: Order, epoch: int, now_ms: int) -> None:
    """The rules that bind a vote to the moment: epoch, expiry, refund time. Raises `Refused`."""
    if isinstance(order, AccountOrder) and order.epoch != epoch:
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


_Facts = tuple[Sequence[NodeId], bytes, int]  # who may have signed, object, version


def _grant(federation: Federation, view: View, grant: Grant) -> _Facts:
    if not federation.is_issuer(grant.issuer):
        raise Refused(ErrorCode.NOT_ISSUER, "genesis does not name this issuer")
    _check_transfer(grant.issuer, grant.to, grant.amount)
    return _signed_in_chain(view, grant)


def _hold(federation: Federation, view: View, hold: Hold) -> _Facts:
    _check_ordinary(federation, hold.payer)
    _check_transfer(hold.payer, hold.payee, hold.amount)
    return _signed_in_chain(view, hold)


def _attach(federation: Federation, view: View, attach: Attach) -> _Facts:
    _check_ordinary(federation, attach.account, attach.owner)
    if attach.sequence != 0:
        raise Refused(ErrorCode.INVALID_REQUEST, "an account is attached by its first order")
    if attach.account == attach.owner:
        raise Refused(ErrorCode.INVALID_REQUEST, "an account does not own itself")
    consent = encode(Consent(attach.account, attach.owner))
    verify_any(view, keys_of(view, attach.owner), federation.id, consent, attach.consent)
    return _signed_in_chain(view, attach)


def _move(federation: Federation, view: View, move: Move) -> _Facts:
    _check_ordinary(federation, move.account, move.to)
    _check_transfer(move.account, move.to, move.amount)
    return _signed_in_chain(view, move)


def _recovery(federation: Federation, view: View, recovery: Recovery) -> _Facts:
    _check_ordinary(federation, recovery.account)
    check_public_key(recovery.key)
    keys, object_id, version = _signed_in_chain(view, recovery)
    known = view.account(object_id).recovery_at(version)
    return ((known,) if known is not None else keys), object_id, version


def _rotate(federation: Federation, view: View, rotate: Rotate) -> _Facts:
    _check_ordinary(federation, rotate.account)
    consent = encode(Consent(rotate.account, rotate.key))
    view.verify(rotate.key, federation.id, consent, rotate.consent)
    keys, object_id, version = _signed_in_chain(view, rotate)
    known = view.account(object_id).recovery_at(version)
    return (*keys, *((known,) if known is not None else ())), object_id, version


def _close(federation: Federation, view: View, close: Close) -> _Facts:
    channel = required_channel(view, close.channel)
    voucher = open_voucher(close.voucher)
    check_voucher(channel, close.channel, voucher)
    verify_any(view, keys_of(view, channel.payer), federation.id, close.voucher, close.voucher_signature)
    return keys_of(view, channel.payee), close.channel, 0


def _refund(federation: Federation, view: View, refund: Refund) -> _Facts:
    channel = required_channel(view, refund.channel)
    if not federation.single or refund.witness not in federation.genesis.witnesses:
        raise Refused(ErrorCode.NOT_A_WITNESS, "a refund is the order of a federation's only witness")
    if refund.time_ms < channel.expiry_ms:
        raise Refused(ErrorCode.INVALID_REQUEST, "a hold is refunded after its expiry, not before")
    return (refund.witness,), refund.channel, 0


_RULES: dict[type[Message], Callable[[Federation, View, Any], _Facts]] = {
    Grant: _grant,
    Hold: _hold,
    Close: _close,
    Refund: _refund,
    Attach: _attach,
    Move: _move,
    Recovery: _recovery,
    Rotate: _rotate,
}


def check_related(view: View, move: Move) -> None:
    """The two accounts are one owner's. Raises `MissingPredecessor` (NOT_RELATED)."""
    if not related(view, move.account, move.to):
        raise MissingPredecessor(ErrorCode.NOT_RELATED, "credits move between the accounts of one owner only")


def _signed_in_chain(view: View, order: AccountOrder) -> _Facts:
    owner = owner_of(order)
    return (view.account(owner).key_at(owner, order.sequence),), owner, order.sequence


def _check_ordinary(federation: Federation, *accounts: NodeId) -> None:
    """Issuers only grant: their key and their debt are the federation's constitution."""
    if any(federation.is_issuer(account) for account in accounts):
        raise Refused(ErrorCode.INVALID_REQUEST, "an issuer's account grants, and nothing else")


def _check_transfer(payer: NodeId, payee: NodeId, amount: int) -> None:
    if amount == 0:
        raise Refused(ErrorCode.INVALID_REQUEST, "the amount is 0")
    if payer == payee:
        raise Refused(ErrorCode.INVALID_REQUEST, "an account does not pay itself")
    check_public_key(payee)


def _check_expiry(hold: Hold, now_ms: int) -> None:
    # One that has expired is voted for all the same: its owner may have been cut off, and must not sign another order
    # with its number. No worker serves it, and it is refunded.
    if hold.expiry_ms > now_ms + params.MAX_HOLD_LIFETIME + params.CLOCK_SKEW:
        raise Refused(ErrorCode.INVALID_REQUEST, f"a hold lasts at most {params.MAX_HOLD_LIFETIME} ms")
