"""Whatever is changed in a stored ledger of several epochs, the audit finds it; and it finds nothing in a true one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.ledger.audit import Report, verify_log
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
from tests.protocol.ledger_world import ALICE, BOB, CAROL, FEDERATION, HOUR, ISSUER
from tests.protocol.vector_world import FOUR, Ledger, four_witnesses, one_witness


def next_epoch(ledger: Ledger) -> None:
    """End the epoch; copies of all beginnings are kept."""
    ledger.now += HOUR // 10
    ledger.end_epoch(keep_from=0)


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


def at(ledger: Ledger, position: int) -> bytes:
    """The id at a place of the log."""
    found = ledger.view.id_at(position)
    assert found is not None
    return found


def test_every_value_that_orders_made_counts(ledger: Ledger) -> None:
    """Copies of ended epochs' beginnings are made anew, not read; all else counts."""
    whole = dict(ledger.state.values)
    for key in [key for key in whole if key[:1] in b"aconrk"]:
        value = whole[key]
        if value:
            ledger.state.values = {**whole, key: value[:-1] + bytes([value[-1] ^ 1])}
            assert problems(ledger), key
        ledger.state.values = {other: kept for other, kept in whole.items() if other != key}
        assert problems(ledger), key


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


def test_channels_of_before_the_check_may_be_settled_and_not_open(ledger: Ledger) -> None:
    first = at(ledger, 1)
    channel = ledger.channel(first)
    assert not channel.open and Base(ledger.state, 2).get(channel_key(first)) is None
    assert audit(ledger, from_checkpoint=True).verified
    opened = replace(channel, status=ChannelStatus.OPEN)
    ledger.state.write({channel_key(first): opened.encode()})
    assert "channel" in problems(ledger, from_checkpoint=True)


def test_an_open_channel_that_the_state_of_the_checkpoint_lost(ledger: Ledger) -> None:
    """The list of open channels names it, and what it was is gone: that is told, and ends no check."""
    second = next(key[1:] for key, _ in Base(ledger.state, 2).iterate(b"o"))
    ledger.state.write({base_key(2, channel_key(second)): None})
    assert "is not the one in its checkpoint" in problems(ledger, from_checkpoint=True)


def test_a_settled_channel_that_nothing_explains(ledger: Ledger) -> None:
    """It stands for no credits; only a check from a checkpoint on may take it for an older one."""
    settled = ledger.channel(at(ledger, 1))
    ledger.state.write({channel_key(bytes(32)): settled.encode()})
    assert "channel 0000000000000000… differs" in problems(ledger)
    assert audit(ledger, from_checkpoint=True).verified


def test_a_checkpoint_under_another_id_and_one_in_anothers_place(ledger: Ledger) -> None:
    first, second = ledger.state.values[checkpoint_key(1)], ledger.state.values[checkpoint_key(2)]
    record = ledger.state.values[certificate_key(second)]
    ledger.state.write({checkpoint_key(2): bytes(32), certificate_key(bytes(32)): record})
    for from_checkpoint in (True, False):
        assert "the checkpoint that opened epoch 2 is another one" in problems(ledger, from_checkpoint=from_checkpoint)
    ledger.state.write({checkpoint_key(2): first})
    assert "epoch 1 is not complete" in problems(ledger)


def test_what_remains_after_pruning_begins_at_its_own_checkpoint(ledger: Ledger) -> None:
    for puts in prune(ledger.state, 1):
        ledger.state.write(puts)
    report = audit(ledger)
    assert (report.verified, report.since_epoch, report.certificates) == (True, 1, 4), report.problems
    ledger.state.write({base_key(1, account_key(BOB.node)): Account(1, 0, bytes(32)).encode()})
    assert "the state at the beginning of epoch 1" in problems(ledger)


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
