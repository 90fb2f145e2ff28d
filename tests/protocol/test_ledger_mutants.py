"""Every guard of the ledger is guarded: with any one of them broken the tests turn red.

`ledger_killers.json` says which test each mutant fell to the last time, so that mostly one test has to run for each,
in a fork of a process that has collected them all. It only saves time: a mutant that this test lets live meets all
others. `python -m tests.protocol.test_ledger_mutants` writes it again.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.protocol import ledger_mutants
from tests.protocol.ledger_mutants import FAILED, MUTANTS, PRELOADED, Mutant, Quick

AT_ONCE = 2
KILLERS = Path(__file__).parent / "ledger_killers.json"


class Result(NamedTuple):
    """What became of a mutant."""

    name: str
    status: int  # pytest's
    killer: str | None
    said: str  # the end of it


def _run(name: str) -> Result:
    """In a process of its own."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status, killer = ledger_mutants.run(name)
    return Result(name, status, killer, said.getvalue()[-800:])


def _run_quick(known: Mapping[str, str]) -> Quick:
    """In a process of its own."""
    quick = Quick(known)
    with contextlib.redirect_stdout(io.StringIO()):
        quick.run()
    return quick


def _run_all(known: Mapping[str, str]) -> list[Result]:
    """All mutants but those that fall to a test that they fell to before: these are `known`."""
    with _processes() as pool:
        quick = pool.submit(_run_quick, known).result()
        assert not quick.unsound, "they fail on the ledger as it is"
        return list(pool.map(_run, [name for name in MUTANTS if name not in quick.killed]))


def _processes() -> ProcessPoolExecutor:
    """Each for one task: the ledger is imported once in a process, whole or broken."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return ProcessPoolExecutor(AT_ONCE, mp_context=context, max_tasks_per_child=1)


def write_killers() -> None:
    """From a run in which none was known."""
    killers = {result.name: result.killer for result in _run_all({}) if result.killer is not None}
    KILLERS.write_text(json.dumps(killers, indent=0, sort_keys=True) + "\n", encoding="utf-8")


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_mutant_breaks_something(mutant: Mutant) -> None:
    source = mutant.path.read_text(encoding="utf-8")
    assert compile(mutant.broken(source), mutant.module, "exec") != compile(source, mutant.module, "exec")


@pytest.mark.slow
def test_no_mutant_survives() -> None:
    results = _run_all(json.loads(KILLERS.read_text(encoding="utf-8")))
    survivors = [result.name for result in results if result.status == 0]
    accidents = [result for result in results if result.status not in (0, FAILED)]
    assert (survivors, accidents) == ([], [])


if __name__ == "__main__":
    write_killers()
