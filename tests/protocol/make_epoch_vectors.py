"""The cases of chapters 09 and 10: the end of an epoch, evidence, who may ask. Written by `make_ledger_vectors`.

Rule: as there: the input is made here, the result is what the code gives; nothing is random.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from node.ledger_export import FIRST_LINE, exported
from protocol.codec import body_hash, decode, decode_as, encode
from protocol.framing import FrameReader, frame
from protocol.ids import NO_HASH, ChannelId, NodeId
from protocol.ledger import merkle
from protocol.ledger.certificates import open_certificate
from protocol.ledger.checkpoints import leaves, record_id
from protocol.ledger.proofs import prove_order, prove_state
from protocol.ledger.pruning import prune
from protocol.messages import (
    AccountState,
    Certificate,
    Checkpoint,
    Close,
    Commit,
    Decision,
    DoubleVote,
    Equivocation,
    FetchStanding,
    Join,
    Joined,
    LedgerProof,
    Message,
    Promise,
    Propose,
    Voucher,
)
from protocol.params import CHECKPOINT_LAG, CLOCK_SKEW, EPOCH_LENGTH, MAX_ROUND_JUMP, REFUND_DELAY
from tests.protocol.ledger_world import ALICE, BOB, CAROL, HOUR, ISSUER, NOW, Order, signer
from tests.protocol.vector_world import (
    FOUR,
    OTHER,
    QUORUM,
    Ledger,
    equivocation,
    four_witnesses,
    one_witness,
    unreduced,
    vote_statement,
)

Json = Any

LATER = NOW + HOUR + REFUND_DELAY  # when a hold of NOW may be refunded
DEVICE, NEW_KEY, VAULT = signer("device"), signer("alice's new key"), signer("vault")


# --- Merkle -------------------------------------------------------------------------------------------

LEAVES = [bytes([index]) * index for index in range(9)]


def _merkle() -> dict[str, Json]:
    named = {f"{count} leaves": LEAVES[:count] for count in range(10)}
    named["the same leaves in another order"] = LEAVES[:3][::-1]
    named["one leaf that looks like a node"] = [b"\1" + merkle.leaf_hash(LEAVES[0]) + merkle.leaf_hash(LEAVES[1])]
    return {name: {"leaves": [leaf.hex() for leaf in leaves]} for name, leaves in named.items()}


def _merkle_path() -> dict[str, Json]:
    def case(count: int, index: int, **changes: Any) -> dict[str, Json]:
        path = merkle.path(LEAVES[:count], index)
        neighbours = [neighbour.hex() for neighbour in path.neighbours]
        return {"leaf": LEAVES[index].hex(), "index": index, "count": count, "neighbours": neighbours, **changes}

    good = case(5, 2)
    return {
        **{f"leaf {index} of {count}": case(count, index) for count in (1, 2, 5, 7, 8) for index in range(count)},
        "another place": {**good, "index": 3},
        "a neighbour too few": {**good, "neighbours": good["neighbours"][:-1]},
        "a neighbour too many": {**good, "neighbours": [*good["neighbours"], "00" * 32]},
        "a place beyond the end": {**good, "index": 5},
        "of nothing": {"leaf": "", "index": 0, "count": 0, "neighbours": []},
        "another leaf": {**good, "leaf": ""},
    }


# --- checkpoints --------------------------------------------------------------------------------------


def _checkpoint() -> dict[str, Json]:
    world, channel = four_witnesses()
    base = world.copy()
    hold = world.hold(ALICE, CAROL.node, 600_000)
    close = world.close(BOB, channel, world.voucher(ALICE, channel, 100_000, 50_000))
    full = world.copy()
    full.give(hold, close)

    def case(
        union: Sequence[bytes], *, log: Sequence[bytes] = base.log, time_ms: int = NOW, ledger: Ledger = base
    ) -> dict[str, Json]:
        return {
            "genesis": ledger.federation.body.hex(),
            "log": [record.hex() for record in log],
            "union": [record.hex() for record in union],
            "time_ms": time_ms,
        }

    forged = replace(_open(world.certificate(hold)), signature=bytes(64))
    foreign = tuple(world.signature(index, vote_statement(hold), OTHER) for index in QUORUM)
    few = replace(_open(world.certificate(hold)), votes=_open(world.certificate(hold)).votes[:2])
    ended = full.copy()
    ended.end_epoch()
    after = ended.copy()
    after.do(after.grant(CAROL.node, 7))
    family, late = _family()
    one, _ = one_witness()
    return {
        "nothing": case([], log=[]),
        "what is here": case(base.log),
        "more than is here": case(full.log),
        "more than is here, in another order": case(full.log[::-1]),
        "less than is here": case(base.log[:1]),
        "from nothing": case(full.log, log=[]),
        "a hold that has not expired long enough": case(base.log, time_ms=LATER - 1),
        "an expired hold": case(base.log, time_ms=LATER),
        "an expired hold that is closed": case(full.log, time_ms=LATER),
        "one witness": case(one.log, log=one.log, ledger=one),
        "the next epoch": case(after.log[len(ended.log) :], log=ended.log),
        "the next epoch, nothing new": case([], log=ended.log),
        "the next epoch: an open hold of the epoch before": case([], log=ended.log, time_ms=LATER),
        "sub-accounts, keys": case(family.log, log=[]),
        "a move before its attachment, an order before its key": case(late, log=[]),
        "not closed: a gap in a chain": case([base.log[0], full.log[2]]),
        "not closed: a settlement without its hold": case([base.log[0], full.log[3]]),
        "not solvent": case([base.log[1]]),
        "two orders with one number": case([*full.log, base.certificate(base.hold(ALICE, CAROL.node, 1))]),
        "two closes of one channel": case(
            [*full.log, base.certificate(base.close(BOB, channel, base.voucher(ALICE, channel, 1, 1)))]
        ),
        "votes for another federation": case(
            [*base.log, encode(replace(_open(world.certificate(hold)), votes=foreign))]
        ),
        "an order of another epoch": case(base.log, log=ended.log),
        "an order of a later epoch": case([*base.log, ended.certificate(ended.grant(BOB.node, 1))]),
        "a forged signature of an owner": case([*base.log, encode(forged)]),
        "two votes of four": case([*base.log, encode(few)]),
    }


def _open(certificate: bytes) -> Certificate:
    return open_certificate(certificate)


def _family() -> tuple[Ledger, list[bytes]]:
    """Attachments, moves, a recovery key, a rotation: the ledger, and its log backwards."""
    world = Ledger.of_four()
    world.do(world.grant(ALICE.node, 1_000_000))
    world.do(world.attach(DEVICE, ALICE))
    world.do(world.move(ALICE, DEVICE.node, 250_000))
    world.do(world.recovery(ALICE, VAULT.node))
    world.do(world.recovery(ALICE, CAROL.node, by=VAULT))
    world.do(world.rotate(ALICE, NEW_KEY, by=CAROL))
    world.do(world.hold_by(NEW_KEY, ALICE.node, BOB.node, 50_000))
    world.do(world.move(DEVICE, ALICE.node, 1))
    return world, world.log[::-1]


def _decision() -> dict[str, Json]:
    world, _ = four_witnesses()
    checkpoint = world.checkpoint()
    good = world.decision(checkpoint)

    def case(decision: bytes, ledger: Ledger = world) -> dict[str, Json]:
        return {"genesis": ledger.federation.body.hex(), "decision": decision.hex()}

    def with_commits(*witnesses: int, **other: Any) -> dict[str, Json]:
        return case(world.decision(checkpoint, 0, world.ballots(2, checkpoint, 0, witnesses, **other)))

    one, _ = one_witness()
    one_checkpoint = one.checkpoint()
    commits = world.ballots(2, checkpoint)
    return {
        "three commits": case(good),
        "four commits": with_commits(0, 1, 2, 3),
        "other three, round 6": case(world.decision(checkpoint, 6, world.ballots(2, checkpoint, 6, (1, 2, 3)))),
        "one witness": case(one.decision(one_checkpoint), one),
        "two commits": with_commits(0, 1),
        "commits in another order": with_commits(0, 2, 1),
        "a commit twice": with_commits(0, 1, 1),
        "a witness that does not exist": case(
            encode(Decision(encode(checkpoint), 0, (*commits[:2], replace(commits[2], witness=4))))
        ),
        "commits of another round": case(world.decision(checkpoint, 1, commits)),
        "prepares in place of commits": case(world.decision(checkpoint, 0, world.ballots(1, checkpoint))),
        "commits to another checkpoint": case(
            world.decision(checkpoint, 0, world.ballots(2, replace(checkpoint, time_ms=NOW + 1)))
        ),
        "commits for another federation": with_commits(*QUORUM, federation=OTHER),
        "a commit whose S is not reduced": case(
            encode(Decision(encode(checkpoint), 0, (*commits[:2], unreduced(commits[2]))))
        ),
        "a commit by another key": case(
            encode(Decision(encode(checkpoint), 0, (*commits[:2], replace(commits[1], witness=2))))
        ),
        "a checkpoint for the first epoch": case(encode(Decision(encode(replace(checkpoint, epoch=0)), 0, commits))),
        "a checkpoint with a byte too many": case(encode(Decision(encode(checkpoint) + b"\0", 0, commits))),
        "a certificate in place of a checkpoint": case(encode(Decision(world.log[0], 0, commits))),
        "a byte too many": case(good + b"\0"),
        "a certificate": case(world.log[0]),
    }


def _adopt() -> dict[str, Json]:
    world, channel = four_witnesses()
    ahead = world.copy()
    close = ahead.close(BOB, channel, ahead.voucher(ALICE, channel, 100, 50))
    ahead.give(ahead.hold(ALICE, CAROL.node, 1), close)

    def case(
        here: Ledger, decision: bytes, union: Sequence[bytes], log: Sequence[bytes] | None = None
    ) -> dict[str, Json]:
        return {
            "genesis": here.federation.body.hex(),
            "log": [record.hex() for record in (here.log if log is None else log)],
            "decision": decision.hex(),
            "union": [record.hex() for record in union],
        }

    behind, full = world.decision(world.checkpoint()), ahead.decision(ahead.checkpoint())
    expired = world.decision(world.checkpoint(LATER))
    ended = world.copy()
    ended.adopt(behind)
    second = ended.decision(ended.checkpoint(NOW + 1))
    twice = ended.copy()
    twice.adopt(second)
    third = twice.decision(twice.checkpoint(NOW + 2))
    lying = ahead.checkpoint()
    granted, opened_and_closed, chained = world.copy(), world.copy(), ahead.copy()
    granted.do(granted.grant(CAROL.node, 1))
    hold = opened_and_closed.give(opened_and_closed.hold(ALICE, CAROL.node, 1_000))
    opened_and_closed.do(opened_and_closed.close(CAROL, hold, opened_and_closed.voucher(ALICE, hold, 100, 50)))
    chained.do(chained.hold(ALICE, CAROL.node, 2))
    chained.do(chained.hold(ALICE, CAROL.node, 3))
    family, _ = _family()
    first = Ledger.of_four()
    first.apply(family.log[0])
    family_begun = first.decision(first.checkpoint())
    return {
        "what is here": case(world, behind, world.log),
        "less than is here: a hold is void, a close counts again": case(ahead, behind, world.log),
        "more than is here": case(world, full, ahead.log),
        "other than is here": case(granted, full, ahead.log),
        "a void hold and its close": case(opened_and_closed, behind, world.log),
        "void orders on keys and owners": case(family, family_begun, family.log[:1]),
        "an order on top of a void one": case(chained, full, ahead.log),
        "an expired hold": case(world, expired, world.log),
        "less than is here, and the hold is refunded": case(ahead, expired, world.log),
        "the second": case(ended, second, []),
        "the same again": case(ended, behind, world.log),
        "one too far": case(world, second, []),
        "two too far": case(world, third, []),
        "another predecessor": case(ended, ended.decision(replace(ended.checkpoint(NOW + 1), previous=bytes(32))), []),
        "another union": case(world, full, world.log),
        "an order of the union is not there": case(world, full, ahead.log[:-1]),
        "another state": case(ahead, ahead.decision(replace(lying, state=bytes(32))), ahead.log),
        "another count": case(ahead, ahead.decision(replace(lying, count=3)), ahead.log),
        "a time at which more is refunded": case(
            world, world.decision(replace(world.checkpoint(), time_ms=LATER)), world.log
        ),
        "two commits of four": case(
            world, world.decision(world.checkpoint(), 0, world.ballots(2, world.checkpoint(), 0, (0, 1))), world.log
        ),
    }


# --- a witness at the end of an epoch -----------------------------------------------------------------

DUE = NOW + EPOCH_LENGTH


class Steps:
    """One witness of four, and what coordinators send to it."""

    def __init__(self, world: Ledger, index: int = 1, abstaining: int = 0) -> None:
        self.world = world
        self._index = index
        self._abstaining = abstaining

    def case(self, *steps: dict[str, Json]) -> dict[str, Json]:
        """After these steps."""
        names = ("w0", "w1", "w2", "w3") if len(self.world.signers) == 4 else ("witness",)
        return {
            "genesis": self.world.federation.body.hex(),
            "log": self.world.hex_log,
            "witness": self._index,
            "witness_seed": hashlib.sha256(names[self._index].encode()).hexdigest(),
            "abstaining": self._abstaining,
            "steps": list(steps),
        }

    def join(self, number: int = 0, *, by: int | None = None, willing: int = 1, epoch: int | None = None) -> Json:
        """A Join from the round's coordinator."""
        request = Join(self.world.view.epoch if epoch is None else epoch, number)
        return {**_sent(request, number, by, len(self.world.signers)), "willing": willing}

    def propose(self, request: Propose, union: Sequence[str], *, by: int | None = None, now: int = DUE) -> Json:
        """A Propose; `union` is what the witness collected for it."""
        sent = _sent(request, request.round, by, len(self.world.signers))
        return {**sent, "now_ms": now, "union": list(union)}

    def commit(self, request: Commit, *, by: int | None = None) -> Json:
        """A Commit."""
        return _sent(request, request.round, by, len(self.world.signers))


def _sent(request: Message, number: int, by: int | None, count: int) -> dict[str, Json]:
    return {"coordinator": number % count if by is None else by, "message": _json(request)}


def _json(message: Message) -> dict[str, Json]:
    from vector_json import to_json  # beside tests/spec, on the path while vectors are made

    return to_json(message)


def _witness() -> dict[str, Json]:
    world, _ = four_witnesses()
    return {**_standings(world), **_joins(world), **_proposals(world), **_proposals_again(world), **_commits(world)}


def _standings(world: Ledger) -> dict[str, Json]:
    seat, ended = Steps(world), world.copy()
    ended.end_epoch(DUE)

    def ask(now: int, agreed: int = 0) -> Json:
        return {"coordinator": 0, "message": _json(FetchStanding()), "now_ms": now, "agreed": agreed}

    return {
        "standing: not due": seat.case(ask(DUE - 1)),
        "standing: due": seat.case(ask(DUE)),
        "standing: its operator agreed": seat.case(ask(NOW, 1)),
        "standing: frozen": seat.case(seat.join(), ask(NOW)),
        "standing: the second epoch, not due": Steps(ended).case(ask(DUE + EPOCH_LENGTH - 1)),
        "standing: the second epoch, due": Steps(ended).case(ask(DUE + EPOCH_LENGTH)),
        "standing: abstaining": Steps(world, 1, 1).case(ask(DUE, 1)),
    }


def _joins(world: Ledger) -> dict[str, Json]:
    seat, one = Steps(world), Steps(one_witness()[0], 0)
    empty = Steps(Ledger.of_four())
    ended = world.copy()
    ended.end_epoch()
    return {
        "join": seat.case(seat.join()),
        "join: an empty epoch": empty.case(empty.join()),
        "join: the second epoch": Steps(ended).case(Steps(ended).join()),
        "join: the only witness": one.case(one.join()),
        "join: the same again": seat.case(seat.join(), seat.join()),
        "join: a later round": seat.case(seat.join(), seat.join(6)),
        "join: frozen, so willing": seat.case(seat.join(), seat.join(1, willing=0)),
        "join: not due": seat.case(seat.join(willing=0)),
        "join: an earlier round": seat.case(seat.join(5), seat.join(4)),
        "join: another witness's round": seat.case(seat.join(1, by=0)),
        "join: another epoch": seat.case(seat.join(epoch=1)),
        "join: the epoch before": Steps(ended).case(Steps(ended).join(epoch=0)),
        "join: abstaining": Steps(world, 1, 1).case(seat.join()),
        "join: as far as allowed": seat.case(seat.join(MAX_ROUND_JUMP)),
        "join: too far": seat.case(seat.join(MAX_ROUND_JUMP + 1)),
        "join: too far again": seat.case(seat.join(4), seat.join(4 + MAX_ROUND_JUMP + 1)),
    }


def _proposals(world: Ledger) -> dict[str, Json]:
    seat, good = Steps(world), world.checkpoint(DUE)
    ahead = world.copy()
    ahead.do(ahead.hold(ALICE, CAROL.node, 1))
    more = ahead.checkpoint(DUE, sources=[world.source(0), world.source(1), ahead.source(2)])
    promises = [world.promised(index) for index in QUORUM]
    expired = world.checkpoint(DUE + LATER)

    def case(checkpoint: Checkpoint, *, union: Sequence[str] = world.union, now: int = DUE, **other: Any) -> Json:
        return seat.case(seat.join(), seat.propose(world.propose(checkpoint, **other), union, now=now))

    def changed(**fields: Any) -> Json:
        return case(replace(good, **fields))

    sources = list(good.sources)
    return {
        "propose": case(good),
        "propose: more than is here": case(more, union=ahead.union),
        "propose: the same again": seat.case(
            seat.join(), *(seat.propose(world.propose(good), world.union) for _ in range(2))
        ),
        "propose: another one in this round": seat.case(
            seat.join(),
            seat.propose(world.propose(good), world.union),
            seat.propose(world.propose(expired), world.union, now=DUE + LATER),
        ),
        "propose: not joined": seat.case(seat.propose(world.propose(good), world.union)),
        "propose: an earlier round": seat.case(seat.join(5), seat.propose(world.propose(good), world.union)),
        "propose: a later round than joined": seat.case(
            seat.join(), seat.propose(world.propose(good, 4, [world.promised(one, 4) for one in QUORUM]), world.union)
        ),
        "propose: another witness's round": seat.case(
            seat.join(), seat.propose(world.propose(good), world.union, by=2)
        ),
        "propose: another epoch": changed(epoch=2),
        "propose: another predecessor": changed(previous=bytes(32)),
        "propose: not later than before": case(world.checkpoint(NOW), now=NOW),
        "propose: just later than before": case(world.checkpoint(NOW + 1), now=NOW),
        "propose: as far back as allowed": case(world.checkpoint(DUE - CHECKPOINT_LAG)),
        "propose: too far back": case(world.checkpoint(DUE - CHECKPOINT_LAG - 1)),
        "propose: as far ahead as clocks may be": case(world.checkpoint(DUE + CLOCK_SKEW)),
        "propose: too far ahead": case(world.checkpoint(DUE + CLOCK_SKEW + 1)),
        "propose: another union": case(more),
        "propose: another state": changed(state=bytes(32)),
        "propose: another count": changed(count=1),
        "propose: no refund of an expired hold": case(replace(good, time_ms=DUE), union=world.union)
        if good.time_ms != DUE
        else changed(state=ahead.checkpoint(NOW).state),
        "propose: two sources": changed(sources=tuple(sources[:2])),
        "propose: four sources": changed(sources=(*sources, world.source(3))),
        "propose: sources in another order": changed(sources=(sources[0], sources[2], sources[1])),
        "propose: a source twice": changed(sources=(sources[0], sources[1], sources[1])),
        "propose: a source that is not signed so": changed(sources=(*sources[:2], replace(sources[2], count=7))),
        "propose: a source for another federation": changed(sources=(*sources[:2], world.source(2, federation=OTHER))),
        "propose: a source of no witness": changed(sources=(*sources[:2], replace(sources[2], witness=9))),
        "propose: a source of another epoch": changed(
            sources=(*sources[:2], world.source(2, replace(world.snapshot(), epoch=1)))
        ),
        "propose: two promises": case(good, promises=promises[:2]),
        "propose: promises in another order": case(good, promises=[promises[0], promises[2], promises[1]]),
        "propose: a promise twice": case(good, promises=[*promises[:2], promises[1]]),
        "propose: a promise of another round": case(good, promises=[*promises[:2], world.promised(2, 4)]),
        "propose: a promise for another federation": case(
            good, promises=[*promises[:2], world.promised(2, federation=OTHER)]
        ),
        "propose: a promise of no witness": case(good, promises=[*promises[:2], replace(promises[2], witness=4)]),
        "propose: abstaining": Steps(world, 1, 1).case(seat.propose(world.propose(good), world.union)),
        "propose: no checkpoint": seat.case(
            seat.join(),
            seat.propose(replace(world.propose(good), checkpoint=world.log[0]), world.union),
        ),
        "propose: a checkpoint with a byte too many": seat.case(
            seat.join(),
            seat.propose(replace(world.propose(good), checkpoint=encode(good) + b"\0"), world.union),
        ),
    }


def _proposals_again(world: Ledger) -> dict[str, Json]:
    """Something was prepared in round 0 or 1, and round 4 has to go on with it."""
    seat, first, second = Steps(world), world.checkpoint(DUE), world.checkpoint(DUE + 1)
    later = partial(world.promised, number=4)
    told = [later(0, before=first, prepared=1), later(1), later(2)]
    both = [later(0, before=first, prepared=1), later(1, before=second, prepared=2), later(2)]

    def case(checkpoint: Checkpoint, promises: Sequence[Any], ballots: tuple[Any, ...]) -> Json:
        request = world.propose(checkpoint, 4, promises, ballots)
        return seat.case(seat.join(4), seat.propose(request, []))

    return {
        "again: what was prepared": case(first, told, world.ballots(1, first)),
        "again: another than was prepared": case(second, told, world.ballots(1, first)),
        "again: the one of the highest round": case(second, both, world.ballots(1, second, 1)),
        "again: the one of a lower round": case(first, both, world.ballots(1, first)),
        "again: no ballots": case(first, told, ()),
        "again: two ballots": case(first, told, world.ballots(1, first, 0, (0, 1))),
        "again: ballots in another order": case(first, told, world.ballots(1, first, 0, (1, 0, 2))),
        "again: ballots of another round": case(first, told, world.ballots(1, first, 2)),
        "again: commits in place of prepares": case(first, told, world.ballots(2, first)),
    }


def _commits(world: Ledger) -> dict[str, Json]:
    seat, good = Steps(world), world.checkpoint(DUE)
    other = world.checkpoint(DUE + 1)
    first = world.commit(good)
    later = [world.promised(0, 5, good, 1), world.promised(2, 5), world.promised(3, 5)]

    def case(request: Commit) -> Json:
        return seat.case(seat.join(), seat.commit(request))

    return {
        "commit": seat.case(seat.join(), seat.propose(world.propose(good), world.union), seat.commit(first)),
        "commit: not prepared by itself": case(first),
        "commit: the same again": seat.case(seat.join(), seat.commit(first), seat.commit(first)),
        "commit: then a join tells": seat.case(seat.join(), seat.commit(first), seat.join(5)),
        "commit: then again in a later round": seat.case(
            seat.join(),
            seat.commit(first),
            seat.propose(world.propose(good, 5, later, world.ballots(1, good)), []),
            seat.commit(world.commit(good, 5)),
        ),
        "commit: not joined": seat.case(seat.commit(first)),
        "commit: joined a later round": seat.case(seat.join(5), seat.commit(first)),
        "commit: another witness's round": seat.case(seat.join(), seat.commit(first, by=3)),
        "commit: two ballots": case(world.commit(good, 0, (0, 1))),
        "commit: ballots in another order": case(world.commit(good, 0, (2, 1, 0))),
        "commit: a ballot twice": case(world.commit(good, 0, (0, 0, 1))),
        "commit: ballots of another round": case(replace(world.commit(good, 4), round=0)),
        "commit: ballots for another checkpoint": case(replace(first, checkpoint=encode(other))),
        "commit: commits in place of prepares": case(replace(first, ballots=world.ballots(2, good))),
        "commit: ballots for another federation": case(
            replace(first, ballots=world.ballots(1, good, federation=OTHER))
        ),
        "commit: the epoch before": case(world.commit(replace(good, epoch=0 + 2))),
        "commit: abstaining": Steps(world, 1, 1).case(seat.commit(first)),
        "commit: too far": case(world.commit(good, MAX_ROUND_JUMP + 4)),
    }


def _joined() -> dict[str, Json]:
    world, _ = four_witnesses()
    checkpoint = world.checkpoint(DUE)
    identity = body_hash(encode(checkpoint))
    request = Join(0, 4)

    def answer(before: Checkpoint | None = None, prepared: int = 0, **changes: Any) -> Joined:
        held, promise = world.snapshot(), Promise(0, 4, prepared, identity if before else NO_HASH)
        signed = [world.signature(2, encode(statement)).signature for statement in (held, promise)]
        ballots = world.ballots(1, before, prepared - 1) if before else ()
        body = encode(before) if before else b""
        return replace(Joined(2, held.count, held.root, signed[0], signed[1], prepared, body, ballots), **changes)

    def case(joined: Joined, *, join: Join = request, ledger: Ledger = world) -> dict[str, Json]:
        return {
            "genesis": ledger.federation.body.hex(),
            "log": ledger.hex_log,
            "join": _json(join),
            "joined": _json(joined),
        }

    good, again = answer(), answer(checkpoint, 1)
    foreign = world.signature(2, encode(world.snapshot()), OTHER).signature
    return {
        "nothing prepared": case(good),
        "prepared in round 0": case(again),
        "of another witness": case(replace(good, witness=1)),
        "of no witness": case(replace(good, witness=4)),
        "another count": case(replace(good, count=1)),
        "another root": case(replace(good, root=bytes(32))),
        "a promise for another round": case(good, join=Join(0, 8)),
        "a snapshot for another federation": case(replace(good, snapshot_signature=foreign)),
        "signatures the wrong way round": case(
            replace(good, snapshot_signature=good.promise_signature, promise_signature=good.snapshot_signature)
        ),
        "what was prepared is hidden": case(replace(again, prepared=0, checkpoint=b"", ballots=())),
        "a checkpoint and nothing prepared": case(replace(good, checkpoint=again.checkpoint)),
        "two ballots": case(replace(again, ballots=again.ballots[:2])),
        "ballots of another round": case(replace(again, ballots=world.ballots(1, checkpoint, 4))),
        "commits in place of prepares": case(replace(again, ballots=world.ballots(2, checkpoint))),
    }


def _begin() -> dict[str, Json]:
    world, channel = four_witnesses()
    world.do(world.hold(ALICE, CAROL.node, 1))
    checkpoint = world.checkpoint(NOW)
    decision, found = world.decision(checkpoint), leaves(world.state)
    after = world.copy()
    after.adopt(decision)
    after.give(after.close(BOB, channel, after.voucher(ALICE, channel, 100, 50)), after.hold(ALICE, BOB.node, 2))
    twice = after.copy()
    twice.end_epoch(NOW + 1)
    family, _ = _family()
    family_decision = family.decision(family.checkpoint(NOW))
    here = Ledger.of_four()
    here.do(here.grant(CAROL.node, 5))

    def case(
        given: Sequence[bytes], data: bytes = decision, later: Sequence[bytes] = (), ledger: Ledger | None = None
    ) -> dict[str, Json]:
        return {
            "genesis": FOUR.body.hex(),
            "log": ledger.hex_log if ledger else [],
            "decision": data.hex(),
            "leaves": [leaf.hex() for leaf in given],
            "position": len(world.log),
            "later": [record.hex() for record in later],
        }

    return {
        "a state": case(found),
        "a state, and what came later": case(found, later=after.log[len(world.log) + 1 :]),
        "a state, and the next epoch": case(found, later=twice.log[len(world.log) + 1 :]),
        "in place of what was here": case(found, ledger=here),
        "sub-accounts, keys": case(leaves(family.state), family_decision),
        "a leaf too few": case(found[:-1]),
        "a leaf twice": case([*found, found[-1]]),
        "leaves in another order": case(found[::-1]),
        "another balance": case([_richer(found[0]), *found[1:]]),
        "no leaves": case([]),
        "two commits of four": case(found, world.decision(checkpoint, 0, world.ballots(2, checkpoint, 0, (0, 1)))),
        "a state of something else": case(
            [encode(Join(0, 0))], world.decision(replace(checkpoint, state=merkle.root([encode(Join(0, 0))])))
        ),
    }


def _richer(leaf: bytes) -> bytes:
    account = decode(leaf)
    assert isinstance(account, AccountState)
    return encode(replace(account, balance=account.balance + 1))


# --- files --------------------------------------------------------------------------------------------


def _proofs() -> dict[str, Json]:
    world, channel = four_witnesses()
    world.do(world.grant(BOB.node, 5))
    close = world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50))
    ended = world.copy()
    ended.do(close)
    ended.end_epoch()
    half = world.copy()
    half.end_epoch()
    now = half.copy()
    late_close = now.give(close)
    late_hold = now.give(now.hold(ALICE, CAROL.node, 1))
    family, _ = _family()
    by_new_key = family.hold_by(NEW_KEY, ALICE.node, BOB.node, 7)
    family.do(by_new_key)
    family.end_epoch()
    hold = _order(world.log[1])
    account = prove_state(FOUR, half.state, ALICE.node)
    order, settled = prove_order(FOUR, ended.state, hold.hash), prove_order(FOUR, ended.state, close.hash)
    fresh = prove_order(FOUR, now.state, late_hold)
    other_hold = world.hold(ALICE, BOB.node, 9)

    def case(proof: LedgerProof | bytes, federation: bytes = FOUR.id) -> dict[str, Json]:
        data = proof if isinstance(proof, bytes) else encode(proof)
        return {"federation": federation.hex(), "proof": data.hex()}

    forged = replace(_open(world.log[1]), signature=bytes(64))
    few = replace(_open(fresh.leaf), votes=_open(fresh.leaf).votes[:2])
    small = replace(FOUR.genesis, issuers=(NodeId(b"\1" + bytes(31)),))
    return {
        "an account": case(account),
        "an account, of whatever federation": case(account, b""),
        "an open channel": case(prove_state(FOUR, half.state, channel)),
        "an order": case(order),
        "a close": case(settled),
        "an order of the epoch in force": case(fresh),
        "a close of the epoch in force": case(prove_order(FOUR, now.state, late_close)),
        "an order by a key that was rotated to": case(prove_order(FOUR, family.state, by_new_key.hash)),
        "an order whose owner's signature is forged": case(replace(order, leaf=encode(forged))),
        "of another federation": case(account, OTHER.id),
        "another genesis": case(replace(account, genesis=OTHER.body), b""),
        "a genesis with a small-order key": case(replace(account, genesis=encode(small)), b""),
        "a genesis with a byte too many": case(replace(account, genesis=FOUR.body + b"\0"), b""),
        "another account's leaf": case(replace(account, leaf=prove_state(FOUR, half.state, BOB.node).leaf)),
        "a richer leaf": case(replace(account, leaf=_richer(account.leaf))),
        "another place": case(replace(account, index=account.index + 1)),
        "a place beyond the end": case(replace(account, index=account.count)),
        "a neighbour too few": case(replace(account, neighbours=account.neighbours[:-1])),
        "a neighbour too many": case(replace(account, neighbours=(*account.neighbours, bytes(32)))),
        "an account without a checkpoint": case(replace(account, decision=b"")),
        "an account and a hold": case(replace(account, hold=hold.body)),
        "a checkpoint with two commits": case(
            replace(
                account, decision=world.decision(world.checkpoint(), 0, world.ballots(2, world.checkpoint(), 0, (0, 1)))
            )
        ),
        "another checkpoint": case(replace(account, decision=ended.log[-1])),
        "an order that the checkpoint does not hold": case(replace(order, leaf=fresh.leaf)),
        "an order of another epoch": case(_in_a_false_checkpoint(now, fresh)),
        "an order without a checkpoint, with a path": case(replace(order, decision=b"")),
        "an order with a hold that it does not end": case(replace(order, hold=hold.body)),
        "a close without its hold": case(replace(settled, hold=b"")),
        "a close with another hold": case(replace(settled, hold=other_hold.body)),
        "a close with something else for a hold": case(replace(settled, hold=close.body)),
        "two votes": case(replace(fresh, leaf=encode(few))),
        "votes for another order": case(
            replace(fresh, leaf=encode(replace(_open(fresh.leaf), votes=_open(world.log[1]).votes)))
        ),
        "something else for a leaf": case(replace(account, leaf=encode(Join(0, 0)))),
        "a byte too many": case(encode(account) + b"\0"),
        "another message": case(encode(Join(0, 0))),
    }


def _in_a_false_checkpoint(now: Ledger, fresh: LedgerProof) -> LedgerProof:
    """What more than f bad witnesses could sign: a checkpoint of an earlier epoch that names an order of a later."""
    identity = record_id(fresh.leaf)
    checkpoint = Checkpoint(1, FOUR.id, DUE, 1, merkle.root([identity]), bytes(32), (now.source(0),))
    return replace(fresh, decision=now.decision(checkpoint), count=1)


def _exports() -> dict[str, Json]:
    world, channel = four_witnesses()
    close = world.close(BOB, channel, world.voucher(ALICE, channel, 100, 50))
    short = world.decision(world.checkpoint())
    world.give(world.hold(ALICE, CAROL.node, 1), close)
    world.adopt(short, world.log[:2])  # the hold is void, the close stands behind the decision
    world.do(world.hold(ALICE, CAROL.node, 2))
    later = world.copy()
    later.end_epoch()
    later.do(later.grant(CAROL.node, 3))
    pruned = later.copy()
    for puts in prune(pruned.state, 2):
        pruned.state.write(puts)
    family, backwards = _family()
    learned = Ledger.of_four()
    learned.adopt(family.decision(family.checkpoint()), backwards)
    one, _ = one_witness()
    whole = _exported(world)

    def case(file: bytes) -> dict[str, Json]:
        return {"file": file.hex()}

    frames = FrameReader()
    frames.receive_data(whole[len(FIRST_LINE) :])
    payloads = []
    while (payload := frames.next_frame()) is not None:
        payloads.append(payload)
    return {
        "nothing but a genesis": case(_exported(Ledger.of_four())),
        "one witness": case(_exported(one)),
        "a void order, and a close applied again": case(whole),
        "two epochs": case(_exported(later)),
        "pruned": case(_exported(pruned)),
        "orders learned with a decision": case(_exported(learned)),
        "another first line": case(b"MTOR ledger export 2\n" + whole[len(FIRST_LINE) :]),
        "cut off in a frame": case(whole[:-1]),
        "cut off between frames": case(whole[: -len(frame(payloads[-1]))]),
        "a byte too many": case(whole + b"\0"),
        "a byte changed": case(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]),
        "a frame left out": case(FIRST_LINE + b"".join(map(frame, [*payloads[:2], *payloads[3:]]))),
        "nothing": case(b""),
        "a record in place of genesis": case(_summed(payloads[1:-1])),
        "a record with two votes": case(_summed([*payloads[:-2], _few(payloads[-2])])),
        "a record twice": case(_summed([*payloads[:-1], payloads[-2]])),
    }


def _exported(world: Ledger) -> bytes:
    return b"".join(exported(world.federation, world.state, lambda done, of: None))  # type: ignore[arg-type]


def _summed(payloads: Sequence[bytes]) -> bytes:
    """A file of these messages that is whole."""
    data = FIRST_LINE + b"".join(map(frame, payloads))
    count = sum(isinstance(decode(payload), Certificate | Decision) for payload in payloads)
    return data + frame(b"\0" + count.to_bytes(8, "big") + hashlib.sha256(data).digest())


def _few(certificate: bytes) -> bytes:
    known = _open(certificate)
    return encode(replace(known, votes=known.votes[:2]))


# --- evidence and relations ---------------------------------------------------------------------------


def _evidence() -> dict[str, Json]:
    world, channel = four_witnesses()
    one, only_channel = one_witness()
    first, second = world.hold(ALICE, CAROL.node, 1), world.hold(ALICE, CAROL.node, 2)
    closes = [world.close(BOB, channel, world.voucher(ALICE, channel, count, 0)) for count in (100, 99)]
    proof = equivocation(first, second)
    ended, settled, rotated = world.copy(), world.copy(), world.copy()
    ended.end_epoch()
    settled.do(closes[0])
    rotated.do(rotated.recovery(ALICE, VAULT.node))
    next_epoch = world.hold(ALICE, CAROL.node, 2, epoch=1)
    gap = [world.hold(ALICE, CAROL.node, amount, sequence=9) for amount in (1, 2)]
    before = [world.hold(ALICE, CAROL.node, amount, sequence=0, epoch=1) for amount in (1, 2)]
    strange = [world.hold(NEW_KEY, CAROL.node, amount) for amount in (1, 2)]
    unknown = [_renamed(world, close) for close in closes]

    def case(record: bytes, *, ledger: Ledger = world, proofs: Sequence[bytes] = ()) -> dict[str, Json]:
        return {
            "genesis": ledger.federation.body.hex(),
            "log": ledger.hex_log,
            "proofs": [known.hex() for known in proofs],
            "record": record.hex(),
        }

    def votes(one_order: Order, other: Order, witness: int = 3, by: int = 3, **changes: Any) -> bytes:
        signed = [world.signature(by, vote_statement(order)).signature for order in (one_order, other)]
        record = DoubleVote(witness, one_order.body, signed[0], other.body, signed[1])
        return encode(replace(record, **changes))

    return {
        "two holds": case(proof),
        "two holds, the other way round": case(equivocation(second, first)),
        "two holds of an account whose order is applied": case(
            equivocation(_order(world.log[1]), world.hold(ALICE, CAROL.node, 5, sequence=0)),
        ),
        "two holds further on": case(equivocation(*gap)),
        "two holds with a number from before the epoch": case(equivocation(*before), ledger=ended),
        "two holds of an account that has nothing": case(equivocation(*strange)),
        "two closes": case(equivocation(*closes)),
        "two closes of a settled channel": case(equivocation(*closes), ledger=settled),
        "two closes of an unknown channel": case(equivocation(*unknown)),
        "a close and a refund": case(
            equivocation(
                one.close(BOB, only_channel, one.voucher(ALICE, only_channel, 1, 1)),
                one.refund(only_channel, NOW + HOUR),
            ),
            ledger=one,
        ),
        "the account's key and its recovery key": case(
            equivocation(rotated.hold(ALICE, CAROL.node, 1), rotated.rotate(ALICE, NEW_KEY, by=VAULT)),
            ledger=rotated,
        ),
        "known already": case(proof, proofs=(proof,)),
        "another proof against the same account": case(equivocation(second, first), proofs=(proof,)),
        "of the epoch before": case(proof, ledger=ended),
        "of two epochs": case(equivocation(first, next_epoch)),
        "the same order twice": case(equivocation(first, first)),
        "two numbers": case(equivocation(first, world.hold(ALICE, CAROL.node, 1, sequence=2))),
        "two accounts": case(equivocation(first, world.grant(BOB.node, 1))),
        "the first is not signed": case(encode(Equivocation(first.body, bytes(64), second.body, second.signature))),
        "the second is signed by another": case(
            encode(Equivocation(first.body, first.signature, second.body, BOB.sign(FOUR.id, second.body)))
        ),
        "signed for another federation": case(
            encode(Equivocation(first.body, first.signature, second.body, ALICE.sign(OTHER.id, second.body)))
        ),
        "an order of nothing": case(equivocation(first, world.hold(ALICE, CAROL.node, 0))),
        "vouchers prove nothing": case(
            equivocation(world.voucher(ALICE, channel, 1, 0), world.voucher(ALICE, channel, 2, 0))
        ),
        "two votes": case(votes(first, second)),
        "two votes on closes": case(votes(*closes)),
        "two votes, known already": case(votes(first, second), proofs=(votes(second, first),)),
        "two votes for one order": case(votes(first, first)),
        "two votes in two epochs": case(votes(first, next_epoch)),
        "two votes: one forged": case(votes(first, second, second_vote=bytes(64))),
        "two votes of another witness": case(votes(first, second, witness=2)),
        "two votes of no witness": case(votes(first, second, witness=4)),
        "longer than a proof may be": case(encode(Equivocation(bytes(1_000), bytes(64), bytes(1_000), bytes(64)))),
        "bytes that are no orders": case(encode(Equivocation(b"\x90", bytes(64), b"\x91", bytes(64)))),
        "another message": case(first.body),
        "a byte too many": case(proof + b"\0"),
    }


def _order(certificate: bytes) -> Order:
    known = _open(certificate)
    return Order(known.body, known.signature)


def _renamed(world: Ledger, close: Order) -> Order:
    known = decode_as(Close, close.body)
    voucher = replace(decode_as(Voucher, known.voucher), channel=ChannelId(bytes(32)))
    return world.signed(BOB, replace(known, channel=ChannelId(bytes(32)), voucher=encode(voucher)))


def _use() -> dict[str, Json]:
    family, _ = _family()
    people = {"Alice": ALICE, "her new key": NEW_KEY, "her device": DEVICE, "her vault": CAROL, "Bob": BOB}
    peers = [one.node.hex() for one in people.values()]

    def case(account: NodeId) -> dict[str, Json]:
        return {
            "genesis": family.federation.body.hex(),
            "log": family.hex_log,
            "account": account.hex(),
            "peers": peers,
        }

    return {name: case(one.node) for name, one in {**people, "the issuer": ISSUER}.items()}


FILES: dict[str, tuple[str, Callable[[], dict[str, Json]]]] = {
    "merkle": ("The root of a list of leaves.", _merkle),
    "merkle_path": ("The root that a leaf and its neighbours lead to.", _merkle_path),
    "ledger_checkpoint": ("A union of orders, and what its checkpoint says.", _checkpoint),
    "ledger_decision": ("A decision, checked by genesis alone.", _decision),
    "ledger_adopt": ("Going over to the next epoch.", _adopt),
    "ledger_witness": ("What a witness answers to a coordinator.", _witness),
    "ledger_evidence": ("Proofs of misbehaviour: against whom, and whether they count.", _evidence),
    "ledger_joined": ("What a coordinator accepts as an answer to Join.", _joined),
    "ledger_begin": ("A ledger that begins with the state of a checkpoint.", _begin),
    "ledger_export": ("Export files: the ledger that they make of nothing.", _exports),
    "ledger_proof": ("Proof files: what they show.", _proofs),
    "ledger_use": ("Who may ask at whose cost, and which accounts are related.", _use),
}
