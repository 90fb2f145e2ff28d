"""Every guard of the ledger is guarded: with any one of them broken the tests turn red."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.protocol import ledger_mutants
from tests.protocol.ledger_mutants import MUTANTS, PRELOADED, Mutant

AT_ONCE = 2


def _run(name: str) -> tuple[str, int, str]:
    """In a process of its own: the mutant, pytest's exit status, and the end of what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = ledger_mutants.run(name)
    return name, status, said.getvalue()[-800:]


def _run_all(names: Iterable[str]) -> list[tuple[str, int, str]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with ProcessPoolExecutor(AT_ONCE, mp_context=context, max_tasks_per_child=1) as pool:
        return list(pool.map(_run, names))


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_mutant_breaks_something(mutant: Mutant) -> None:
    source = mutant.path.read_text(encoding="utf-8")
    assert compile(mutant.broken(source), mutant.module, "exec") != compile(source, mutant.module, "exec")


def test_the_same_tests_pass_when_nothing_is_broken() -> None:
    assert [status for _, status, _ in _run_all(["control"])] == [0]


@pytest.mark.slow
def test_no_mutant_survives() -> None:
    _, control, _ = _run_all(["control"])[0]
    assert control == 0, "the tests fail on the ledger as it is: that they fail on a mutant says nothing"
    results = _run_all(MUTANTS)
    survivors = [name for name, status, _ in results if status == 0]
    accidents = {name: said for name, status, said in results if status not in (0, 1)}
    assert (survivors, accidents) == ([], {})
