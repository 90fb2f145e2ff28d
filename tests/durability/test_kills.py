"""A few kills of each kind; `python tests/durability/kill_ledger.py --kills 200` is the long version."""

from pathlib import Path

import pytest

from tests.durability import kill_ledger

pytestmark = pytest.mark.slow


def test_nothing_acknowledged_is_lost_by_kills(tmp_path: Path) -> None:
    tally = kill_ledger.run(tmp_path, kills=8, seed=7)
    assert tally.problems == []
    assert tally.kills >= 8 and tally.certificates > 20
    assert all(tally.acknowledged[what] for what in ("voted", "stored", "granted", "held", "signed", "taken", "closed"))


def test_a_store_that_acknowledges_too_early_is_found(tmp_path: Path) -> None:
    tally = kill_ledger.run(tmp_path, kills=16, seed=7, store="lazy")
    assert any("is lost" in problem for problem in tally.problems)


def test_nothing_final_is_lost_by_kills_of_four_witnesses(tmp_path: Path) -> None:
    tally = kill_ledger.run(tmp_path, kills=10, seed=7, witnesses=4)
    assert tally.problems == [] and tally.underpaid == []
    assert tally.kills >= 10 and tally.certificates > 20
    said = (
        "voted",
        "stored",
        "granted",
        "held",
        "signed",
        "taken",
        "closed",
        "joined",
        "balloted",
        "committed",
        "agreed",
    )
    assert all(tally.acknowledged[what] for what in said)


def test_four_witnesses_that_acknowledge_too_early_are_found(tmp_path: Path) -> None:
    tally = kill_ledger.run(tmp_path, kills=16, seed=7, store="lazy", witnesses=4)
    assert tally.problems
