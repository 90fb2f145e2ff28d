"""Certificates: an order with the votes of a quorum, and what it does to the state.

Rule: check everything, compute on copies, then hand out puts that cannot fail. Applying again changes nothing. What
cannot be applied *yet* is told apart (`MissingPredecessor`) from what never can. A certificate is final, so neither
clock nor balance is asked again: with several witnesses certificates may arrive in another order than they were made,
and a balance may be low for a moment; `Transition.insolvent` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from protocol import params
from protocol.codec import decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import NodeId
from protocol.ledger.accounts import credited
from protocol.ledger.channels import open_voucher
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import CheckedOrder, MissingPredecessor, as_refusal, check_order
from protocol.ledger.state import (
    LOG_LENGTH,
    Account,
    Channel,
    ChannelStatus,
    View,
    account_key,
    certificate_key,
    channel_key,
    log_key,
    order_key,
    u64,
)
from protocol.ledger.votes import vote_body
from protocol.messages import Certificate, Close, Grant, Hold, Message, Refund, WitnessSignature

Puts = dict[bytes, bytes | None]


@dataclass(frozen=True, slots=True)
class Transition:
    """What applying a certificate writes. `repeated`: it was applied before, and there is nothing to write."""

    checked: CheckedOrder
    puts: Puts
    position: int  # of this certificate in the log
    repeated: bool
    insolvent: tuple[NodeId, ...]  # accounts that it leaves below their floor


def certify(checked: CheckedOrder, votes: Iterable[WitnessSignature]) -> bytes:
    """The encoded certificate of an order, its votes in the order of the witnesses."""
    ordered = tuple(sorted(votes, key=lambda vote: vote.witness))
    return encode(Certificate(checked.body, checked.signature, ordered))


def open_certificate(data: bytes) -> Certificate:
    """The certificate in `data`. Raises `Refused` (MALFORMED)."""
    with as_refusal():
        return decode_as(Certificate, data, params.MAX_RECORD_BYTES)


def check_votes(federation: Federation, view: View, checked: CheckedOrder, votes: Iterable[WitnessSignature]) -> None:
    """A quorum of distinct witnesses voted for this order. Raises `Refused` (BAD_QUORUM, BAD_SIGNATURE)."""
    listed = tuple(votes)
    indexes = [vote.witness for vote in listed]
    if any(later <= earlier for earlier, later in pairwise(indexes)):
        raise Refused(ErrorCode.BAD_QUORUM, "votes stand in ascending order of their witnesses, each once")
    if len(listed) < federation.quorum:
        raise Refused(ErrorCode.BAD_QUORUM, f"{len(listed)} votes, a quorum is {federation.quorum}")
    for vote in listed:
        check_vote(federation, view, checked, vote)


def check_vote(federation: Federation, view: View, checked: CheckedOrder, vote: WitnessSignature) -> None:
    """One witness's vote for this order. Raises `Refused` (NOT_A_WITNESS, BAD_SIGNATURE)."""
    with as_refusal():
        view.verify(federation.witness(vote.witness), federation.id, vote_body(checked), vote.signature)


def apply(federation: Federation, view: View, data: bytes) -> Transition:
    """What the certificate in `data` does to the state. Raises `Refused`, or `MissingPredecessor`."""
    certificate = open_certificate(data)
    checked = check_order(federation, view, certificate.body, certificate.signature)
    check_votes(federation, view, checked, certificate.votes)
    known = view.position(checked.hash)
    if known is not None:
        return Transition(checked, {}, known, True, ())
    puts, accounts = _EFFECTS[type(checked.order)](view, checked, checked.order)
    position = view.log_length
    puts[certificate_key(checked.hash)] = u64(position) + data
    puts[log_key(position)] = checked.hash
    puts[LOG_LENGTH] = u64(position + 1)
    for account, state in accounts.items():
        puts[account_key(account)] = state.encode()
    insolvent = tuple(account for account, state in accounts.items() if state.balance < federation.floor(account))
    return Transition(checked, puts, position, False, insolvent)


_Effect = tuple[Puts, dict[NodeId, Account]]


def _grant(view: View, checked: CheckedOrder, grant: Grant) -> _Effect:
    issuer = _advanced(view, checked, grant)
    receiver = credited(view.account(grant.to), grant.amount)
    return _numbered(checked), {grant.issuer: issuer, grant.to: receiver}


def _hold(view: View, checked: CheckedOrder, hold: Hold) -> _Effect:
    payer = _advanced(view, checked, hold)
    puts = _numbered(checked)
    puts[channel_key(checked.hash)] = Channel.opened(hold).encode()
    return puts, {hold.payer: payer}


def _close(view: View, checked: CheckedOrder, close: Close) -> _Effect:
    channel = _open_channel(view, checked)
    paid = open_voucher(close.voucher).cumulative
    payer = credited(view.account(channel.payer), channel.amount - paid)
    payee = credited(view.account(channel.payee), paid)
    settled = replace(channel, status=ChannelStatus.CLOSED, settled_by=checked.hash, paid=paid)
    return {channel_key(close.channel): settled.encode()}, {channel.payer: payer, channel.payee: payee}


def _refund(view: View, checked: CheckedOrder, refund: Refund) -> _Effect:
    channel = _open_channel(view, checked)
    payer = credited(view.account(channel.payer), channel.amount)
    settled = replace(channel, status=ChannelStatus.REFUNDED, settled_by=checked.hash)
    return {channel_key(refund.channel): settled.encode()}, {channel.payer: payer}


_EFFECTS: dict[type[Message], Callable[[View, CheckedOrder, Any], _Effect]] = {
    Grant: _grant,
    Hold: _hold,
    Close: _close,
    Refund: _refund,
}


def _advanced(view: View, checked: CheckedOrder, order: Grant | Hold) -> Account:
    """The owner's account after the order: one number further, `amount` less."""
    account = view.account(checked.object)
    if order.sequence > account.next_sequence:
        raise MissingPredecessor(
            ErrorCode.BAD_SEQUENCE, f"order {order.sequence} of the account, {account.next_sequence} is next here"
        )
    if order.sequence < account.next_sequence:
        raise Refused(ErrorCode.EQUIVOCATION, f"two certificates for order {order.sequence} of one account")
    if order.previous != account.head:
        raise Refused(ErrorCode.BAD_SEQUENCE, "the order names another predecessor")
    debited = credited(account, -order.amount)
    return Account(debited.balance, account.next_sequence + 1, checked.hash)


def _open_channel(view: View, checked: CheckedOrder) -> Channel:
    channel = view.channel(checked.object)
    assert channel is not None  # check_order has read it
    if not channel.open:
        raise Refused(ErrorCode.EQUIVOCATION, "two certificates settle one channel")
    return channel


def _numbered(checked: CheckedOrder) -> Puts:
    return {order_key(checked.object, checked.version): checked.hash}
