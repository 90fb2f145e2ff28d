"""The end of an epoch, step by step: what each witness signs, refuses and keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol import params
from protocol.codec import body_hash, decode_as
from protocol.errors import ErrorCode, Refused
from protocol.ledger import epochs
from protocol.ledger.audit import verify_log
from protocol.ledger.checkpoints import Union, begin_from, epoch_orders, leaves, state_root
from protocol.ledger.evidence import conflicts, equivocation, open_proof
from protocol.ledger.orders import MissingPredecessor
from protocol.ledger.pruning import prunable, prune
from protocol.ledger.state import ABSTAIN, FIRST_EPOCH, Base, account_key, number, u64
from protocol.messages import Ballot, Checkpoint, Commit, Decision, Standing
from tests.protocol.federation_world import Round, WitnessNode, settled
from tests.protocol.ledger_world import ALICE, BOB, CAROL, HOUR
from tests.protocol.vector_world import FOUR

Witnesses = list[WitnessNode]
BEGAN, LENGTH = FOUR.genesis.created_ms, FOUR.genesis.epoch_length_ms


@pytest.fixture
def witnesses() -> Witnesses:
    """Four that all have two orders: 1 cr to Alice, 0.4 of it held for Bob."""
    four = [WitnessNode.number(index) for index in range(4)]
    settled(four[0].grant(ALICE.node, 1_000_000), four)
    settled(four[0].hold(ALICE, BOB.node, 400_000), four)
    return four


def refusal(call: Callable[..., Any], *arguments: Any, **named: Any) -> ErrorCode:
    """The code with which a call is refused."""
    with pytest.raises(Refused) as caught:
        call(*arguments, **named)
    return caught.value.code


def adopt(decision: bytes | None, witnesses: Witnesses, union: Union | None = None) -> Checkpoint:
    """All go over to the next epoch, by default with the orders that the first has."""
    assert decision is not None
    union = union or epoch_orders(witnesses[0].state)
    for one in witnesses:
        one.go_over(decision, union)
    return decode_as(Checkpoint, decode_as(Decision, decision).body)


def prepared(coordinator: WitnessNode, number: int, joining: Witnesses, preparing: Witnesses) -> tuple[Round, Commit]:
    """A round up to its prepare ballots, and the request for commits."""
    begun = Round(coordinator, number)
    begun.ask_to_join(joining)
    propose = begun.proposal()
    assert propose is not None
    commit = begun.ask_to_prepare(propose, preparing)
    assert commit is not None
    return begun, commit


# --- a whole change ---


def test_four_agree_on_one_checkpoint(witnesses: Witnesses) -> None:
    checkpoint = adopt(Round(witnesses[1], 1).run(witnesses), witnesses)
    assert {one.view.epoch for one in witnesses} == {1}
    assert {state_root(one.state) for one in witnesses} == {checkpoint.state}
    assert checkpoint.count == 2 and [source.witness for source in checkpoint.sources] == [1, 2, 3]
    assert all(one.role is None for one in witnesses)


@pytest.mark.parametrize("dead", range(4))
def test_any_three_are_enough_and_the_fourth_follows(witnesses: Witnesses, dead: int) -> None:
    living = [one for one in witnesses if one.index != dead]
    checkpoint = adopt(Round(living[0], living[0].index).run(living), witnesses)
    assert {state_root(one.state) for one in witnesses} == {checkpoint.state}


def test_two_are_not_enough(witnesses: Witnesses) -> None:
    assert Round(witnesses[0], 0).run(witnesses[:2]) is None
    first = Round(witnesses[0], 0)
    first.ask_to_join(witnesses[:3])
    propose = first.proposal()
    assert propose is not None and first.ask_to_prepare(propose, witnesses[:2]) is None
    commit = first.ask_to_prepare(propose, witnesses[:3])
    assert commit is not None and first.ask_to_commit(commit, witnesses[:2]) is None
    assert first.ask_to_commit(commit, witnesses[:3]) is not None


# --- when a witness is willing ---


def test_an_epoch_is_due_when_it_has_lasted_as_long_as_genesis_says(witnesses: Witnesses) -> None:
    assert not epochs.due(FOUR, witnesses[0].view, BEGAN + LENGTH - 1)
    assert epochs.due(FOUR, witnesses[0].view, BEGAN + LENGTH)
    for one in witnesses:
        one.now += HOUR
    adopt(Round(witnesses[0], 0).run(witnesses), witnesses)
    assert not epochs.due(FOUR, witnesses[0].view, BEGAN + HOUR + LENGTH - 1)
    assert epochs.due(FOUR, witnesses[0].view, BEGAN + HOUR + LENGTH)


def test_where_a_witness_stands(witnesses: Witnesses) -> None:
    one = witnesses[0]
    assert epochs.standing(FOUR, one.view, BEGAN, agreed=False) == Standing(0, 0, 0, 0)
    assert epochs.standing(FOUR, one.view, BEGAN, agreed=True) == Standing(0, 1, 0, 0)
    assert epochs.standing(FOUR, one.view, BEGAN + LENGTH, agreed=False) == Standing(0, 1, 0, 0)
    one.joined(one.join(), 0)
    assert epochs.standing(FOUR, one.view, BEGAN, agreed=False) == Standing(0, 1, 1, 0)
    one.state.write({ABSTAIN: u64(0)})
    assert epochs.standing(FOUR, one.view, BEGAN + LENGTH, agreed=True) == Standing(0, 0, 1, 1)


@pytest.mark.parametrize(("index", "after", "first"), [(0, 0, 0), (3, 0, 3), (0, 1, 4), (2, 2, 2), (1, 6, 9)])
def test_each_witness_has_every_fourth_round(index: int, after: int, first: int) -> None:
    assert epochs.round_of(FOUR, index, after) == first


# --- rounds ---


def test_what_was_committed_once_is_proposed_by_every_later_coordinator(witnesses: Witnesses) -> None:
    """The first coordinator dies after one commit ballot; another order arrives nowhere, since all are frozen."""
    first, commit = prepared(witnesses[0], 0, witnesses, witnesses)
    assert first.ask_to_commit(commit, witnesses[2:3]) is None
    for one in witnesses:
        one.now += 1_000  # a new checkpoint would have another time
    second = Round(witnesses[1], 1)
    decision = second.run(witnesses)
    assert second.checkpoint == first.checkpoint
    adopt(decision, witnesses)


def test_a_later_coordinator_that_asks_others_makes_a_new_checkpoint(witnesses: Witnesses) -> None:
    """One witness committed and is not among those asked: no quorum did, so nothing was decided."""
    first, commit = prepared(witnesses[0], 0, witnesses, witnesses)
    first.ask_to_commit(commit, witnesses[:1])
    for one in witnesses:
        one.now += 1_000
    second = Round(witnesses[1], 1)
    decision = second.run(witnesses[1:])
    assert decision is not None and second.checkpoint != first.checkpoint
    third = Round(witnesses[2], 2)
    third.ask_to_join(witnesses[:3])
    propose = third.proposal()
    assert propose is not None and propose.checkpoint == second.checkpoint  # prepared in the highest round
    adopt(decision, witnesses)


def test_a_commit_is_a_promise_too(witnesses: Witnesses) -> None:
    """A witness that missed the proposal of a later round, and was shown its prepares, goes back to no earlier one."""
    first, commit = prepared(witnesses[0], 0, witnesses, witnesses[:3])
    late = witnesses[3]
    _, later = prepared(witnesses[1], 1, witnesses[:3], witnesses[:3])
    late.commit_to(later, 1)
    assert refusal(late.commit_to, commit, 0) is ErrorCode.BAD_SEQUENCE
    assert refusal(late.joined, first.request, 0) is ErrorCode.BAD_SEQUENCE
    assert late.joined(Round(witnesses[2], 2).request, 2).prepared == 2


# --- what a coordinator looks at ---


def test_an_answer_is_signed_by_its_witness(witnesses: Witnesses) -> None:
    begun, commit = prepared(witnesses[0], 0, witnesses, witnesses)
    ballot = Ballot(epochs.COMMIT, 0, 0, body_hash(begun.checkpoint))
    given = witnesses[1].commit_to(commit, 0)
    known = epochs.check_balloted(FOUR, witnesses[0].view, given, ballot)
    assert (known.witness, known.signature) == (1, given.signature)
    for wrong in (replace(given, witness=2), replace(given, witness=4), replace(given, signature=bytes(64))):
        assert refusal(epochs.check_balloted, FOUR, witnesses[0].view, wrong, ballot) in (
            ErrorCode.BAD_SIGNATURE,
            ErrorCode.NOT_A_WITNESS,
        )


def test_an_answer_to_join_is_what_it_says(witnesses: Witnesses) -> None:
    begun, commit = prepared(witnesses[0], 0, witnesses, witnesses)
    witnesses[1].commit_to(commit, 0)
    second = Round(witnesses[1], 1)
    answer = witnesses[1].joined(second.request, 1)
    assert (answer.prepared, answer.checkpoint) == (1, begun.checkpoint)
    second.take(1, answer, epoch_orders(witnesses[1].state))
    forged = [
        replace(answer, count=3),
        replace(answer, root=bytes(32)),
        replace(answer, prepared=0, checkpoint=b"", ballots=()),
        replace(answer, snapshot_signature=bytes(64)),
        replace(answer, promise_signature=bytes(64)),
        replace(answer, witness=2),
        replace(answer, ballots=answer.ballots[:2]),
        replace(answer, ballots=tuple(replace(one, signature=bytes(64)) for one in answer.ballots)),
    ]
    for wrong in forged:
        code = refusal(epochs.check_joined, FOUR, witnesses[0].view, wrong, second.request)
        assert code in (ErrorCode.BAD_SIGNATURE, ErrorCode.BAD_QUORUM)


# --- what adopting does to a ledger ---


def test_a_void_order_leaves_nothing_behind(witnesses: Witnesses) -> None:
    late = witnesses[3]
    settled(late.hold(ALICE, BOB.node, 1_000), [late, *witnesses[1:3]])  # the first does not hear of it
    certificate = late.log[-1]
    fewer, before = epoch_orders(witnesses[0].state), late.view.account(ALICE.node)
    decision = witnesses[0].decision(witnesses[0].checkpoint())  # of witnesses that do not have it
    for one in witnesses:
        void, missing = one.go_over(decision, fewer)
        assert list(void.certificates.values()) == ([] if one.index == 0 else [certificate])
        assert not missing.certificates
        assert one.view.order_at(ALICE.node, 1) is None and one.view.account(ALICE.node).next_sequence == 1
        assert one.view.account(ALICE.node).balance == before.balance + 1_000
        assert verify_log(FOUR, one.state, signatures=True).verified
        assert refusal(one.apply, certificate) is ErrorCode.STALE_EPOCH
    settled(late.hold(ALICE, BOB.node, 2_000), witnesses)  # the number is free again


def test_what_was_missing_is_there_afterwards(witnesses: Witnesses) -> None:
    settled(witnesses[0].hold(ALICE, BOB.node, 1_000), witnesses[:3])
    late, union = witnesses[3], epoch_orders(witnesses[0].state)
    decision = Round(witnesses[0], 0).run(witnesses[:3])
    assert decision is not None
    void, missing = late.go_over(decision, union)
    assert len(missing.certificates) == 1 and not void.certificates
    (identity,) = missing.certificates
    position = late.view.position(identity)
    assert position is not None and late.view.logged(position) == missing.certificates[identity]
    assert late.view.order_at(ALICE.node, 1) == identity
    assert verify_log(FOUR, late.state, signatures=True).verified


def test_copies_of_earlier_states_are_kept_as_long_as_asked(witnesses: Witnesses) -> None:
    one = witnesses[0]

    def bases() -> set[int]:
        return {number(key[1:9]) for key, _ in one.state.iterate(b"s")}

    def end(keep_from: int | None) -> None:
        one.now += 1
        one.end_epoch(keep_from=keep_from)

    end(None)
    assert bases() == {1}
    end(0)
    assert bases() == {1, 2}
    end(0)
    end(2)
    assert bases() == {2, 3, 4}
    one.state.write({FIRST_EPOCH: u64(2)})  # pruned: a check begins with that copy
    end(None)
    assert bases() == {2, 5}


def test_a_checkpoint_opens_the_epoch_after_the_one_in_force(witnesses: Witnesses) -> None:
    one = witnesses[0]
    adopt(Round(one, 0).run(witnesses), witnesses)
    one.now += 1
    again = one.decision(replace(one.checkpoint(), epoch=1))
    assert refusal(one.go_over, again, Union({})) is ErrorCode.STALE_EPOCH


def test_only_a_witness_that_was_set_back_is_silent_afterwards(witnesses: Witnesses) -> None:
    channel = next(key[1:] for key, _ in witnesses[0].state.iterate(b"o"))
    witnesses[3].state.write({ABSTAIN: u64(0)})
    decision = Round(witnesses[0], 0).run(witnesses[:3])
    adopt(decision, witnesses)
    close = witnesses[0].close(BOB, channel, witnesses[0].voucher(ALICE, channel, 100, 50))
    assert refusal(witnesses[3].vote, close) is ErrorCode.ABSTAINING
    assert [one.view.may_have_settled(channel) for one in witnesses] == [False, False, False, True]
    settled(close, witnesses[:3])


def test_who_begins_anew_after_a_set_back_is_silent_too(witnesses: Witnesses) -> None:
    channel = next(key[1:] for key, _ in witnesses[0].state.iterate(b"o"))
    decision = Round(witnesses[0], 0).run(witnesses)
    adopt(decision, witnesses)
    found = leaves(Base(witnesses[0].state, 1))
    for abstains in (True, False):
        new = WitnessNode.number(3)
        new.state.write({ABSTAIN: u64(0) if abstains else None})
        assert decision is not None
        new.state.write(begin_from(new.state, decision, found, 2))
        assert new.view.may_have_settled(channel) is abstains
        close = new.close(BOB, channel, new.voucher(ALICE, channel, 100, 50))
        if abstains:
            assert refusal(new.vote, close) is ErrorCode.ABSTAINING
        else:
            new.vote(close)


# --- certificates ---


def test_an_order_by_an_unknown_key_waits_only_if_a_quorum_voted_for_it(witnesses: Witnesses) -> None:
    one = witnesses[0]
    order = one.hold_by(CAROL, ALICE.node, BOB.node, 5)  # perhaps Alice's new key
    with pytest.raises(MissingPredecessor):
        one.apply(one.certificate(order))
    with pytest.raises(Refused) as caught:
        one.apply(one.certificate(order, 0, 1))
    assert caught.value.code is ErrorCode.BAD_QUORUM and not isinstance(caught.value, MissingPredecessor)


@pytest.mark.parametrize(("had", "allowed"), [(params.MAX_SUB_ACCOUNTS - 1, True), (params.MAX_SUB_ACCOUNTS, False)])
def test_an_owner_has_so_many_sub_accounts_and_no_more(witnesses: Witnesses, had: int, allowed: bool) -> None:
    one = witnesses[0]
    alice = replace(one.view.account(ALICE.node), sub_accounts=had)
    one.state.write({account_key(ALICE.node): alice.encode()})
    order = one.attach(CAROL, ALICE)
    if allowed:
        one.vote(order)
    else:
        assert refusal(one.vote, order) is ErrorCode.INVALID_REQUEST


# --- evidence ---


def test_what_conflicts_with_a_vote(witnesses: Witnesses) -> None:
    one = witnesses[0]
    first, second = (one.hold(ALICE, BOB.node, amount) for amount in (1, 2))
    one.vote(first)
    lock = one.view.lock(ALICE.node, 1)
    assert lock is not None and not conflicts(lock, one.check(first)) and conflicts(lock, one.check(second))
    assert not conflicts(None, one.check(second))
    proof = open_proof(FOUR, one.view, equivocation(lock, one.check(second)))
    assert (proof.account, proof.epoch) == (ALICE.node, 0)


# --- pruning ---


def test_what_can_be_pruned(witnesses: Witnesses) -> None:
    """An epoch that has begun, is not pruned yet, and whose first state is kept."""
    one = witnesses[0]

    def end(keep_from: int) -> None:
        one.now += 1
        one.end_epoch(keep_from=keep_from)

    end(0)
    end(0)
    end(0)
    assert [prunable(one.state, epoch) for epoch in range(5)] == [False, True, True, True, False]
    for puts in prune(one.state, 2):
        one.state.write(puts)
    assert [prunable(one.state, epoch) for epoch in range(5)] == [False, False, True, True, False]
    end(4)
    assert [prunable(one.state, epoch) for epoch in range(5)] == [False, False, True, False, True]


def test_votes_for_channels_that_are_gone_are_forgotten(witnesses: Witnesses) -> None:
    one = witnesses[0]
    channel = next(key[1:] for key, _ in one.state.iterate(b"o"))
    settled(one.close(BOB, channel, one.voucher(ALICE, channel, 100, 50)), witnesses)
    assert one.view.lock(channel, 0) is not None
    decision = Round(one, 0).run(witnesses)
    adopt(decision, witnesses)
    for puts in prune(one.state, 1):
        one.state.write(puts)
    assert one.view.channel(channel) is None and one.view.lock(channel, 0) is None


# --- how long something holds ---


def test_a_witness_abstains_up_to_the_last_epoch_in_which_it_may_have_signed(witnesses: Witnesses) -> None:
    one = witnesses[3]
    one.state.write({ABSTAIN: u64(1)})  # set back to a ledger of the epoch before
    silent = []
    for epoch in range(3):
        assert one.view.epoch == epoch
        silent.append(one.view.abstaining)
        for other in witnesses:
            other.now += 1
        adopt(Round(witnesses[0], 0).run(witnesses[:3]), witnesses)
    assert silent == [True, True, False]


def test_an_account_rests_until_the_epoch_ends(witnesses: Witnesses) -> None:
    one = witnesses[0]
    first, second = (one.hold(ALICE, BOB.node, amount) for amount in (1, 2))
    one.vote(first)
    assert refusal(one.vote, second) is ErrorCode.EQUIVOCATION
    assert one.view.frozen(ALICE.node)
    adopt(Round(one, 0).run(witnesses), witnesses)
    assert not one.view.frozen(ALICE.node)
    settled(one.hold(ALICE, BOB.node, 3), witnesses)
