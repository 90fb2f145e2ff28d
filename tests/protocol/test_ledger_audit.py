"""Whoever changes a stored ledger of several epochs is found, and a true one is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.codec import decode_as, encode
from protocol.ledger.audit import Report, verify_log
from protocol.ledger.checkpoints import adopt, epoch_orders
from protocol.ledger.pruning import prune
from protocol.ledger.state import (
    LOG_LENGTH,
    Account,
    Base,
    ChannelStatus,
    Lock,
    account_key,
    base_key,
    certificate_key,
    channel_key,
    checkpoint_key,
    lock_key,
    log_key,
    order_key,
    u64,
)
from protocol.messages import Certificate
from tests.protocol.ledger_world import ALICE, BOB, CAROL, FEDERATION, HOUR, ISSUER
from tests.protocol.vector_world import FOUR, Ledger, four_witnesses, one_witness


def next_epoch(ledger: Ledger) -> None:
    """End the epoch; copies of all beginnings are kept."""
    ledger.now += HOUR // 10
    decision = ledger.decision(ledger.checkpoint())
    ledger.state.write(adopt(ledger.federation, ledger.state, decision, epoch_orders(ledger.state), 0).puts)


@pytest.fixture
def ledger() -> Ledger:
    """In epoch 0 a channel, settled in epoch 1, in which another is opened; in epoch 2 a third."""
    ledger, first = four_witnesses()
    next_epoch(ledger)
    ledger.give(ledger.close(BOB, first, ledger.voucher(ALICE, first, 100, 50)))
    ledger.give(ledger.hold(ALICE, BOB.node, 7))
    next_epoch(ledger)
    ledger.give(ledger.grant(CAROL.node, 5), ledger.hold(CAROL, BOB.node, 2))
    return ledger


def audit(ledger: Ledger, *, signatures: bool = True, from_checkpoint: bool = False) -> Report:
    return verify_log(FOUR, ledger.state, signatures=signatures, from_checkpoint=from_checkpoint)


def problems(ledger: Ledger, **how: bool) -> str:
    report = audit(ledger, **how)
    assert report.verified == (not report.problems)
    return "; ".join(report.problems)


def checkpoint_id(ledger: Ledger, epoch: int) -> bytes:
    found = ledger.state.get(checkpoint_key(epoch))
    assert found is not None
    return found


def at(ledger: Ledger, position: int) -> bytes:
    """The id at a place of the log."""
    found = ledger.view.id_at(position)
    assert found is not None
    return found


def test_a_true_ledger_of_three_epochs_verifies(ledger: Ledger) -> None:
    whole, last = audit(ledger), audit(ledger, from_checkpoint=True)
    assert whole.verified and last.verified, (whole.problems, last.problems)
    assert (whole.since_epoch, whole.epoch, whole.certificates, whole.accounts, whole.channels) == (0, 2, 6, 4, 3)
    assert (last.since_epoch, last.epoch, last.certificates, last.sum_micro) == (2, 2, 2, 0)


def test_every_changed_byte_of_what_orders_made_is_found(ledger: Ledger) -> None:
    """Copies of ended epochs' beginnings are made anew, not read; all else counts."""
    whole = dict(ledger.state.values)
    for key in [key for key in whole if key[:1] in b"aconrk"]:
        value = whole[key]
        if value:
            ledger.state.values = {**whole, key: value[:-1] + bytes([value[-1] ^ 1])}
            assert problems(ledger), key
        ledger.state.values = {other: kept for other, kept in whole.items() if other != key}
        assert problems(ledger), key


def test_the_state_at_the_last_checkpoint_is_the_one_that_it_names(ledger: Ledger) -> None:
    key = base_key(2, account_key(ALICE.node))
    rich = Account.decode(ledger.state.values[key])
    ledger.state.write({key: replace(rich, balance=rich.balance + 1).encode()})
    assert "the state at the beginning of epoch 2" in problems(ledger, from_checkpoint=True)
    assert audit(ledger).verified  # the copy is not read


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("key", [lambda identity, epoch: checkpoint_key(epoch), lambda identity, _: b"r" + identity])
def test_a_checkpoint_that_is_not_there(ledger: Ledger, epoch: int, key: Callable[[bytes, int], bytes]) -> None:
    ledger.state.write({key(checkpoint_id(ledger, epoch), epoch): None})
    found = problems(ledger)
    assert f"the checkpoint that opened epoch {epoch} is missing" in found
    assert f"epoch {epoch - 1} is not complete" in found


def test_a_checkpoint_of_another_epoch_in_its_place(ledger: Ledger) -> None:
    ledger.state.write({checkpoint_key(2): checkpoint_id(ledger, 1)})
    assert "the checkpoint that opened epoch 2 is another one" in problems(ledger, from_checkpoint=True)


def test_a_true_checkpoint_under_another_id(ledger: Ledger) -> None:
    identity = checkpoint_id(ledger, 2)
    record = ledger.state.values[certificate_key(identity)]
    ledger.state.write({checkpoint_key(2): bytes(32), certificate_key(bytes(32)): record})
    assert "the checkpoint that opened epoch 2 is another one" in problems(ledger, from_checkpoint=True)


def test_a_checkpoint_that_too_few_committed_to(ledger: Ledger) -> None:
    checkpoint = Ledger.of_four().checkpoint(ledger.now)
    few = ledger.decision(checkpoint, commits=ledger.ballots(2, checkpoint, witnesses=(0, 1)))
    ledger.state.write({certificate_key(checkpoint_id(ledger, 1)): u64(2) + few})
    assert "2 witnesses, a quorum is 3" in problems(ledger)


def test_an_order_that_an_ended_epoch_has_lost(ledger: Ledger) -> None:
    hold = at(ledger, 1)
    ledger.state.write({certificate_key(hold): None})
    assert "epoch 0 does not end in the state of its checkpoint" in problems(ledger)
    grant = at(ledger, 0)
    ledger.state.write({certificate_key(grant): None, certificate_key(hold): u64(1) + ledger.log[1]})
    assert "epoch 0: insufficient_funds" in problems(ledger)


def test_an_order_of_an_ended_epoch_with_a_forged_vote(ledger: Ledger) -> None:
    identity = at(ledger, 0)
    known = decode_as(Certificate, ledger.log[0])
    forged = encode(replace(known, votes=(*known.votes[:2], replace(known.votes[2], signature=bytes(64)))))
    ledger.state.write({certificate_key(identity): u64(0) + forged})
    assert audit(ledger, signatures=False).verified
    assert "epoch 0: bad_signature" in problems(ledger)


def test_an_account_below_its_floor_is_told_even_if_the_sum_is_right(ledger: Ledger) -> None:
    bob, alice = (ledger.view.account(who.node) for who in (BOB, ALICE))
    ledger.state.write(
        {
            account_key(BOB.node): replace(bob, balance=-1).encode(),
            account_key(ALICE.node): replace(alice, balance=alice.balance + bob.balance + 1).encode(),
        }
    )
    found = problems(ledger)
    assert "is below its floor" in found and "add up" not in found
    account = ledger.view.account(ISSUER.node)
    ledger.state.write({account_key(ISSUER.node): replace(account, balance=-10_000_000).encode()})
    assert problems(ledger).count("is below its floor") == 1  # that is the issuer's


def test_balances_that_do_not_add_up(ledger: Ledger) -> None:
    alice = ledger.view.account(ALICE.node)
    ledger.state.write({account_key(ALICE.node): replace(alice, balance=alice.balance + 3).encode()})
    assert "balances and open holds add up to 3 µcredits" in problems(ledger)


def test_channels_of_before_the_check_may_be_settled_and_not_open(ledger: Ledger) -> None:
    first = at(ledger, 1)
    channel = ledger.channel(first)
    assert not channel.open and Base(ledger.state, 2).get(channel_key(first)) is None
    assert audit(ledger, from_checkpoint=True).verified
    opened = replace(channel, status=ChannelStatus.OPEN)
    ledger.state.write({channel_key(first): opened.encode()})
    assert "channel" in problems(ledger, from_checkpoint=True)


def test_what_remains_after_pruning_begins_at_its_own_checkpoint(ledger: Ledger) -> None:
    for puts in prune(ledger.state, 1):
        ledger.state.write(puts)
    report = audit(ledger)
    assert (report.verified, report.since_epoch, report.certificates) == (True, 1, 4), report.problems
    ledger.state.write({base_key(1, account_key(BOB.node)): Account(1, 0, bytes(32)).encode()})
    assert "the state at the beginning of epoch 1" in problems(ledger)


def test_places_and_records_that_the_log_does_not_name(ledger: Ledger) -> None:
    length = ledger.view.log_length
    ledger.state.write({log_key(length): bytes(32)})
    assert f"{length + 1} places in the log for a log of {length}" in problems(ledger)
    ledger.state.write({log_key(length): None, certificate_key(bytes(32)): u64(length) + b"anything"})
    assert f"{length + 1} certificates for a log of {length}" in problems(ledger)


def test_the_index_of_an_accounts_orders_agrees_with_the_log(ledger: Ledger) -> None:
    key = order_key(CAROL.node, 0)
    whole = ledger.state.values[key]
    for wrong in (bytes(32), None):
        ledger.state.write({key: wrong})
        assert "order 0 of account" in problems(ledger)
    ledger.state.write({key: whole})
    assert audit(ledger).verified


def _vote_for_another_order(ledger: Ledger) -> Lock:
    """A vote that the witness has really given for a hold of Alice's, which is nowhere."""
    other = ledger.copy()
    order = other.hold(ALICE, CAROL.node, 1)
    other.vote(order)
    lock = other.view.lock(ALICE.node, other.view.account(ALICE.node).next_sequence)
    assert lock is not None and lock.order == order.hash
    return lock


def test_only_an_only_witness_has_voted_for_what_is_in_its_log() -> None:
    alone, _ = one_witness()
    alone.end_epoch()
    lock = _vote_for_another_order(alone)
    alone.give(alone.hold(ALICE, BOB.node, 1))
    assert verify_log(FEDERATION, alone.state, signatures=True).verified
    alone.state.write({lock_key(ALICE.node, 1): replace(lock, epoch=0).encode()})  # it has ended since
    assert verify_log(FEDERATION, alone.state, signatures=True).verified
    alone.state.write({lock_key(ALICE.node, 1): lock.encode()})
    report = verify_log(FEDERATION, alone.state, signatures=True)
    assert [problem.partition(" of ")[0] for problem in report.problems] == ["the vote lock"]


def test_one_of_several_may_have_voted_for_what_an_equivocator_lost(ledger: Ledger) -> None:
    lock = _vote_for_another_order(ledger)
    ledger.give(ledger.hold(ALICE, BOB.node, 1))
    ledger.state.write({lock_key(ALICE.node, 2): lock.encode()})
    assert audit(ledger).verified


def test_a_log_with_a_gap_is_told_and_not_walked_on(ledger: Ledger) -> None:
    last = ledger.view.log_length - 1
    ledger.state.write({log_key(last - 1): None})
    assert problems(ledger).startswith(f"certificate {last - 1} of the log is missing")


def test_a_certificate_that_the_log_has_twice(ledger: Ledger) -> None:
    length = ledger.view.log_length
    ledger.state.write({log_key(length): at(ledger, length - 1), LOG_LENGTH: u64(length + 1)})
    assert f"certificate {length} of the log: equivocation" in problems(ledger)


def test_nothing_is_a_true_ledger() -> None:
    assert verify_log(FOUR, Ledger.of_four().state, signatures=True) == Report(True, 0, 0, 0, 0, ())
