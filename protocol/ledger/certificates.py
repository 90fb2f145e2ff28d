"""Certificates: an order with the votes of a quorum, and what it does to the state.

Rule: check everything, compute on copies, then hand out puts that cannot fail. Applying again changes nothing. What
cannot be applied *yet* (`MissingPredecessor`: an order before it, its channel, or the credits that it takes are not
here) is told apart from what never can. So whatever was applied, in whatever order it arrived, is whole: every chain is
dense and no account is below its floor. A certificate is final, so the clock is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from protocol import params
from protocol.codec import body_hash, decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import NodeId
from protocol.ledger.accounts import check_solvent, credited, debit
from protocol.ledger.channels import open_voucher
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import (
    AccountOrder,
    CheckedOrder,
    MissingPredecessor,
    as_refusal,
    check_order,
    check_related,
)
from protocol.ledger.quorums import check_quorum, check_signature
from protocol.ledger.state import (
    LOG_LENGTH,
    Account,
    Channel,
    ChannelStatus,
    Puts,
    View,
    account_key,
    certificate_key,
    channel_key,
    log_key,
    open_key,
    order_key,
    u64,
)
from protocol.ledger.votes import vote_body
from protocol.messages import (
    Attach,
    Certificate,
    Close,
    Grant,
    Hold,
    Message,
    Move,
    Recovery,
    Refund,
    Rotate,
    WitnessSignature,
)


@dataclass(frozen=True, slots=True)
class Transition:
    """What applying a certificate writes. `checked` is None if it was applied before: there is nothing to write."""

    id: bytes  # of the order
    position: int  # of this certificate in the log
    checked: CheckedOrder | None
    puts: Puts

    @property
    def repeated(self) -> bool:
        """True if it was applied before."""
        return self.checked is None


def certify(checked: CheckedOrder, votes: Iterable[WitnessSignature]) -> bytes:
    """The encoded certificate of an order, its votes in the order of the witnesses."""
    ordered = tuple(sorted(votes, key=lambda vote: vote.witness))
    return encode(Certificate(checked.body, checked.signature, ordered))


def open_certificate(data: bytes) -> Certificate:
    """The certificate in `data`. Raises `Refused` (MALFORMED)."""
    with as_refusal():
        return decode_as(Certificate, data, params.MAX_RECORD_BYTES)


def check_votes(federation: Federation, view: View, checked: CheckedOrder, votes: Iterable[WitnessSignature]) -> None:
    """A quorum of distinct witnesses voted for this order. Raises `Refused` (BAD_QUORUM, NOT_A_WITNESS,
    BAD_SIGNATURE)."""
    check_quorum(federation, view, vote_body(checked), votes, "votes")


def check_vote(federation: Federation, view: View, checked: CheckedOrder, vote: WitnessSignature) -> None:
    """One witness's vote for this order. Raises `Refused` (NOT_A_WITNESS, BAD_SIGNATURE)."""
    check_signature(federation, view, vote.witness, vote_body(checked), vote.signature)


def apply(federation: Federation, view: View, data: bytes) -> Transition:
    """What the certificate in `data` does to the state. Raises `Refused`, or `MissingPredecessor`."""
    certificate = open_certificate(data)
    identity = body_hash(certificate.body)
    known = view.position(identity)
    if known is not None:
        return Transition(identity, known, None, {})
    checked = _check_certified(federation, view, certificate)
    _check_epoch(view, checked)
    puts = effect(view, checked)
    _check_solvent(federation, view, checked)
    position = view.log_length
    puts[certificate_key(identity)] = u64(position) + data
    puts[log_key(position)] = identity
    puts[LOG_LENGTH] = u64(position + 1)
    return Transition(identity, position, checked, puts)


def _check_certified(federation: Federation, view: View, certificate: Certificate) -> CheckedOrder:
    """The order and its votes. With the votes of a quorum a signature that does not fit is by a key not known yet."""
    try:
        checked = check_order(federation, view, certificate.body, certificate.signature)
    except Refused as refusal:
        unsigned = check_order(federation, View(view.reader, trusting), certificate.body, certificate.signature)
        check_votes(federation, view, unsigned, certificate.votes)
        raise MissingPredecessor(refusal.code, refusal.message) from None
    check_votes(federation, view, checked, certificate.votes)
    return checked


def trusting(key: NodeId, federation: bytes, body: bytes, signature: bytes) -> None:
    """In place of a signature check, where that is no question."""


def effect(view: View, checked: CheckedOrder) -> Puts:
    """What an order changes in accounts and channels, whether its owner can pay or not. Raises `Refused`."""
    puts, accounts = _EFFECTS[type(checked.order)](view, checked, checked.order)
    return puts | {account_key(account): state.encode() for account, state in accounts.items()}


def _check_epoch(view: View, checked: CheckedOrder) -> None:
    """An order of an epoch that has ended is in its checkpoint or void; one of a later epoch comes too early."""
    if not isinstance(checked.order, AccountOrder) or checked.order.epoch == view.epoch:
        return
    kind = MissingPredecessor if checked.order.epoch > view.epoch else Refused
    raise kind(ErrorCode.STALE_EPOCH, f"an order of epoch {checked.order.epoch}; {view.epoch} is in force here")


def _check_solvent(federation: Federation, view: View, checked: CheckedOrder) -> None:
    if isinstance(checked.order, AccountOrder):
        try:
            check_solvent(federation, view.account(checked.object), checked.order)
        except Refused as refusal:  # it has a certificate, so the credits exist: they are not here yet
            raise MissingPredecessor(refusal.code, refusal.message) from None


_Effect = tuple[Puts, dict[NodeId, Account]]


def _grant(view: View, checked: CheckedOrder, grant: Grant) -> _Effect:
    receiver = credited(view.account(grant.to), grant.amount)
    return _numbered(checked), {grant.issuer: _advanced(view, checked, grant), grant.to: receiver}


def _hold(view: View, checked: CheckedOrder, hold: Hold) -> _Effect:
    puts = _numbered(checked)
    puts[channel_key(checked.hash)] = Channel.opened(hold).encode()
    puts[open_key(checked.hash)] = b""
    return puts, {hold.payer: _advanced(view, checked, hold)}


def _attach(view: View, checked: CheckedOrder, attach: Attach) -> _Effect:
    account = replace(_advanced(view, checked, attach), owner=attach.owner)
    owner = view.account(attach.owner)
    owner = replace(owner, sub_accounts=owner.sub_accounts + 1)
    return _numbered(checked), {attach.account: account, attach.owner: owner}


def _move(view: View, checked: CheckedOrder, move: Move) -> _Effect:
    check_related(view, move)
    receiver = credited(view.account(move.to), move.amount)
    return _numbered(checked), {move.account: _advanced(view, checked, move), move.to: receiver}


def _recovery(view: View, checked: CheckedOrder, recovery: Recovery) -> _Effect:
    account = _advanced(view, checked, recovery)
    recoveries = (*account.recoveries, (account.next_sequence, recovery.key))
    return _numbered(checked), {recovery.account: replace(account, recoveries=recoveries)}


def _rotate(view: View, checked: CheckedOrder, rotate: Rotate) -> _Effect:
    account = _advanced(view, checked, rotate)
    rotations = (*account.rotations, (account.next_sequence, rotate.key))
    return _numbered(checked), {rotate.account: replace(account, rotations=rotations)}


def _close(view: View, checked: CheckedOrder, close: Close) -> _Effect:
    channel = _open_channel(view, checked)
    paid = open_voucher(close.voucher).cumulative
    payer, payee = view.account(channel.payer), view.account(channel.payee)
    payer = credited(payer, channel.amount - paid, spent=payer.spent + paid)
    payee = credited(payee, paid, earned=payee.earned + paid)
    settled = replace(channel, status=ChannelStatus.CLOSED, settled_by=checked.hash, paid=paid)
    return _settled(close.channel, settled), {channel.payer: payer, channel.payee: payee}


def _refund(view: View, checked: CheckedOrder, refund: Refund) -> _Effect:
    channel = _open_channel(view, checked)
    return refunded(view, refund.channel, channel, checked.hash)


def refunded(view: View, channel_id: bytes, channel: Channel, by: bytes) -> _Effect:
    """What returns an open hold to its payer; `by` is the order or checkpoint that does it."""
    payer = credited(view.account(channel.payer), channel.amount)
    settled = replace(channel, status=ChannelStatus.REFUNDED, settled_by=by)
    return _settled(channel_id, settled), {channel.payer: payer}


_EFFECTS: dict[type[Message], Callable[[View, CheckedOrder, Any], _Effect]] = {
    Grant: _grant,
    Hold: _hold,
    Close: _close,
    Refund: _refund,
    Attach: _attach,
    Move: _move,
    Recovery: _recovery,
    Rotate: _rotate,
}


def _advanced(view: View, checked: CheckedOrder, order: AccountOrder) -> Account:
    """The owner's account after the order: one number further, what the order takes less."""
    account = view.account(checked.object)
    if order.sequence > account.next_sequence:
        raise MissingPredecessor(
            ErrorCode.BAD_SEQUENCE, f"order {order.sequence} of the account, {account.next_sequence} is next here"
        )
    if order.sequence < account.next_sequence:
        raise Refused(ErrorCode.EQUIVOCATION, f"two certificates for order {order.sequence} of one account")
    if order.previous != account.head:
        raise Refused(ErrorCode.BAD_SEQUENCE, "the order names another predecessor")
    return credited(account, -debit(order), next_sequence=account.next_sequence + 1, head=checked.hash)


def _open_channel(view: View, checked: CheckedOrder) -> Channel:
    channel = view.channel(checked.object)
    assert channel is not None  # check_order has read it
    if not channel.open:
        raise Refused(ErrorCode.CHANNEL_CLOSED, "the channel is settled by another order or by a checkpoint")
    return channel


def _numbered(checked: CheckedOrder) -> Puts:
    return {order_key(checked.object, checked.version): checked.hash}


def _settled(channel_id: bytes, settled: Channel) -> Puts:
    return {channel_key(channel_id): settled.encode(), open_key(channel_id): None}
