"""A federation of one or four witnesses for making vectors: it signs whatever a case needs, right or wrong.

Rule: nothing is random and nothing is checked here. What is right is decided by the code under test.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocol.codec import body_hash, decode, encode
from protocol.ids import NO_HASH, NodeId
from protocol.ledger import genesis
from protocol.ledger.certificates import Transition
from protocol.ledger.checkpoints import Union, adopt, epoch_orders, outcome, previous_checkpoint, record_id, snapshot
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import AccountOrder, owner_of
from protocol.messages import (
    Attach,
    Ballot,
    Certificate,
    Checkpoint,
    Close,
    Commit,
    Consent,
    Decision,
    Equivocation,
    Join,
    Move,
    Promise,
    Promised,
    Propose,
    Recovery,
    Refund,
    Rotate,
    Snapshot,
    Source,
    Vote,
    WitnessSignature,
)
from protocol.signing import Signer
from tests.protocol.ledger_world import ALICE, BOB, FEDERATION, ISSUER, NOW, WITNESS, Mapping, Order, World, signer

FOUR_WITNESSES = tuple(signer(f"w{index}") for index in range(4))
FOUR = genesis.create("four", NOW, [one.node for one in FOUR_WITNESSES], [ISSUER.node], supply_cap=10_000_000)
OTHER = genesis.create("other", NOW, [one.node for one in FOUR_WITNESSES], [ISSUER.node], supply_cap=10_000_000)
QUORUM = (0, 1, 2)


def vote_statement(order: Order) -> bytes:
    """What a witness signs for an order, by the order's own fields."""
    message = decode(order.body)
    if isinstance(message, AccountOrder):
        return encode(Vote(order.hash, message.sequence, owner_of(message)))
    assert isinstance(message, Close | Refund)
    return encode(Vote(order.hash, 0, message.channel))


@dataclass
class Ledger(World):
    """A replica with its log, and every witness's key."""

    signers: Sequence[Signer] = (WITNESS,)
    log: list[bytes] = field(default_factory=list)

    @classmethod
    def of_four(cls, federation: Federation = FOUR) -> Ledger:
        """An empty ledger with four witnesses."""
        return cls(federation=federation, witness=FOUR_WITNESSES[0], signers=FOUR_WITNESSES)

    def copy(self) -> Ledger:
        """Another replica with the same log."""
        state = Mapping()
        state.values = dict(self.state.values)
        return Ledger(self.federation, self.witness, self.index, self.now, state, self.signers, list(self.log))

    # --- orders ---

    def grant(self, to: NodeId, amount: int, issuer: Signer = ISSUER, **changes: object) -> Order:
        return super().grant(to, amount, issuer, **{"epoch": self.view.epoch, **changes})

    def hold(self, payer: Signer, payee: NodeId, amount: int, /, **changes: object) -> Order:
        return super().hold(payer, payee, amount, **{"epoch": self.view.epoch, **changes})

    def hold_by(self, key: Signer, payer: NodeId, payee: NodeId, amount: int) -> Order:
        """A hold of `payer`, signed by `key`."""
        account = self.view.account(payer)
        sequence, head = account.next_sequence, account.head
        return self.hold(key, payee, amount, payer=payer, sequence=sequence, previous=head)

    def _chained(self, kind: Any, account: NodeId, by: Signer, **fields: Any) -> Order:
        state = self.view.account(account)
        base = {"sequence": state.next_sequence, "previous": state.head, "epoch": self.view.epoch}
        return self.signed(by, kind(account=account, **{**base, **fields}))

    def consent(self, by: Signer, account: NodeId, federation: Federation | None = None) -> bytes:
        return by.sign((federation or self.federation).id, encode(Consent(account, by.node)))

    def attach(self, account: Signer, owner: Signer, /, **changes: Any) -> Order:
        fields = {"owner": owner.node, "consent": self.consent(owner, account.node), **changes}
        return self._chained(Attach, account.node, account, **fields)

    def move(self, account: Signer, to: NodeId, amount: int, /, *, by: Signer | None = None, **changes: Any) -> Order:
        return self._chained(Move, account.node, by or account, to=to, amount=amount, **changes)

    def recovery(self, account: Signer, key: NodeId, /, *, by: Signer | None = None, **changes: Any) -> Order:
        return self._chained(Recovery, account.node, by or account, key=key, **changes)

    def rotate(self, account: Signer, key: Signer, /, *, by: Signer | None = None, **changes: Any) -> Order:
        fields = {"key": key.node, "consent": self.consent(key, account.node), **changes}
        return self._chained(Rotate, account.node, by or account, **fields)

    # --- the log ---

    def certificate(self, order: Order, *witnesses: int) -> bytes:
        """The order with the votes of `witnesses`, of a quorum by default; nobody is asked."""
        chosen = witnesses or tuple(range(self.federation.quorum))
        statement = vote_statement(order)
        votes = tuple(self.signature(index, statement) for index in chosen)
        return encode(Certificate(order.body, order.signature, votes))

    def signature(self, index: int, statement: bytes, federation: Federation | None = None) -> WitnessSignature:
        return WitnessSignature(index, self.signers[index].sign((federation or self.federation).id, statement))

    def apply(self, certificate: bytes) -> Transition:
        transition = super().apply(certificate)
        if not transition.repeated:
            self.log.append(certificate)
        return transition

    def give(self, *orders: Order) -> bytes:
        """Certify and apply orders; the id of the last."""
        for order in orders:
            self.do(order)
        return orders[-1].hash

    @property
    def hex_log(self) -> list[str]:
        return [record.hex() for record in self.log]

    @property
    def union(self) -> list[str]:
        """The certificates of this epoch."""
        return [record.hex() for record in epoch_orders(self.state).certificates.values()]

    # --- the end of an epoch ---

    def snapshot(self) -> Snapshot:
        return snapshot(self.federation, self.state)

    def source(self, index: int, held: Snapshot | None = None, federation: Federation | None = None) -> Source:
        one = held or self.snapshot()
        return Source(index, one.count, one.root, self.signature(index, encode(one), federation).signature)

    def checkpoint(
        self, time_ms: int | None = None, *, union: Iterable[bytes] | None = None, sources: Sequence[Source] = ()
    ) -> Checkpoint:
        """Over `union` (by default what is here), said to be the sources' (by default a quorum with this log)."""
        orders = epoch_orders(self.state) if union is None else Union({record_id(one): one for one in union})
        result = outcome(self.federation, self.state, orders, self.now if time_ms is None else time_ms)
        return Checkpoint(
            epoch=self.view.epoch + 1,
            previous=previous_checkpoint(self.federation, self.view),
            time_ms=self.now if time_ms is None else time_ms,
            count=result.count,
            orders=result.orders,
            state=result.state,
            sources=tuple(sources) or tuple(self.source(index) for index in range(self.federation.quorum)),
        )

    def ballots(
        self, phase: int, checkpoint: Checkpoint, number: int = 0, witnesses: Sequence[int] = QUORUM, **other: Any
    ) -> tuple[WitnessSignature, ...]:
        statement = encode(Ballot(phase, checkpoint.epoch - 1, number, body_hash(encode(checkpoint))))
        return tuple(self.signature(index, statement, **other) for index in witnesses)

    def decision(self, checkpoint: Checkpoint, number: int = 0, commits: tuple[WitnessSignature, ...] = ()) -> bytes:
        witnesses = range(self.federation.quorum)
        return encode(
            Decision(encode(checkpoint), number, commits or self.ballots(2, checkpoint, number, tuple(witnesses)))
        )

    def adopt(self, decision: bytes, union: Iterable[bytes] | None = None, *, keep_from: int | None = None) -> None:
        orders = epoch_orders(self.state) if union is None else Union({record_id(one): one for one in union})
        self.state.write(adopt(self.federation, self.state, decision, orders, keep_from).puts)
        self.log.append(decision)

    def end_epoch(self, time_ms: int | None = None, *, keep_from: int | None = None) -> None:
        self.adopt(self.decision(self.checkpoint(time_ms)), keep_from=keep_from)

    def promised(
        self, index: int, number: int = 0, before: Checkpoint | None = None, prepared: int = 0, **other: Any
    ) -> Promised:
        identity = NO_HASH if before is None else body_hash(encode(before))
        promise = Promise(self.view.epoch, number, prepared, identity)
        return Promised(index, prepared, identity, self.signature(index, encode(promise), **other).signature)

    def propose(
        self,
        checkpoint: Checkpoint,
        number: int = 0,
        promises: Sequence[Promised] = (),
        ballots: tuple[WitnessSignature, ...] = (),
    ) -> Propose:
        given = tuple(promises) or tuple(self.promised(index, number) for index in QUORUM)
        return Propose(number, encode(checkpoint), given, ballots)

    def commit(self, checkpoint: Checkpoint, number: int = 0, witnesses: Sequence[int] = QUORUM) -> Commit:
        return Commit(number, encode(checkpoint), self.ballots(1, checkpoint, number, witnesses))

    def join(self, number: int = 0) -> Join:
        return Join(self.view.epoch, number)


GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def unreduced(signature: WitnessSignature) -> WitnessSignature:
    """The same signature with the group's order added to S: another spelling, which a verifier must refuse."""
    s = int.from_bytes(signature.signature[32:], "little") + GROUP_ORDER
    return WitnessSignature(signature.witness, signature.signature[:32] + s.to_bytes(32, "little"))


def equivocation(first: Order, second: Order) -> bytes:
    """The proof that two orders are."""
    return encode(Equivocation(first.body, first.signature, second.body, second.signature))


def one_witness() -> tuple[Ledger, bytes]:
    """Alice has 1 cr and a channel of 0.4 cr to Bob: the ledger, and the channel."""
    ledger = Ledger(federation=FEDERATION)
    ledger.do(ledger.grant(ALICE.node, 1_000_000))
    return ledger, ledger.give(ledger.hold(ALICE, BOB.node, 400_000))


def four_witnesses() -> tuple[Ledger, bytes]:
    """The same with four witnesses."""
    ledger = Ledger.of_four()
    ledger.do(ledger.grant(ALICE.node, 1_000_000))
    return ledger, ledger.give(ledger.hold(ALICE, BOB.node, 400_000))
