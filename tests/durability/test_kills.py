"""A few kills of each kind; `python tests/durability/kill_ledger.py --kills 200` is the long version."""

from collections import Counter
from pathlib import Path

import pytest

from tests.durability import kill_ledger

pytestmark = pytest.mark.slow

SAID = ("voted", "stored", "granted", "held", "signed", "taken", "closed", "agreed")
FORGOTTEN = ("is lost", "two signed", "does not give its vote again", "knows of")  # which comes first is chance
RUNS = 10  # at most: a busy machine does less between two kills


@pytest.mark.parametrize("witnesses", [1, 4])
def test_nothing_acknowledged_is_lost_by_kills(tmp_path: Path, witnesses: int) -> None:
    heard, kills = Counter[str](), 0
    while kills < 8 or not all(heard[what] for what in SAID):
        assert kills < 8 * RUNS, f"too little was done to say anything: {heard}"
        tally = kill_ledger.run(tmp_path / str(kills), kills=8, seed=7 + kills, witnesses=witnesses)
        assert tally.problems == [] and tally.underpaid == []
        heard, kills = heard + tally.acknowledged, kills + tally.kills


@pytest.mark.parametrize("witnesses", [1, 4])
def test_a_store_that_acknowledges_too_early_is_found(tmp_path: Path, witnesses: int) -> None:
    tally = kill_ledger.run(tmp_path, kills=24, seed=7, store="lazy", witnesses=witnesses)
    assert any(words in problem for problem in tally.problems for words in FORGOTTEN), tally.problems
