"""Proofs of misbehaviour that anybody can check.

Rule: a proof holds the signed statements themselves, so nobody has to be believed. Two orders of one owner for one
(object, version) of one epoch freeze the owner's account until the epoch ends; two votes of one witness are shown to
people, and change nothing else: a certificate stays what it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol import params
from protocol.codec import decode, encode
from protocol.errors import ErrorCode, Malformed, Refused
from protocol.ids import NodeId
from protocol.ledger.certificates import check_vote, trusting
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import AccountOrder, CheckedOrder, as_refusal, check_order, required_channel
from protocol.ledger.state import (
    Account,
    Lock,
    Puts,
    View,
    account_key,
    base_key,
    double_vote_key,
    equivocation_key,
    u64,
)
from protocol.messages import DoubleVote, Equivocation, Refund, WitnessSignature


@dataclass(frozen=True, slots=True)
class Proof:
    """A checked proof: against which account or witness, and in which epoch it counts."""

    record: bytes
    account: NodeId | None  # None: against a witness
    witness: int  # its index; 0 for a proof against an account
    epoch: int
    sequence: int | None = None  # of two account orders

    def puts(self, view: View) -> Puts:
        """What keeping it writes; nothing if it is known or counts for nothing."""
        key = double_vote_key(self.witness) if self.account is None else equivocation_key(self.account)
        if self.account is not None and (self.epoch != view.epoch or view.frozen(self.account)):
            return {}
        if self.account is not None and self.sequence is not None and self._is_idle(view, self.account, self.sequence):
            return {}
        known = view.reader.get(key) if self.account is None else None
        return {} if known is not None else {key: u64(self.epoch) + self.record}

    def _is_idle(self, view: View, account: NodeId, sequence: int) -> bool:
        """True if no order with this number can come into the epoch any more, or the account has nothing. A key of
        before signs for the numbers of before: who stole it must not be able to make the account rest again and again.
        And keys are free: nobody keeps and forwards what is proved of accounts that somebody just made up."""
        began = view.reader.get(base_key(view.epoch, account_key(account)))
        taken = 0 if began is None else Account.decode(began).next_sequence
        return sequence < taken or not view.account(account).known


def equivocation(lock: Lock, checked: CheckedOrder) -> bytes:
    """The proof that a witness has when an owner asks it for a vote against its lock."""
    return encode(Equivocation(lock.body, lock.signature, checked.body, checked.signature))


def open_proof(federation: Federation, view: View, record: bytes) -> Proof:
    """The proof in `record`, verified. Raises `Refused`."""
    with as_refusal():
        message = decode(record, params.MAX_EVIDENCE_BYTES)
        if isinstance(message, Equivocation):
            return _equivocation(federation, view, record, message)
        if isinstance(message, DoubleVote):
            return _double_vote(federation, view, record, message)
        raise Malformed(f"a {type(message).__name__} proves nothing")


def _equivocation(federation: Federation, view: View, record: bytes, proof: Equivocation) -> Proof:
    first = check_order(federation, view, proof.first, proof.first_signature)
    second = check_order(federation, view, proof.second, proof.second_signature)
    _check_conflict(first, second)
    if isinstance(first.order, AccountOrder):
        return Proof(record, NodeId(first.object), 0, first.order.epoch, first.version)
    channel = required_channel(view, first.order.channel)
    if not channel.open:
        raise Refused(ErrorCode.CHANNEL_CLOSED, "the channel is settled: the contradiction is decided")
    return Proof(record, channel.payee, 0, view.epoch)


def _double_vote(federation: Federation, view: View, record: bytes, proof: DoubleVote) -> Proof:
    first, second = (_unsigned(federation, view, body) for body in (proof.first, proof.second))
    _check_conflict(first, second)
    for checked, vote in ((first, proof.first_vote), (second, proof.second_vote)):
        check_vote(federation, view, checked, WitnessSignature(proof.witness, vote))
    return Proof(record, None, proof.witness, view.epoch)


def _unsigned(federation: Federation, view: View, body: bytes) -> CheckedOrder:
    """An order whose owner's signature is not part of the question."""
    return check_order(federation, View(view.reader, trusting), body, bytes(params.SIGNATURE_BYTES))


def _check_conflict(first: CheckedOrder, second: CheckedOrder) -> None:
    epochs = {order.epoch for order in (first.order, second.order) if isinstance(order, AccountOrder)}
    same = (first.object, first.version) == (second.object, second.version) and len(epochs) < 2
    refunds = isinstance(first.order, Refund) or isinstance(second.order, Refund)  # by another signer than a close
    if refunds or not same or first.hash == second.hash:
        raise Refused(ErrorCode.INVALID_REQUEST, "the two do not contradict each other")


def conflicts(lock: Lock | None, checked: CheckedOrder) -> bool:
    """True if an order asks for a vote against a lock in force."""
    return lock is not None and lock.order != checked.hash
