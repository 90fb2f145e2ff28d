"""The end of an epoch, step by step: what each witness signs, refuses and keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protocol.codec import decode_as
from protocol.errors import ErrorCode, Refused
from protocol.ledger import epochs
from protocol.ledger.checkpoints import Union, epoch_orders, state_root
from protocol.ledger.state import ABSTAIN, u64
from protocol.messages import Checkpoint, Commit, Decision, Standing
from tests.protocol.federation_world import Round, WitnessNode, settled
from tests.protocol.ledger_world import ALICE, BOB, HOUR
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
    assert checkpoint.count == 2 and [source.witness for source in checkpoint.sources] == [0, 1, 2]
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
    assert first.ask_to_commit(commit, witnesses[:1]) is None
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
