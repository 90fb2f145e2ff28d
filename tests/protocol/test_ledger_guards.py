"""Small rules of the ledger's core that nothing else in these tests would miss."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.codec import encode
from protocol.errors import BadSignature, ErrorCode, Refused
from protocol.ledger import assumed, epochs, pruning
from protocol.ledger.certificates import apply
from protocol.ledger.checkpoints import (
    Union,
    adopt,
    begin_from,
    epoch_orders,
    epoch_range,
    is_decision,
    leaves,
    orders_between,
    outcome,
    previous_checkpoint,
    record_id,
)
from protocol.ledger.orders import MissingPredecessor
from protocol.ledger.pruning import prune
from protocol.ledger.state import (
    LOG_LENGTH,
    Account,
    Base,
    Draft,
    Verify,
    account_key,
    base_key,
    certificate_key,
    log_key,
    order_key,
    u64,
)
from protocol.messages import Certificate
from protocol.params import MAX_ROTATIONS
from tests.protocol.ledger_world import ALICE, BOB, CAROL, HOUR, ISSUER, Mapping, Order, signer
from tests.protocol.vector_world import FOUR, Ledger, four_witnesses

DAVE = signer("dave")


def refusal(caught: pytest.ExceptionInfo[Refused]) -> tuple[type[Refused], ErrorCode]:
    return type(caught.value), caught.value.code


# --- what stands in a log ---


def test_a_record_is_an_order_or_a_decision() -> None:
    ledger, channel = four_witnesses()
    ledger.end_epoch()
    assert [is_decision(record) for record in ledger.log] == [False, False, True]
    assert [record_id(record) for record in ledger.log] == [ledger.view.id_at(place) for place in range(3)]
    assert record_id(ledger.log[1]) == channel
    assert record_id(ledger.log[2]) == previous_checkpoint(FOUR, ledger.view)


@pytest.mark.parametrize("record", [b"", b"\x93", b"\x93\x0f", b"\x93\x06", b"\x93\x0f\xc0\xc0"])
def test_what_is_neither_is_malformed(record: bytes) -> None:
    with pytest.raises(Refused) as caught:
        record_id(record)
    assert refusal(caught) == (Refused, ErrorCode.MALFORMED)


def test_a_place_without_a_record_is_none_of_the_orders() -> None:
    """A void order's place, and one that nothing names."""
    ledger, _ = four_witnesses()
    whole = ledger.checkpoint()
    late = ledger.give(ledger.grant(CAROL.node, 5))
    ledger.adopt(ledger.decision(whole), ledger.log[:2])
    assert ledger.view.id_at(2) == late and ledger.view.logged(2) is None
    assert orders_between(ledger.state, 0, 9) == Union(dict(zip(ids(ledger, 2), ledger.log[:2], strict=True)))


def ids(ledger: Ledger, count: int) -> list[bytes]:
    return [record_id(record) for record in ledger.log[:count]]


# --- votes behind a key that is not known here ---


def test_an_order_by_an_unknown_key_waits_only_if_a_quorum_voted_for_it() -> None:
    """Anybody can sign with a strange key; only a quorum's word makes it worth asking for the rotation."""
    ledger, _ = four_witnesses()
    elsewhere = ledger.copy()
    ledger.give(ledger.rotate(ALICE, CAROL))
    order = ledger.hold(CAROL, BOB.node, 1, payer=ALICE.node, sequence=2, previous=ledger.view.account(ALICE.node).head)
    with pytest.raises(MissingPredecessor):
        apply(FOUR, elsewhere.view, ledger.certificate(order))
    for witnesses, code in (((0, 1), ErrorCode.BAD_QUORUM), ((0, 0, 1), ErrorCode.BAD_QUORUM)):
        with pytest.raises(Refused) as caught:
            apply(FOUR, elsewhere.view, ledger.certificate(order, *witnesses))
        assert refusal(caught) == (Refused, code)
    unsigned = encode(Certificate(order.body, order.signature, ledger.ballots(2, ledger.checkpoint())))
    with pytest.raises(Refused) as caught:
        apply(FOUR, elsewhere.view, unsigned)
    assert refusal(caught) == (Refused, ErrorCode.BAD_SIGNATURE)


# --- epochs of a certificate ---


def test_a_certificate_of_an_ended_epoch_is_void_and_one_of_a_later_epoch_waits() -> None:
    ledger, _ = four_witnesses()
    early = ledger.certificate(ledger.grant(CAROL.node, 1))
    behind = ledger.copy()
    ledger.end_epoch()
    late = ledger.certificate(ledger.grant(CAROL.node, 1))
    with pytest.raises(Refused) as caught:
        ledger.apply(early)
    assert refusal(caught) == (Refused, ErrorCode.STALE_EPOCH)
    with pytest.raises(Refused) as caught:
        behind.apply(late)
    assert refusal(caught) == (MissingPredecessor, ErrorCode.STALE_EPOCH)


def test_the_copies_of_beginnings_that_are_kept() -> None:
    ledger, _ = four_witnesses()

    def end(keep_from: int) -> set[int]:
        ledger.now += HOUR // 60
        ledger.end_epoch(keep_from=keep_from)
        return {int.from_bytes(key[1:9], "big") for key, _ in ledger.state.iterate(b"s")}

    assert [end(keep_from) for keep_from in (0, 2, 2, 3)] == [{1}, {2}, {2, 3}, {3, 4}]


def test_a_log_longer_than_its_places_has_fewer_orders() -> None:
    ledger, _ = four_witnesses()
    ledger.state.write({LOG_LENGTH: u64(5), log_key(3): bytes(32)})
    assert len(epoch_orders(ledger.state).certificates) == 2


# --- going over to the next epoch ---


def test_numbers_of_void_orders_are_free_and_those_of_missing_orders_taken() -> None:
    ledger, _ = four_witnesses()
    other = ledger.copy()
    void = ledger.give(ledger.grant(CAROL.node, 5))
    missing = other.give(other.hold(ALICE, BOB.node, 3))
    ledger.adopt(other.decision(other.checkpoint()), other.log)
    assert ledger.view.order_at(ISSUER.node, 1) is None and ledger.view.order_at(ALICE.node, 1) == missing
    assert ledger.view.position(void) is None and ledger.view.position(missing) == 3
    again = ledger.give(ledger.grant(CAROL.node, 5))
    assert ledger.view.order_at(ISSUER.node, 1) == again != void
    assert ledger.audit(signatures=True).verified


@pytest.mark.parametrize("epoch", [1, 3])
def test_only_the_next_checkpoint_is_adopted(epoch: int) -> None:
    """Whatever a quorum signed."""
    ledger, _ = four_witnesses()
    ledger.end_epoch()
    checkpoint = replace(ledger.checkpoint(ledger.now + 1), epoch=epoch)
    with pytest.raises(Refused) as caught:
        adopt(FOUR, ledger.state, ledger.decision(checkpoint), Union({}))
    assert refusal(caught) == (MissingPredecessor if epoch == 3 else Refused, ErrorCode.STALE_EPOCH)


def test_who_begins_from_a_checkpoint_has_its_state_to_begin_from_again() -> None:
    ledger, _ = four_witnesses()
    ledger.end_epoch()
    new = Ledger.of_four()
    found = leaves(Base(ledger.state, 1))
    new.state.write(begin_from(new.state, ledger.log[2], found, 2))
    assert leaves(Base(new.state, 1)) == leaves(new.state) == found
    new.apply(ledger.certificate(ledger.grant(CAROL.node, 5)))
    report = new.audit(signatures=True)
    assert report.verified and (report.since_epoch, report.certificates) == (1, 1), report.problems


def test_where_the_orders_of_an_ended_epoch_lie() -> None:
    ledger, _ = four_witnesses()
    ledger.end_epoch()
    first = ledger.log[2]
    ledger.give(ledger.grant(CAROL.node, 1))
    ledger.end_epoch(ledger.now + 1)
    assert [epoch_range(ledger.view, epoch) for epoch in range(4)] == [(0, 2), (3, 4), None, None]
    new = Ledger.of_four()
    new.state.write(begin_from(new.state, ledger.log[4], leaves(Base(ledger.state, 2)), 4))
    assert [epoch_range(new.view, epoch) for epoch in range(3)] == [None, None, None]
    ledger.state.write({certificate_key(record_id(first)): None})  # damaged
    assert [epoch_range(ledger.view, epoch) for epoch in range(2)] == [None, None]


def test_pruning_leaves_nothing_of_what_is_forgotten() -> None:
    ledger, _ = four_witnesses()
    ledger.vote(ledger.grant(CAROL.node, 1))  # its lock stays: the order is in no epoch that has ended
    ledger.end_epoch()
    ledger.give(ledger.grant(CAROL.node, 2))
    for puts in prune(ledger.state, 1):
        ledger.state.write(puts)
    view = ledger.view
    assert [key for key, _ in ledger.state.iterate(b"n")] == [log_key(3)] and view.log_first == 3
    assert [key for key, _ in ledger.state.iterate(b"b")] == [order_key(ISSUER.node, 1)]
    assert view.lock(ISSUER.node, 0) is None and view.lock(ALICE.node, 0) is None
    assert view.lock(ISSUER.node, 1) is not None


# --- keys and sub-accounts are bounded ---


@pytest.mark.parametrize(("balance", "sequence", "in_use"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_an_account_is_in_use_by_credits_or_by_an_order(balance: int, sequence: int, in_use: bool) -> None:
    assert Account(balance, sequence, bytes(32)).known is in_use
    ledger, _ = four_witnesses()
    head = ledger.view.account(CAROL.node).head
    ledger.state.write({account_key(CAROL.node): Account(balance, sequence, head).encode()})
    for order in (ledger.rotate(CAROL, DAVE), ledger.recovery(CAROL, DAVE.node)):
        assert voted(ledger.copy(), order) is in_use


HALF = MAX_ROTATIONS // 2


@pytest.mark.parametrize(
    ("rotations", "recoveries", "by_recovery", "may_rotate", "may_recover"),
    [
        (HALF - 1, 0, False, True, True),
        (HALF, 0, False, False, True),
        (HALF, 1, True, True, True),
        (MAX_ROTATIONS - 1, 1, True, True, True),
        (MAX_ROTATIONS, 1, True, False, True),
        (0, MAX_ROTATIONS - 1, True, True, True),
        (0, MAX_ROTATIONS, True, True, False),
        (HALF, MAX_ROTATIONS, True, True, False),
        (HALF - 1, 1, False, True, None),
        (HALF, 1, False, False, None),
    ],
)
def test_how_many_keys_an_account_gets(
    rotations: int, recoveries: int, by_recovery: bool, may_rotate: bool, may_recover: bool | None
) -> None:
    """The key in force has half of the rotations; all keys in this account are Alice's, the recovery keys Dave's."""
    ledger, _ = four_witnesses()
    known = ledger.view.account(ALICE.node)
    account = replace(known, rotations=((0, ALICE.node),) * rotations, recoveries=((0, DAVE.node),) * recoveries)
    ledger.state.write({account_key(ALICE.node): account.encode()})
    by = DAVE if by_recovery else ALICE
    assert voted(ledger.copy(), ledger.rotate(ALICE, CAROL, by=by)) is may_rotate
    if may_recover is not None:
        assert voted(ledger.copy(), ledger.recovery(ALICE, CAROL.node, by=by)) is may_recover


def voted(ledger: Ledger, order: Order) -> bool:
    """False if a witness finds the order to be good but no longer allowed."""
    try:
        ledger.vote(order)
    except Refused as refusal:
        assert refusal.code is ErrorCode.INVALID_REQUEST
        return False
    return True


# --- mappings over mappings ---


def test_a_draft_is_walked_like_what_it_will_be() -> None:
    stored = Mapping()
    stored.write({b"a1": b"1", b"a3": b"3", b"a5": b"5", b"b1": b"x", b"s" + u64(7) + b"a2": b"2"})
    draft = Draft(stored)
    draft.update({b"a2": b"2", b"a3": None, b"a4": b"4", b"a5": b"five", b"b2": b"y"})
    assert list(draft.iterate(b"a")) == [(b"a1", b"1"), (b"a2", b"2"), (b"a4", b"4"), (b"a5", b"five")]
    assert list(draft.iterate(b"a", b"a2")) == [(b"a2", b"2"), (b"a4", b"4"), (b"a5", b"five")]
    assert list(draft.iterate(b"a", b"a21")) == [(b"a4", b"4"), (b"a5", b"five")]
    assert [draft.get(key) for key in (b"a1", b"a3", b"a5", b"a6")] == [b"1", None, b"five", None]


def test_the_beginning_of_an_epoch_is_walked_under_its_own_keys() -> None:
    stored = Mapping()
    stored.write({base_key(epoch, key): key for epoch in (6, 7, 8) for key in (b"a1", b"a2", b"c1")})
    base = Base(stored, 7)
    assert list(base.iterate()) == [(b"a1", b"a1"), (b"a2", b"a2"), (b"c1", b"c1")]
    assert list(base.iterate(b"a")) == [(b"a1", b"a1"), (b"a2", b"a2")]
    assert list(base.iterate(b"a", b"a2")) == [(b"a2", b"a2")]


@pytest.mark.parametrize("part", [1, 2, 3, 4])
def test_pruning_goes_part_by_part(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """Whoever is interrupted goes on from where it stands."""
    monkeypatch.setattr(pruning, "PART", part)
    ledger, _ = four_witnesses()
    ledger.end_epoch()
    first, *parts = prune(ledger.state, 1)
    ledger.state.write(first)
    assert ledger.audit(signatures=True).verified
    assert [sum(key[:1] == b"n" for key in puts) for puts in parts] == {1: [1, 1, 1], 2: [2, 1]}.get(part, [3])
    for puts in prune(ledger.state, 1):
        ledger.state.write(puts)
        assert ledger.audit(signatures=True).verified
    assert not list(ledger.state.iterate(b"n"))


def test_a_proposal_whose_orders_are_not_here_is_not_prepared() -> None:
    ledger, _ = four_witnesses()
    seat = epochs.Seat(FOUR, ledger.witness, 0)
    ledger.state.write(epochs.join(seat, ledger.state, ledger.join(), 0, willing=True)[1])
    ledger.now += 1
    checkpoint = ledger.checkpoint()
    result = outcome(FOUR, ledger.state, epoch_orders(ledger.state), checkpoint.time_ms)
    with pytest.raises(Refused) as caught:
        epochs.prepare(seat, ledger.view, ledger.propose(checkpoint), 0, ledger.now, None)
    assert refusal(caught) == (Refused, ErrorCode.BAD_QUORUM)
    assert epochs.prepare(seat, ledger.view, ledger.propose(checkpoint), 0, ledger.now, result)


# --- signatures checked in batches ---


@pytest.mark.parametrize(("most", "runs"), [(0, 2), (1, 3), (2, 4), (3, 5), (9, 5)])
def test_too_many_wrong_signatures_are_not_remembered(monkeypatch: pytest.MonkeyPatch, most: int, runs: int) -> None:
    """A check that finds one more wrong signature each time it is made is made on the spot in the end."""
    monkeypatch.setattr(assumed, "MAX_WRONG", most)
    asked: list[assumed.Question] = []
    begun = 0

    class Elsewhere:
        def take(self, batch: list[assumed.Question]) -> None:
            asked.extend(batch)

        def wrong(self) -> list[assumed.Question]:
            found = list(asked)
            asked.clear()
            return found

    def refuse(*question: object) -> None:
        raise BadSignature("all are wrong")

    def run(check: Verify) -> int:
        nonlocal begun
        begun += 1
        for number in range(10):
            try:
                check(ALICE.node, FOUR.id, bytes([number]), bytes(64))
            except BadSignature:
                continue
            return number
        return 10

    assert (assumed.as_if_checked(run, Elsewhere(), refuse), begun) == (10, runs)
