"""A witness's vote: one order for an (object, version).

Rule: `decide` gives the lock to write; the vote inside it may leave this machine only after that lock is synced. Asking
again for the same order gives the same lock. Another order for the same number is equivocation. A lock on an account's
number holds for its epoch: an order that did not get into the checkpoint is void, and its number free. A channel is
settled once, so a lock on a channel holds for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.codec import encode
from protocol.errors import BadSignature, ErrorCode, Refused
from protocol.ids import ChannelId
from protocol.ledger.accounts import check_solvent
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import (
    AccountOrder,
    CheckedOrder,
    MissingPredecessor,
    Order,
    check_now,
    check_related,
    owner_of,
    required_channel,
)
from protocol.ledger.state import Lock, View
from protocol.messages import Attach, Move, Recovery, Rotate, Vote
from protocol.params import MAX_ROTATIONS, MAX_SUB_ACCOUNTS
from protocol.signing import Signer


@dataclass(frozen=True, slots=True)
class Moment:
    """When a vote is asked for. `frozen`: this witness has frozen the epoch, and gives no new votes."""

    now_ms: int
    frozen: bool = False


def vote_body(checked: CheckedOrder) -> bytes:
    """What a witness signs for an order."""
    return encode(Vote(checked.hash, checked.version, checked.object))


def lock_in_force(view: View, object_id: bytes, version: int, order: Order) -> Lock | None:
    """This witness's vote that binds it now; None if it may still vote."""
    lock = view.lock(object_id, version)
    outlived = lock is not None and isinstance(order, AccountOrder) and lock.epoch < view.epoch
    return None if outlived else lock


def decide(federation: Federation, view: View, checked: CheckedOrder, moment: Moment, signer: Signer) -> Lock:
    """The lock with this witness's vote for `checked`. Raises `Refused`."""
    _check_may_vote(view)
    known = lock_in_force(view, checked.object, checked.version, checked.order)
    if known is not None:
        if known.order != checked.hash:
            raise Refused(ErrorCode.EQUIVOCATION, "this witness has voted for another order with this number")
        return known
    if moment.frozen:
        raise Refused(ErrorCode.EPOCH_CHANGING, "the federation changes epochs; open channels go on, try again soon")
    if view.record(checked.hash) is None:
        check_first(federation, view, checked, moment.now_ms)
    vote = signer.sign(federation.id, vote_body(checked))
    return Lock(checked.hash, vote, checked.signature, view.epoch, checked.body)


def _check_may_vote(view: View) -> None:
    if view.abstaining:
        raise Refused(
            ErrorCode.ABSTAINING, "this witness's storage was set back; it votes again when the epoch has ended"
        )


def check_first(federation: Federation, view: View, checked: CheckedOrder, now_ms: int) -> None:
    """The rules of an order that was neither voted for nor applied here. Owners ask them before they sign: an order
    that left must not be replaced by another with its number. Raises `Refused`."""
    check_now(checked.order, view.epoch, now_ms)
    if isinstance(checked.order, AccountOrder):
        recovers = _by_recovery_key(federation, view, checked)
        _check_account(federation, view, checked.order, recovers)
        _check_policy(view, checked.order, recovers)
    else:
        _check_settlement(view, checked.order.channel)


def _check_settlement(view: View, channel: ChannelId) -> None:
    if not required_channel(view, channel).open:
        raise Refused(ErrorCode.CHANNEL_CLOSED, "the channel is settled already")
    if view.may_have_settled(channel):
        raise Refused(
            ErrorCode.ABSTAINING,
            "this witness was set back while the channel was open: it votes for no close of it",
        )


def _by_recovery_key(federation: Federation, view: View, checked: CheckedOrder) -> bool:
    """True for what the account's recovery key signed: whoever stole the other key could not."""
    order = checked.order
    key = view.account(order.account).recovery_at(order.sequence) if isinstance(order, Recovery | Rotate) else None
    if key is None:
        return False
    try:
        view.verify(key, federation.id, checked.body, checked.signature)
    except BadSignature:
        return False
    return True


def _check_account(federation: Federation, view: View, order: AccountOrder, recovers: bool) -> None:
    owner = owner_of(order)
    account = view.account(owner)
    if view.frozen(owner) and not recovers:
        raise Refused(
            ErrorCode.EQUIVOCATION,
            f"this account signed two orders with one number; it rests until epoch {view.epoch} ends",
        )
    if order.sequence > account.next_sequence:
        raise MissingPredecessor(
            ErrorCode.BAD_SEQUENCE, f"order {order.sequence} of the account, {account.next_sequence} is next here"
        )
    if order.sequence < account.next_sequence:
        raise Refused(ErrorCode.EQUIVOCATION, f"another order {order.sequence} of this account was applied")
    if order.previous != account.head:
        raise Refused(ErrorCode.BAD_SEQUENCE, "the order names another predecessor")
    check_solvent(federation, account, order)


def _check_policy(view: View, order: AccountOrder, recovers: bool) -> None:
    """Orders that cost nothing are for accounts with something in them, and bounded in number."""
    if isinstance(order, Move):
        check_related(view, order)
    if isinstance(order, Attach):
        owner = view.account(order.owner)
        if owner.balance <= 0 or owner.sub_accounts >= MAX_SUB_ACCOUNTS:
            raise Refused(
                ErrorCode.INVALID_REQUEST, f"an owner has credits, and at most {MAX_SUB_ACCOUNTS} sub-accounts"
            )
    if isinstance(order, Recovery | Rotate):
        account = view.account(order.account)
        had = len(account.recoveries if isinstance(order, Recovery) else account.rotations)
        most = MAX_ROTATIONS if recovers or isinstance(order, Recovery) else MAX_ROTATIONS // 2
        if not account.known or had >= most:
            raise Refused(
                ErrorCode.INVALID_REQUEST,
                f"an account in use gets at most {MAX_ROTATIONS // 2} new keys, and as many by its recovery key",
            )
