"""Every guard of the ledger is guarded: with any one of them broken the tests turn red."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.protocol.ledger_mutants import MUTANTS

ROOT = Path(__file__).parents[2]
AT_ONCE = 2


def _run(name: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "tests.protocol.ledger_mutants", name]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stdout[-800:] + ended.stderr[-800:]


def test_the_same_tests_pass_when_nothing_is_broken() -> None:
    assert _run("control")[0] == 0


@pytest.mark.slow
def test_no_mutant_survives() -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = dict(zip(MUTANTS, pool.map(_run, MUTANTS), strict=True))
    survivors = [name for name, (status, _) in results.items() if status == 0]
    accidents = {name: output for name, (status, output) in results.items() if status not in (0, 1)}
    assert (survivors, accidents) == ([], {})
