"""What is left of a ledger after pruning can still be made anew from its first checkpoint."""

from __future__ import annotations

from protocol.ledger.audit import verify_log
from protocol.ledger.pruning import prunable, prune
from protocol.ledger.state import lock_key
from tests.protocol.ledger_world import ALICE, BOB, HOUR
from tests.protocol.vector_world import FOUR, Ledger, four_witnesses


def forget(ledger: Ledger, epoch: int) -> None:
    assert prunable(ledger.state, epoch)
    for puts in prune(ledger.state, epoch):
        ledger.state.write(puts)
    report = verify_log(FOUR, ledger.state, signatures=True)
    assert report.verified and report.since_epoch == epoch, report.problems


def end_epoch(ledger: Ledger) -> None:
    """As `Ledger.end_epoch`, with the copies of earlier states kept."""
    ledger.now += HOUR // 10
    ledger.end_epoch(keep_from=0)


def test_a_channel_that_ended_in_the_kept_part_stays_until_that_is_pruned_too() -> None:
    ledger, first = four_witnesses()  # held in epoch 0
    end_epoch(ledger)
    second = ledger.give(ledger.hold(ALICE, BOB.node, 100_000))
    voucher = ledger.voucher(ALICE, first, 100, 50)
    ledger.give(ledger.close(BOB, first, voucher))  # settled in epoch 1
    end_epoch(ledger)
    forget(ledger, 1)
    assert ledger.channel(first).paid == 250 and ledger.channel(second).open
    end_epoch(ledger)
    forget(ledger, 2)
    assert ledger.view.channel(first) is None and ledger.channel(second).open
    assert ledger.state.get(lock_key(first, 0)) is None
    ledger.now += 2 * HOUR + HOUR
    end_epoch(ledger)  # the second hold comes back
    forget(ledger, 2)  # again: nothing more to forget
    assert not ledger.channel(second).open
    end_epoch(ledger)
    forget(ledger, 4)
    assert ledger.view.channel(second) is None


def test_what_began_and_ended_before_the_kept_part_goes() -> None:
    ledger, channel = four_witnesses()
    ledger.give(ledger.close(BOB, channel, ledger.voucher(ALICE, channel, 1, 1)))
    end_epoch(ledger)
    assert not prunable(ledger.state, 0) and not prunable(ledger.state, 2)
    forget(ledger, 1)
    assert ledger.view.channel(channel) is None
