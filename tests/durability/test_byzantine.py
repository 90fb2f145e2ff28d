"""A hundred attempts; `python -m tests.durability.byzantine --attempts 1000` is the long version."""

from pathlib import Path

import pytest

from tests.durability import byzantine
from tests.durability.attacks import KINDS

pytestmark = pytest.mark.slow


def test_no_double_spend_succeeds_with_a_byzantine_witness(tmp_path: Path) -> None:
    battle = byzantine.run(tmp_path, attempts=100, seed=3)
    assert (battle.successes, battle.problems, battle.underpaid) == ([], [], [])
    assert set(battle.attempts) == set(KINDS)
    assert battle.given["votes"] > 100 and battle.given["certified"] > 10 and battle.given["served"] > 0
    assert all(battle.acknowledged[what] for what in ("granted", "held", "taken", "closed", "epoch", "agreed"))
    assert battle.everywhere > 0  # proofs against those who signed twice, found by one and heard of by all
    assert battle.convicted == ["witness-3"]


@pytest.mark.parametrize("wrong", [{"liars": 2}, {"careless": True}])
def test_with_more_faults_than_the_federation_stands_a_double_spend_is_found(
    tmp_path: Path, wrong: dict[str, int]
) -> None:
    battle = byzantine.run(tmp_path, attempts=200, seed=3, stop=True, kinds=("split", "race"), **wrong)  # type: ignore[arg-type]
    assert any("two orders with number" in success for success in battle.successes)
