"""A witness's vote: one order for an (object, version), for ever.

Rule: `decide` gives the lock to write; the vote inside it may leave this machine only after that lock is synced.
Asking again for the same order gives the same lock. Another order for the same number is equivocation.
"""

from __future__ import annotations

from protocol.codec import encode
from protocol.errors import ErrorCode, Refused
from protocol.ledger.accounts import after_debit
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import CheckedOrder, MissingPredecessor, check_now, required_channel
from protocol.ledger.state import Lock, View
from protocol.messages import Close, Grant, Hold, Refund, Vote
from protocol.signing import Signer


def vote_body(checked: CheckedOrder) -> bytes:
    """What a witness signs for an order."""
    return encode(Vote(checked.hash, checked.version, checked.object))


def decide(federation: Federation, view: View, checked: CheckedOrder, now_ms: int, signer: Signer) -> Lock:
    """The lock with this witness's vote for `checked`. Raises `Refused`."""
    known = view.lock(checked.object, checked.version)
    if known is not None:
        if known.order != checked.hash:
            raise Refused(ErrorCode.EQUIVOCATION, "this witness has voted for another order with this number")
        return known
    if view.certificate(checked.hash) is None:
        _check_first(federation, view, checked, now_ms)
    return Lock(checked.hash, signer.sign(federation.id, vote_body(checked)), checked.signature, checked.body)


def _check_first(federation: Federation, view: View, checked: CheckedOrder, now_ms: int) -> None:
    """The rules of an order that was neither voted for nor applied here."""
    check_now(checked.order, view.epoch, now_ms)
    if isinstance(checked.order, Grant | Hold):
        _check_account(federation, view, checked, checked.order)
    if isinstance(checked.order, Close | Refund):
        _check_open(view, checked.order)


def _check_account(federation: Federation, view: View, checked: CheckedOrder, order: Grant | Hold) -> None:
    account = view.account(checked.object)
    if order.sequence > account.next_sequence:
        raise MissingPredecessor(
            ErrorCode.BAD_SEQUENCE, f"order {order.sequence} of the account, {account.next_sequence} is next here"
        )
    if order.sequence < account.next_sequence:
        raise Refused(ErrorCode.EQUIVOCATION, f"another order {order.sequence} of this account was applied")
    if order.previous != account.head:
        raise Refused(ErrorCode.BAD_SEQUENCE, "the order names another predecessor")
    after_debit(federation, account, order)


def _check_open(view: View, order: Close | Refund) -> None:
    if not required_channel(view, order.channel).open:
        raise Refused(ErrorCode.CHANNEL_CLOSED, "the channel is settled already")
