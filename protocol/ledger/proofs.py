"""What a ledger holds, shown to somebody who has no copy of it and trusts no node.

Rule: a proof is checked from its own bytes and the federation's id. A checkpoint that a quorum committed to names two
roots: of the state (accounts and open channels when its epoch began) and of the ids of the orders that count for good.
An order of the epoch in force has only its certificate: a quorum voted for it and for no other with its number. That
its owner signed it can be seen here unless its key was changed; else the votes say so.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol import params
from protocol.codec import body_hash, decode, decode_as
from protocol.errors import ErrorCode, Refused
from protocol.ids import FederationId
from protocol.ledger import merkle
from protocol.ledger.certificates import check_votes, open_certificate, trusting
from protocol.ledger.checkpoints import epoch_range, leaves, orders_between
from protocol.ledger.epochs import open_decision
from protocol.ledger.genesis import Federation, open_genesis
from protocol.ledger.orders import AccountOrder, CheckedOrder, as_refusal, check_order
from protocol.ledger.state import (
    Base,
    Channel,
    Draft,
    Iterable,
    Nothing,
    Verify,
    View,
    channel_key,
)
from protocol.messages import (
    AccountState,
    ChannelState,
    Checkpoint,
    Close,
    Decision,
    Hold,
    LedgerProof,
    Refund,
)
from protocol.signing import verify


@dataclass(frozen=True, slots=True)
class ProvenOrder:
    """An order with the votes of a quorum."""

    checked: CheckedOrder
    voters: tuple[int, ...]  # indexes of witnesses
    hold: Hold | None  # that it ends, if it is a Close or Refund
    signed: bool  # by a key that follows from the proof; False: the account's key was changed, or it is not signed


@dataclass(frozen=True, slots=True)
class Agreed:
    """The checkpoint that holds it."""

    id: bytes
    checkpoint: Checkpoint
    committers: tuple[int, ...]  # indexes of witnesses


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof shows, for one federation."""

    federation: Federation
    subject: AccountState | ChannelState | ProvenOrder
    agreed: Agreed | None  # None: an order of an epoch that has not ended, as far as the proof says


# --- making -------------------------------------------------------------------------------------------


def prove_state(federation: Federation, stored: Iterable, key: bytes) -> LedgerProof:
    """The proof of an account, or of an open channel, as it was when the epoch in force began.

    `key` is the account or the channel. Raises `Refused` if there is no checkpoint, or it does not hold that.
    """
    epoch = View(stored).epoch
    decision = _decision(stored, epoch)
    if decision is None:
        raise Refused(
            ErrorCode.INVALID_REQUEST, "no checkpoint says yet what anybody has: the first epoch has not ended"
        )
    found = leaves(Base(stored, epoch))
    place = next((place for place, leaf in enumerate(found) if _key_of(leaf) == key), None)
    if place is None:
        raise Refused(
            ErrorCode.INVALID_REQUEST, f"it is not in the checkpoint that opened epoch {epoch}: it was not there then"
        )
    return _proof(federation, decision, found[place], b"", merkle.path(found, place))


def prove_order(federation: Federation, stored: Iterable, identity: bytes) -> LedgerProof:
    """The proof of an order: with the checkpoint that holds it, or its certificate alone. Raises `Refused`."""
    view = View(stored)
    record, position = view.record(identity), view.position(identity)
    if record is None or position is None:
        raise Refused(ErrorCode.INVALID_REQUEST, "the order is not in this ledger: it is not known here, or was pruned")
    hold = _hold_body(view, record)
    if position >= view.epoch_start:
        return _proof(federation, b"", record, hold, merkle.Path(0, 0, ()))
    for epoch in range(view.first_epoch, view.epoch):
        places = epoch_range(view, epoch)
        decision = _decision(stored, epoch + 1)
        if places is not None and decision is not None and places[0] <= position < places[1]:
            ids = orders_between(stored, *places).ids
            return _proof(federation, decision, record, hold, merkle.path(ids, ids.index(identity)))
    raise Refused(ErrorCode.INVALID_REQUEST, "the epoch of the order is not whole here: the rest of it was pruned")


def _proof(federation: Federation, decision: bytes, leaf: bytes, hold: bytes, path: merkle.Path) -> LedgerProof:
    return LedgerProof(federation.body, decision, leaf, hold, path.index, path.count, path.neighbours)


def _decision(stored: Iterable, epoch: int) -> bytes | None:
    """The decision that opened an epoch."""
    identity = View(stored).checkpoint(epoch)
    return None if identity is None else View(stored).record(identity)


def _key_of(leaf: bytes) -> bytes:
    message = decode(leaf, params.MAX_RECORD_BYTES)
    assert isinstance(message, AccountState | ChannelState)
    return message.account if isinstance(message, AccountState) else message.channel


def _hold_body(view: View, record: bytes) -> bytes:
    """The hold that a settlement ends. Raises `Refused` if it was pruned."""
    order = decode(open_certificate(record).body)
    if not isinstance(order, Close | Refund):
        return b""
    hold = view.record(order.channel)
    if hold is None:
        raise Refused(ErrorCode.INVALID_REQUEST, "the hold that the order ends was pruned here")
    return open_certificate(hold).body


# --- checking -----------------------------------------------------------------------------------------


def check_proof(data: bytes, expected: FederationId | None = None, check: Verify = verify) -> Proven:
    """What the encoded LedgerProof in `data` shows. Raises `Refused`: MALFORMED, BAD_SIGNATURE, BAD_QUORUM, or
    WRONG_FEDERATION if it is not of the federation `expected`."""
    with as_refusal():
        proof = decode_as(LedgerProof, data)
        federation = open_genesis(proof.genesis, expected)
        leaf = decode(proof.leaf, params.MAX_RECORD_BYTES)
    agreed = _agreed(federation, proof.decision, check)
    if isinstance(leaf, AccountState | ChannelState):
        _check_state(proof, agreed)
        return Proven(federation, leaf, agreed)
    order = _order(federation, proof, check)
    _check_path(proof, order.checked.hash, None if agreed is None else agreed.checkpoint.orders)
    _check_epochs(order.checked, agreed)
    return Proven(federation, order, agreed)


def _agreed(federation: Federation, data: bytes, check: Verify) -> Agreed | None:
    if not data:
        return None
    decision, checkpoint = open_decision(federation, View(Nothing(), check), data)
    return Agreed(body_hash(decision.body), checkpoint, _committers(decision))


def _committers(decision: Decision) -> tuple[int, ...]:
    return tuple(commit.witness for commit in decision.commits)


def _check_state(proof: LedgerProof, agreed: Agreed | None) -> None:
    if agreed is None or proof.hold:
        raise Refused(ErrorCode.MALFORMED, "an account or channel is proven by a checkpoint, and by that alone")
    _check_path(proof, proof.leaf, agreed.checkpoint.state)


def _check_path(proof: LedgerProof, leaf: bytes, root: bytes | None) -> None:
    """The leaf stands below the root; without a checkpoint there is no path. Raises `Refused`."""
    path = merkle.Path(proof.index, proof.count, proof.neighbours)
    if root is None and path != merkle.Path(0, 0, ()):
        raise Refused(ErrorCode.MALFORMED, "a path that leads to no checkpoint")
    if root is not None and merkle.climb(leaf, path) != root:
        raise Refused(ErrorCode.BAD_QUORUM, "the checkpoint does not hold this: the path leads to another root")


def _check_epochs(checked: CheckedOrder, agreed: Agreed | None) -> None:
    """An account's order counts in its own epoch; a settlement in any. Raises `Refused`."""
    order = checked.order
    if agreed is not None and isinstance(order, AccountOrder) and order.epoch + 1 != agreed.checkpoint.epoch:
        raise Refused(ErrorCode.STALE_EPOCH, "the order names another epoch than the one that the checkpoint ended")


def _order(federation: Federation, proof: LedgerProof, check: Verify) -> ProvenOrder:
    certificate = open_certificate(proof.leaf)
    hold, state = _open_hold(proof.hold)
    checked = check_order(federation, View(state, trusting), certificate.body, certificate.signature)
    if hold is not None and not isinstance(checked.order, Close | Refund):
        raise Refused(ErrorCode.MALFORMED, "a hold stands beside the order that ends it, and beside no other")
    check_votes(federation, View(state, check), checked, certificate.votes)
    try:
        check_order(federation, View(state, check), certificate.body, certificate.signature)
        signed = True
    except Refused:
        signed = False
    return ProvenOrder(checked, tuple(vote.witness for vote in certificate.votes), hold, signed)


def _open_hold(body: bytes) -> tuple[Hold | None, Draft]:
    """The hold, and a state in which its channel is open: all that a settlement's rules look at."""
    state = Draft(Nothing())
    if not body:
        return None, state
    with as_refusal():
        hold = decode_as(Hold, body, params.MAX_RECORD_BYTES)
    state.update({channel_key(body_hash(body)): Channel.opened(hold).encode()})
    return hold, state
