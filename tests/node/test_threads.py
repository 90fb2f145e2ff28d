"""Rule: the number of threads follows what steps took of late, and no burst of slowness lasts."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from node.engines.threads import FIRST_WAIT, LONGEST_WAIT, ThreadChoice

Machine = Callable[[int], float]  # threads -> seconds of a step


def run(choice: ThreadChoice, machine: Machine, steps: int, answers: int = 1) -> list[int]:
    """The numbers of threads that were used."""
    used = []
    for _ in range(steps):
        used.append(choice.threads(answers))
        choice.note(answers, machine(used[-1]))
    return used


def quiet(threads: int) -> float:
    return 1 / threads


def busy(threads: int) -> float:
    return 1.0 if threads == 1 else 20.0


def test_a_quiet_machine_gets_all_threads() -> None:
    choice = ThreadChoice(6)
    used = run(choice, quiet, 20 * FIRST_WAIT)
    assert set(used) == {1, 2, 4, 6} and used[-1] == 6 and used.count(6) > len(used) // 2


def test_a_busy_machine_keeps_one_and_tries_another_ever_more_rarely() -> None:
    used = run(ThreadChoice(2), busy, 4 * LONGEST_WAIT)
    assert 5 <= used.count(2) <= 12  # a trial ends with the first step that took far too long
    tried = [step for step, threads in enumerate(used) if threads == 2]
    waits = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert waits == sorted(waits) and waits[-1] > LONGEST_WAIT


def test_a_machine_that_becomes_busy_is_noticed_within_four_slow_steps() -> None:
    choice = ThreadChoice(2)
    run(choice, quiet, 8 * FIRST_WAIT)
    assert choice.threads(1) == 2
    used = run(choice, busy, 30)
    assert used.count(2) <= 4 and used[-10:] == [1] * 10


def test_one_hiccup_changes_nothing_for_long() -> None:
    choice = ThreadChoice(2)
    run(choice, quiet, 8 * FIRST_WAIT)
    choice.note(1, 50.0)
    assert run(choice, quiet, 5)[-1] == 2


def test_steps_of_different_sizes_are_not_compared() -> None:
    choice = ThreadChoice(2)
    run(choice, quiet, 8 * FIRST_WAIT, answers=16)
    assert choice.threads(16) == 2 and choice.threads(1) == 1


def test_an_unknown_size_begins_like_the_next_smaller_one() -> None:
    choice = ThreadChoice(4)
    choice.begin_with(8, 4)
    assert (choice.threads(7), choice.threads(8), choice.threads(40)) == (1, 4, 4)


def test_one_thread_is_all_there_is() -> None:
    assert set(run(ThreadChoice(1), quiet, 3 * FIRST_WAIT)) == {1}
