"""How witnesses agree on one checkpoint: rounds of promises, prepares and commits.

Rule: a witness that joins is frozen until a decision: its snapshot stays true. In each round it ballots once, for one
checkpoint. It commits to what a quorum prepared, unless it has promised a later round; and a later round proposes what
was prepared in the highest round that a quorum knows of. So two quorums never commit to two checkpoints, whatever f
witnesses sign, and whoever coordinates. What a witness signs follows from what it wrote down before.
"""

from __future__ import annotations

from collections.abc import Iterable as Several
from collections.abc import Sequence
from dataclasses import dataclass, replace

from protocol import params
from protocol.codec import body_hash, decode_as, encode
from protocol.errors import ErrorCode, Refused
from protocol.ids import NO_HASH
from protocol.ledger.checkpoints import Outcome, last_checkpoint_ms, previous_checkpoint, snapshot
from protocol.ledger.genesis import Federation
from protocol.ledger.orders import as_refusal
from protocol.ledger.quorums import check_quorum, check_signature, check_witnesses
from protocol.ledger.state import Iterable, Puts, View, number, u64
from protocol.messages import (
    Ballot,
    Balloted,
    Checkpoint,
    Commit,
    Decision,
    Join,
    Joined,
    Promise,
    Promised,
    Propose,
    Snapshot,
    Source,
    Standing,
    WitnessSignature,
)
from protocol.signing import Signer

PREPARE, COMMIT = 1, 2
ROLE = b"m:role"  # what this witness signed in the change of the epoch in force: an encoded Joined and its ballot


@dataclass(frozen=True, slots=True)
class Role:
    """What a frozen witness has signed. `promised` is the round it joined last; `prepared` a round + 1, or 0."""

    snapshot: Snapshot
    promised: int
    balloted: int = 0  # the round + 1 of its last prepare ballot
    ballot: bytes = NO_HASH  # for this checkpoint
    prepared: int = 0
    checkpoint: bytes = b""
    ballots: tuple[WitnessSignature, ...] = ()

    def encode(self) -> bytes:
        """As a Joined without signatures, behind the rounds."""
        joined = Joined(
            0,
            self.snapshot.count,
            self.snapshot.root,
            bytes(64),
            bytes(64),
            self.prepared,
            self.checkpoint,
            self.ballots,
        )
        numbers = u64(self.snapshot.epoch) + u64(self.promised) + u64(self.balloted)
        return numbers + self.snapshot.previous + self.ballot + encode(joined)

    @classmethod
    def decode(cls, value: bytes) -> Role:
        """The inverse of `encode`."""
        epoch, promised, balloted = (number(value[at : at + 8]) for at in (0, 8, 16))
        joined = decode_as(Joined, value[88:])
        held = Snapshot(epoch, value[24:56], joined.count, joined.root)
        return cls(held, promised, balloted, value[56:88], joined.prepared, joined.checkpoint, joined.ballots)


def role(view: View) -> Role | None:
    """What this witness has signed in the change of the epoch in force; None if it is not frozen."""
    value = view.reader.get(ROLE)
    known = None if value is None else Role.decode(value)
    return known if known is not None and known.snapshot.epoch == view.epoch else None


def due(federation: Federation, view: View, now_ms: int) -> bool:
    """True when the epoch in force has lasted as long as genesis says."""
    return now_ms >= last_checkpoint_ms(federation, view) + federation.genesis.epoch_length_ms


def standing(federation: Federation, view: View, now_ms: int, *, agreed: bool) -> Standing:
    """Whether a witness would join in ending the epoch; `agreed`: its operator said so."""
    frozen = role(view) is not None
    willing = not view.abstaining and (frozen or agreed or due(federation, view, now_ms))
    return Standing(view.epoch, int(willing), int(frozen), int(view.abstaining))


def round_of(federation: Federation, index: int, after: int) -> int:
    """The first round from `after` on that the witness coordinates."""
    witnesses = len(federation.genesis.witnesses)
    return after + (index - after) % witnesses


# --- the witness ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seat:
    """One witness: its key and its index in genesis."""

    federation: Federation
    signer: Signer
    index: int

    def sign(self, message: Promise | Ballot | Snapshot) -> bytes:
        """Its signature over a statement."""
        return self.signer.sign(self.federation.id, encode(message))


def join(seat: Seat, stored: Iterable, request: Join, coordinator: int, *, willing: bool) -> tuple[Joined, Puts]:
    """Freeze, and promise to ballot in no round before this one.

    `willing`: the epoch is due or the operator agreed; a witness that is frozen already always joins. Raises `Refused`.
    """
    view = View(stored)
    _check_part(seat.federation, view, request.epoch, request.round, coordinator)
    known = role(view)
    if known is None and not willing:
        raise Refused(ErrorCode.INVALID_REQUEST, "the epoch is not over, and this witness's operator has not agreed")
    _check_round(known.promised if known is not None else 0, request.round)
    held = known or Role(snapshot(seat.federation, stored), request.round)
    joined = replace(held, promised=request.round)
    promise = Promise(request.epoch, request.round, joined.prepared, _hash(joined.checkpoint))
    answer = Joined(
        seat.index,
        joined.snapshot.count,
        joined.snapshot.root,
        seat.sign(joined.snapshot),
        seat.sign(promise),
        joined.prepared,
        joined.checkpoint,
        joined.ballots,
    )
    return answer, {ROLE: joined.encode()}


def needs_union(propose: Propose) -> bool:
    """True if a proposal is new and its union has to be checked; a prepared one was checked by a quorum."""
    return all(promised.prepared == 0 for promised in propose.promises)


def prepare(
    seat: Seat, view: View, propose: Propose, coordinator: int, now_ms: int, result: Outcome | None
) -> tuple[Balloted, Puts]:
    """The prepare ballot for a proposal. `result` is what this witness found its union to be. Raises `Refused`."""
    checkpoint = open_checkpoint(propose.checkpoint)
    epoch = checkpoint.epoch - 1
    _check_part(seat.federation, view, epoch, propose.round, coordinator)
    known = _frozen(view)
    _check_round(known.promised, propose.round)
    identity = body_hash(propose.checkpoint)
    if known.balloted == propose.round + 1 and known.ballot != identity:
        raise Refused(ErrorCode.EQUIVOCATION, "this witness has balloted for another checkpoint in this round")
    check_justified(seat.federation, view, propose, epoch)
    if needs_union(propose):
        _check_new(seat.federation, view, checkpoint, now_ms, result)
    ballot = Ballot(PREPARE, epoch, propose.round, identity)
    changed = replace(known, promised=propose.round, balloted=propose.round + 1, ballot=identity)
    return Balloted(seat.index, seat.sign(ballot)), {ROLE: changed.encode()}


def commit(seat: Seat, view: View, request: Commit, coordinator: int) -> tuple[Balloted, Puts]:
    """The commit ballot for what a quorum prepared, remembered with its proof. Raises `Refused`."""
    checkpoint = open_checkpoint(request.checkpoint)
    epoch = checkpoint.epoch - 1
    _check_part(seat.federation, view, epoch, request.round, coordinator)
    known = _frozen(view)
    _check_round(known.promised, request.round)
    identity = body_hash(request.checkpoint)
    check_ballots(seat.federation, view, Ballot(PREPARE, epoch, request.round, identity), request.ballots)
    changed = replace(
        known,
        promised=request.round,
        prepared=request.round + 1,
        checkpoint=request.checkpoint,
        ballots=request.ballots,
    )
    ballot = Ballot(COMMIT, epoch, request.round, identity)
    return Balloted(seat.index, seat.sign(ballot)), {ROLE: changed.encode()}


def _check_part(federation: Federation, view: View, epoch: int, number: int, coordinator: int) -> None:
    if view.abstaining:
        raise Refused(ErrorCode.ABSTAINING, "this witness's storage was set back; it takes part in no decision")
    if epoch != view.epoch:
        raise Refused(ErrorCode.STALE_EPOCH, f"epoch {epoch} is to end, {view.epoch} is in force here")
    if number % len(federation.genesis.witnesses) != coordinator:
        raise Refused(ErrorCode.NOT_A_WITNESS, f"round {number} is another witness's to coordinate")


def _check_round(promised: int, asked: int) -> None:
    if asked < promised:
        raise Refused(ErrorCode.BAD_SEQUENCE, f"this witness has joined round {promised}")
    if asked > promised + params.MAX_ROUND_JUMP:
        raise Refused(ErrorCode.INVALID_REQUEST, f"round {asked} leaves out too many after {promised}")


def _frozen(view: View) -> Role:
    known = role(view)
    if known is None:
        raise Refused(ErrorCode.BAD_SEQUENCE, "this witness has not joined")
    return known


# --- what everybody checks ------------------------------------------------------------------------------


def open_checkpoint(body: bytes) -> Checkpoint:
    """The checkpoint in `body`. Raises `Refused` (MALFORMED)."""
    with as_refusal():
        return decode_as(Checkpoint, body, params.MAX_RECORD_BYTES)


def check_justified(federation: Federation, view: View, propose: Propose, epoch: int) -> None:
    """A quorum promised this round, and no promise tells of a higher prepared checkpoint. Raises `Refused`."""
    check_witnesses(federation, [promised.witness for promised in propose.promises])
    for promised in propose.promises:
        promise = Promise(epoch, propose.round, promised.prepared, promised.checkpoint)
        _verify(federation, view, promised.witness, promise, promised.signature)
    highest = max(promised.prepared for promised in propose.promises)
    if highest:
        identity = body_hash(propose.checkpoint)
        check_ballots(federation, view, Ballot(PREPARE, epoch, highest - 1, identity), propose.ballots)


def check_ballots(federation: Federation, view: View, ballot: Ballot, given: Several[WitnessSignature]) -> None:
    """A quorum of distinct witnesses signed a ballot. Raises `Refused` (BAD_QUORUM, BAD_SIGNATURE)."""
    check_quorum(federation, view, encode(ballot), given)


def open_decision(federation: Federation, view: View, data: bytes) -> tuple[Decision, Checkpoint]:
    """A decision with the commits of a quorum. Raises `Refused`."""
    with as_refusal():
        decision = decode_as(Decision, data, params.MAX_RECORD_BYTES)
    checkpoint = open_checkpoint(decision.body)
    if checkpoint.epoch == 0:
        raise Refused(ErrorCode.MALFORMED, "no checkpoint opens the first epoch")
    ballot = Ballot(COMMIT, checkpoint.epoch - 1, decision.round, body_hash(decision.body))
    check_ballots(federation, view, ballot, decision.commits)
    return decision, checkpoint


def check_snapshot(federation: Federation, view: View, source: Source, epoch: int, previous: bytes) -> None:
    """A source is signed by its witness. Raises `Refused`."""
    _verify(federation, view, source.witness, Snapshot(epoch, previous, source.count, source.root), source.signature)


def _check_new(federation: Federation, view: View, checkpoint: Checkpoint, now_ms: int, result: Outcome | None) -> None:
    """A new checkpoint is what its sources make. Raises `Refused`."""
    check_witnesses(federation, [source.witness for source in checkpoint.sources])
    if len(checkpoint.sources) != federation.quorum:
        raise Refused(ErrorCode.BAD_QUORUM, f"a checkpoint has {federation.quorum} sources")
    if checkpoint.previous != previous_checkpoint(federation, view):
        raise Refused(ErrorCode.STALE_EPOCH, "the checkpoint does not follow the one in force")
    for source in checkpoint.sources:
        check_snapshot(federation, view, source, checkpoint.epoch - 1, checkpoint.previous)
    earliest = max(last_checkpoint_ms(federation, view) + 1, now_ms - params.CHECKPOINT_LAG)
    if not earliest <= checkpoint.time_ms <= now_ms + params.CLOCK_SKEW:
        raise Refused(ErrorCode.INVALID_REQUEST, "the checkpoint's time is not now, or not after the last one's")
    found = None if result is None else (result.count, result.orders, result.state)
    if found != (checkpoint.count, checkpoint.orders, checkpoint.state):
        raise Refused(ErrorCode.BAD_QUORUM, "the checkpoint does not follow from its sources")


def _verify(
    federation: Federation, view: View, witness: int, message: Promise | Ballot | Snapshot, signature: bytes
) -> None:
    check_signature(federation, view, witness, encode(message), signature)


def _hash(checkpoint: bytes) -> bytes:
    return body_hash(checkpoint) if checkpoint else NO_HASH


# --- the coordinator ------------------------------------------------------------------------------------


def check_joined(federation: Federation, view: View, joined: Joined, request: Join) -> None:
    """An answer to Join that can be used. Raises `Refused`."""
    held = Snapshot(request.epoch, previous_checkpoint(federation, view), joined.count, joined.root)
    _verify(federation, view, joined.witness, held, joined.snapshot_signature)
    promise = Promise(request.epoch, request.round, joined.prepared, _hash(joined.checkpoint))
    _verify(federation, view, joined.witness, promise, joined.promise_signature)
    if joined.prepared:
        ballot = Ballot(PREPARE, request.epoch, joined.prepared - 1, _hash(joined.checkpoint))
        check_ballots(federation, view, ballot, joined.ballots)


def prepared_before(joined: Sequence[Joined]) -> Joined | None:
    """The answer with the highest prepared checkpoint, which must be proposed again; None if there is none."""
    highest = max(joined, key=lambda answer: answer.prepared)
    return highest if highest.prepared else None


def new_checkpoint(
    federation: Federation, view: View, sources: Sequence[Joined], result: Outcome, time_ms: int
) -> bytes:
    """The encoded checkpoint over the snapshots of a quorum."""
    listed = sorted(sources, key=lambda answer: answer.witness)[: federation.quorum]
    checkpoint = Checkpoint(
        epoch=view.epoch + 1,
        previous=previous_checkpoint(federation, view),
        time_ms=time_ms,
        count=result.count,
        orders=result.orders,
        state=result.state,
        sources=tuple(Source(one.witness, one.count, one.root, one.snapshot_signature) for one in listed),
    )
    return encode(checkpoint)


def proposal(number: int, checkpoint: bytes, joined: Sequence[Joined]) -> Propose:
    """What the coordinator sends, justified by the promises of all who joined."""
    before = prepared_before(joined)
    listed = sorted(joined, key=lambda answer: answer.witness)
    promises = tuple(
        Promised(one.witness, one.prepared, _hash(one.checkpoint), one.promise_signature) for one in listed
    )
    return Propose(number, checkpoint, promises, before.ballots if before else ())


def decision(federation: Federation, checkpoint: bytes, number: int, commits: Several[WitnessSignature]) -> bytes:
    """The encoded decision, with the commits of a quorum."""
    ordered = tuple(sorted(commits, key=lambda signature: signature.witness))[: federation.quorum]
    return encode(Decision(checkpoint, number, ordered))


def check_balloted(federation: Federation, view: View, balloted: Balloted, ballot: Ballot) -> WitnessSignature:
    """A witness's answer to Propose or Commit, as it stands in a quorum. Raises `Refused`."""
    _verify(federation, view, balloted.witness, ballot, balloted.signature)
    return WitnessSignature(balloted.witness, balloted.signature)
