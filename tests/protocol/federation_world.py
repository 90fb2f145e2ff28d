"""Four witnesses, their replicas, and the end of an epoch between them: what nodes do around the pure core, in memory.

Rule: `WitnessNode` does what spec/08-witnesses.md and spec/09-epochs.md ask of a correct witness, and no more. Who
coordinates, who is reached and what is lost is decided by the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from protocol.codec import body_hash, decode
from protocol.errors import ErrorCode, Refused
from protocol.ids import NO_HASH, FederationId, NodeId
from protocol.ledger import certificates, epochs, votes
from protocol.ledger.certificates import Transition, open_certificate
from protocol.ledger.checkpoints import (
    Outcome,
    Union,
    adopt,
    check_signatures,
    epoch_orders,
    last_checkpoint_ms,
    merged,
    outcome,
    previous_checkpoint,
    record_id,
)
from protocol.ledger.epochs import COMMIT, PREPARE, Role, Seat, needs_union, open_decision, role
from protocol.ledger.evidence import conflicts, equivocation, open_proof
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import AccountOrder, MissingPredecessor, Settlement, voted_object
from protocol.ledger.state import ABSTAIN, Base, View, lock_key, u64
from protocol.messages import (
    Ballot,
    Balloted,
    Commit,
    Join,
    Joined,
    Promise,
    Propose,
    Snapshot,
    WitnessSignature,
)
from protocol.signing import verify
from tests.protocol.ledger_world import NOW, Order
from tests.protocol.vector_world import FOUR, FOUR_WITNESSES, Ledger, vote_statement

Answer = TypeVar("Answer")

_GOOD: set[tuple[bytes, bytes, bytes, bytes]] = set()


def verify_once(key: NodeId, federation: FederationId, body: bytes, signature: bytes) -> None:
    """As `protocol.signing.verify`; four replicas check the same signatures."""
    question = (key, federation, body, signature)
    if question not in _GOOD:
        verify(key, federation, body, signature)
        _GOOD.add(question)


@dataclass
class WitnessNode(Ledger):
    """A correct witness."""

    unions: dict[bytes, Union] = field(default_factory=dict)  # that it prepared in this change, by root

    @classmethod
    def number(cls, index: int, federation: Federation = FOUR, now: int = NOW) -> WitnessNode:
        """The witness with that index, its ledger empty."""
        return cls(federation, FOUR_WITNESSES[index], index, now, signers=FOUR_WITNESSES)

    @property
    def view(self) -> View:
        return View(self.state, verify_once)

    @property
    def role(self) -> Role | None:
        return role(self.view)

    @property
    def seat(self) -> Seat:
        return Seat(self.federation, self.witness, self.index)

    # --- votes and orders ---

    def vote(self, order: Order) -> WitnessSignature:
        """Its vote; a contradiction to an earlier one is kept as a proof. Raises `Refused`."""
        checked = self.check(order)
        moment = votes.Moment(self.now, self.role is not None)
        try:
            lock = votes.decide(self.federation, self.view, checked, moment, self.witness)
        except Refused:
            known = votes.lock_in_force(self.view, checked.object, checked.version, checked.order)
            if known is not None and conflicts(known, checked):
                self.hear(equivocation(known, checked))
            raise
        self.state.write({lock_key(checked.object, checked.version): lock.encode()})
        return WitnessSignature(self.index, lock.vote)

    def hear(self, proof: bytes) -> None:
        """Keep a proof of misbehaviour, if it is one."""
        try:
            self.state.write(open_proof(self.federation, self.view, proof).puts(self.view))
        except Refused:
            return

    def apply(self, certificate: bytes) -> Transition:
        """Into the log, unless it is frozen. Raises `Refused`."""
        if self.role is not None and self.view.position(record_id(certificate)) is None:
            raise MissingPredecessor(ErrorCode.EPOCH_CHANGING, "the federation changes epochs")
        transition = certificates.apply(self.federation, self.view, certificate)
        self.state.write(transition.puts)
        if not transition.repeated:
            self.log.append(certificate)
            if self.forgot(certificate):
                self.state.write({ABSTAIN: u64(self.view.epoch)})
        return transition

    def store(self, certificate: bytes) -> tuple[int, int]:
        """Position and epoch, acknowledged. Raises `Refused`."""
        position = self.apply(certificate).position
        if self.view.abstaining:
            raise Refused(ErrorCode.ABSTAINING, "what it stores counts as nobody's word")
        return position, self.view.epoch

    def forgot(self, certificate: bytes) -> bool:
        """True if it has a vote of this witness that it does not remember, nor knows to have forgotten: it was set
        back."""
        found = open_certificate(certificate)
        if self.view.abstaining or all(vote.witness != self.index for vote in found.votes):
            return False
        order = decode(found.body)
        assert isinstance(order, AccountOrder | Settlement)
        if isinstance(order, Settlement) and self.view.may_have_settled(order.channel):
            return False
        lock = votes.lock_in_force(self.view, *voted_object(order), order)
        return lock is None or lock.order != body_hash(found.body)

    # --- the end of an epoch ---

    def held(self) -> Union:
        """The orders behind its snapshot."""
        return epoch_orders(self.state)

    def joined(self, request: Join, coordinator: int) -> Joined:
        """Freeze and promise. Raises `Refused`."""
        answer, puts = epochs.join(self.seat, self.state, request, coordinator, willing=True)
        self.state.write(puts)
        return answer

    def prepare(self, propose: Propose, coordinator: int, sets: Mapping[int, Union]) -> Balloted:
        """Ballot for a proposal whose sources' orders are `sets`. Raises `Refused`."""
        result = self.examine(propose, sets) if needs_union(propose) else None
        answer, puts = epochs.prepare(self.seat, self.view, propose, coordinator, self.now, result)
        self.state.write(puts)
        return answer

    def examine(self, propose: Propose, sets: Mapping[int, Union]) -> Outcome:
        """What the sources of a new checkpoint make; each has to be usable. Raises `Refused`."""
        checkpoint = epochs.open_checkpoint(propose.checkpoint)
        for source in checkpoint.sources:
            check_usable(self, sets.get(source.witness, Union({})), source.count, source.root)
        union = united(sets[source.witness] for source in checkpoint.sources)
        self.unions[union.root] = union
        return outcome(self.federation, self.state, union, checkpoint.time_ms)

    def commit_to(self, request: Commit, coordinator: int) -> Balloted:
        """Commit to what a quorum prepared. Raises `Refused`."""
        answer, puts = epochs.commit(self.seat, self.view, request, coordinator)
        self.state.write(puts)
        return answer

    def go_over(self, decision: bytes, union: Union) -> tuple[Union, Union]:
        """Adopt a decision: the orders that are void, and those that were not here. Raises `Refused`."""
        open_decision(self.federation, self.view, decision)
        adoption = adopt(self.federation, self.state, decision, union, 0)
        if any(self.forgot(order) for order in adoption.missing.certificates.values()):
            self.state.write({ABSTAIN: u64(self.view.epoch)})
            return self.go_over(decision, union)
        self.state.write(adoption.puts)
        self.unions.clear()
        return adoption.void, adoption.missing


@dataclass
class Liar(WitnessNode):
    """A witness that votes and ballots for everything, keeps what it likes, and says that it has it."""

    pretended: Union | None = None  # what its next snapshot is about; None: all that it has
    hides: bool = False  # that it has committed to something
    committed: Commit | None = None

    def vote(self, order: Order) -> WitnessSignature:
        return self.signature(self.index, vote_statement(order))

    def store(self, certificate: bytes) -> tuple[int, int]:
        attempt(self.apply, certificate)
        return 0, self.view.epoch

    def held(self) -> Union:
        return self.pretended or epoch_orders(self.state)

    def joined(self, request: Join, coordinator: int) -> Joined:
        held, view = self.held(), self.view
        told = None if self.hides else self.committed
        prepared, checkpoint = (told.round + 1, told.checkpoint) if told is not None else (0, b"")
        snapshot = Snapshot(view.epoch, previous_checkpoint(self.federation, view), len(held.certificates), held.root)
        promise = Promise(request.epoch, request.round, prepared, body_hash(checkpoint) if checkpoint else NO_HASH)
        signed = (self.seat.sign(snapshot), self.seat.sign(promise))
        ballots = told.ballots if told is not None else ()
        return Joined(self.index, snapshot.count, snapshot.root, *signed, prepared, checkpoint, ballots)

    def prepare(self, propose: Propose, coordinator: int, sets: Mapping[int, Union]) -> Balloted:
        return self._balloted(PREPARE, propose)

    def commit_to(self, request: Commit, coordinator: int) -> Balloted:
        self.committed = request
        return self._balloted(COMMIT, request)

    def _balloted(self, phase: int, request: Propose | Commit) -> Balloted:
        ballot = Ballot(phase, self.view.epoch, request.round, body_hash(request.checkpoint))
        return Balloted(self.index, self.seat.sign(ballot))

    def go_over(self, decision: bytes, union: Union) -> tuple[Union, Union]:
        self.committed = self.pretended = None
        return super().go_over(decision, union)


def check_usable(node: WitnessNode, held: Union, count: int, root: bytes) -> None:
    """The orders behind a snapshot are those, signed, closed and solvent. Raises `Refused`."""
    if (len(held.certificates), held.root) != (count, root):
        raise Refused(ErrorCode.BAD_QUORUM, "the snapshot is not what its witness signed")
    epoch = node.view.epoch
    state = merged(node.federation, Base(node.state, epoch), held, epoch)
    check_signatures(node.federation, View(state, verify_once), held)


def united(sets: Iterable[Union]) -> Union:
    """All orders of several sets."""
    found: dict[bytes, bytes] = {}
    for one in sets:
        found |= one.certificates
    return Union(found)


@dataclass
class Round:
    """One coordinator's attempt to end an epoch, phase by phase; a test may stop it anywhere."""

    node: WitnessNode
    number: int
    joined: dict[int, Joined] = field(default_factory=dict)
    sets: dict[int, Union] = field(default_factory=dict)
    checkpoint: bytes = b""
    prepares: tuple[WitnessSignature, ...] = ()
    epoch: int = field(init=False)

    def __post_init__(self) -> None:
        self.epoch = self.node.view.epoch

    @property
    def request(self) -> Join:
        """What it sends first."""
        return Join(self.epoch, self.number)

    def ask_to_join(self, witnesses: Iterable[WitnessNode]) -> None:
        """Phase 0. Who refuses, or whose set is not usable, is left out."""
        for one in witnesses:
            with suppress(Refused):
                answer = one.joined(self.request, self.node.index)
                self.take(one.index, answer, one.held())

    def take(self, index: int, answer: Joined, held: Union) -> None:
        """An answer to Join, with the orders behind its snapshot. Raises `Refused`."""
        epochs.check_joined(self.node.federation, self.node.view, answer, self.request)
        if not answer.prepared:
            check_usable(self.node, held, answer.count, answer.root)
            self.sets[index] = held
        self.joined[index] = answer

    def proposal(self) -> Propose | None:
        """Phase 1; None without a quorum of promises."""
        witnesses = len(self.node.federation.genesis.witnesses)
        by_turns = sorted(self.joined, key=lambda index: (index - self.number) % witnesses)
        answers = [self.joined[index] for index in by_turns[: self.node.federation.quorum]]
        if len(answers) < self.node.federation.quorum:
            return None
        before = epochs.prepared_before(answers)
        self.checkpoint = before.checkpoint if before is not None else self._new_checkpoint(answers)
        return epochs.proposal(self.number, self.checkpoint, answers)

    def _new_checkpoint(self, answers: list[Joined]) -> bytes:
        node = self.node
        union = united(self.sets[answer.witness] for answer in answers)
        time_ms = max(node.now, last_checkpoint_ms(node.federation, node.view) + 1)
        result = outcome(node.federation, node.state, union, time_ms)
        return epochs.new_checkpoint(node.federation, node.view, answers, result, time_ms)

    def ask_to_prepare(self, propose: Propose, witnesses: Iterable[WitnessNode]) -> Commit | None:
        """Phase 2; None without a quorum of ballots."""
        given = [attempt(one.prepare, propose, self.node.index, self.sets) for one in witnesses]
        return self.to_commit(self.ballots(PREPARE, given))

    def to_commit(self, prepares: tuple[WitnessSignature, ...]) -> Commit | None:
        """What it sends with a quorum of prepare ballots."""
        enough = len(prepares) >= self.node.federation.quorum
        return Commit(self.number, self.checkpoint, prepares) if enough else None

    def ask_to_commit(self, request: Commit, witnesses: Iterable[WitnessNode]) -> bytes | None:
        """Phase 3: the decision; None without a quorum of ballots."""
        given = [attempt(one.commit_to, request, self.node.index) for one in witnesses]
        return self.decided(self.ballots(COMMIT, given))

    def decided(self, commits: tuple[WitnessSignature, ...]) -> bytes | None:
        """The decision that a quorum of commit ballots is."""
        federation = self.node.federation
        return (
            epochs.decision(federation, self.checkpoint, self.number, commits)
            if len(commits) >= federation.quorum
            else None
        )

    def ballots(self, phase: int, given: Iterable[Balloted | None]) -> tuple[WitnessSignature, ...]:
        """Those among the answers that are good."""
        ballot = Ballot(phase, self.epoch, self.number, body_hash(self.checkpoint))
        federation, view = self.node.federation, self.node.view
        good = (attempt(epochs.check_balloted, federation, view, one, ballot) for one in given if one is not None)
        return tuple(one for one in good if one is not None)

    def run(self, witnesses: Sequence[WitnessNode]) -> bytes | None:
        """All of it, with these witnesses: the decision, None if they are too few."""
        self.ask_to_join(witnesses)
        propose = self.proposal()
        commit = self.ask_to_prepare(propose, witnesses) if propose is not None else None
        return self.ask_to_commit(commit, witnesses) if commit is not None else None


def attempt(ask: Callable[..., Answer], *arguments: Any) -> Answer | None:
    """The answer, None if it is refused."""
    try:
        return ask(*arguments)
    except Refused:
        return None


def certified(order: Order, witnesses: Iterable[WitnessNode]) -> bytes:
    """The order with these witnesses' votes. Raises `Refused` if one of them does not vote."""
    given = [(one, one.vote(order)) for one in witnesses]
    return certificates.certify(given[0][0].check(order), [vote for _, vote in given])


def settled(order: Order, witnesses: Sequence[WitnessNode]) -> bytes:
    """The order certified by a quorum, and stored at all of these witnesses: its id."""
    certificate = certified(order, witnesses[: witnesses[0].federation.quorum])
    for one in witnesses:
        one.store(certificate)
    return order.hash
