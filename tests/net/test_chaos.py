"""Workers that are killed and halted while queries run. `tests/net/chaos.py --queries 200` is the long version."""

from pathlib import Path

import pytest

from tests.net.chaos import run

pytestmark = pytest.mark.net


def test_every_query_ends_honestly_and_the_books_balance(tmp_path: Path) -> None:
    result = run(tmp_path, queries=40, seed=7)
    assert result["dishonest"] == []
    assert result["whole"] >= 20 and result["kills"] + result["halts"] > 0
    assert result["verified"] and set(result["sums_micro"]) == {0}
    assert result["earned"] == result["spent"] > 0 and result["unsettled"] == 0
