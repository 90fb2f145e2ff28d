"""A ledger that is old."""

from __future__ import annotations

import sys

from protocol.ledger.audit import verify_log
from tests.protocol.vector_world import one_witness


def test_a_ledger_of_more_epochs_than_calls_may_nest_is_verified() -> None:
    ledger, _ = one_witness()
    epochs = sys.getrecursionlimit() + 50
    for _ in range(epochs):
        ledger.end_epoch()
    report = verify_log(ledger.federation, ledger.state, signatures=False)
    assert (report.verified, report.epoch, report.sum_micro) == (True, epochs, 0), report.problems
