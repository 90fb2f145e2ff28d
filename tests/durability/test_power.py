"""A few losses of power; `python -m tests.durability.store_loss` and `…power_loss` are the long versions.

Rule: skipped only where the recorder cannot be (no Linux, no C compiler); in CI a skip fails the run.
"""

from pathlib import Path

import pytest

from tests.durability import power_loss, store_loss

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def recorder(tmp_path: Path) -> None:
    """Skip where there is none; one that does not compile is a failure."""
    try:
        power_loss.build_recorder(tmp_path)
    except power_loss.NoRecorder as missing:
        pytest.skip(str(missing))


def test_a_store_keeps_every_batch_that_it_acknowledged(tmp_path: Path) -> None:
    found = store_loss.run(tmp_path / "store", losses=16, seed=5)
    assert (found.lost, found.partial, found.alarms) == ([], [], [])
    assert found.losses == 16 and found.acknowledged > 100 and found.unsynced_bytes > 0


@pytest.mark.parametrize("kind", ["unsynced", "lazy"])
def test_a_store_that_does_not_sync_is_found(tmp_path: Path, kind: str) -> None:
    assert store_loss.run(tmp_path / "store", losses=40, seed=5, kind=kind).lost


def test_a_store_that_leaves_the_names_of_its_files_to_chance_is_found(tmp_path: Path) -> None:
    found = store_loss.run(tmp_path / "store", losses=120, seed=5, kind="nameless", journal=False)
    assert not found.sound


@pytest.mark.parametrize("witnesses", [1, 4])
def test_nothing_acknowledged_is_lost_with_the_power(tmp_path: Path, witnesses: int) -> None:
    tally, losses = power_loss.lose(tmp_path / "world", moments=6, seed=11, witnesses=witnesses)
    assert tally.problems == [] and tally.underpaid == []
    assert tally.kills >= 6 and tally.certificates > 0 and losses.unsynced_bytes > 0


def test_a_federation_on_unsynced_stores_is_found(tmp_path: Path) -> None:
    tally, _ = power_loss.lose(tmp_path / "world", moments=12, seed=11, store="unsynced")
    assert tally.problems
