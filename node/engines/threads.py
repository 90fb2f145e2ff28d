"""How many threads compute a step.

Rule: measured while it works, never assumed. More threads make a step shorter on a quiet machine; on a busy one a
thread that waits for another which does not run makes it many times longer, and either may change while a node runs.
Now and then a few steps are tried with a neighbouring number, more rarely each time that it did not pay. Knows numbers
and durations only.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

RECENT_STEPS = 7
TRIAL_STEPS = 3
FIRST_WAIT = 32  # steps until something else is tried
LONGEST_WAIT = 2_048
BETTER = 0.93  # of a step's time: less is not worth the change
SUDDEN = 3.0  # times a usual step: fewer threads are tried at once


@dataclass
class _Trial:
    place: int
    seconds: list[float] = field(default_factory=list)


class _Steps:
    """Steps of about the same size."""

    def __init__(self, places: int, place: int) -> None:
        self._last, self.place = places - 1, place
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._wait = self._left = FIRST_WAIT
        self._upwards = True
        self._trial: _Trial | None = None

    @property
    def now(self) -> int:
        return self.place if self._trial is None else self._trial.place

    def note(self, seconds: float) -> None:
        usual = statistics.median(self._recent) if len(self._recent) == RECENT_STEPS else None
        if self._trial is not None and usual is not None:
            self._judge(self._trial, seconds, usual)
            return
        self._recent.append(seconds)
        self._left -= 1
        if usual is None:
            return
        if seconds > SUDDEN * usual and self.place:
            self._trial = _Trial(self.place - 1)
        elif self._left <= 0:
            self._begin_trial()

    def _begin_trial(self) -> None:
        if not self.place or self.place == self._last:
            self._upwards = not self.place
        else:
            self._upwards = not self._upwards
        self._trial = _Trial(self.place + (1 if self._upwards else -1))

    def _judge(self, trial: _Trial, seconds: float, usual: float) -> None:
        trial.seconds.append(seconds)
        if seconds <= SUDDEN * usual and len(trial.seconds) < TRIAL_STEPS:
            return
        won = statistics.median(trial.seconds) < BETTER * usual
        if won:
            self.place = trial.place
            self._recent.clear()
        self._wait = FIRST_WAIT if won else min(2 * self._wait, LONGEST_WAIT)
        self._left, self._trial = self._wait, None


class ThreadChoice:
    """For each size of step the number of threads that was fastest of late: powers of two up to `most`, and `most`."""

    def __init__(self, most: int) -> None:
        self._counts = [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]
        self._steps: dict[int, _Steps] = {}  # by the power of two of the answers in a step

    def threads(self, answers: int) -> int:
        """For the next step of so many answers."""
        return self._counts[self._of(answers).now]

    def note(self, answers: int, seconds: float) -> None:
        """A step with `threads(answers)` threads took so long."""
        if len(self._counts) > 1:
            self._of(answers).note(seconds)

    def begin_with(self, answers: int, threads: int) -> None:
        """What a measurement found for steps of so many answers, and for those of more of which nothing is known."""
        self._steps[answers.bit_length()] = _Steps(len(self._counts), self._counts.index(threads))

    def _of(self, answers: int) -> _Steps:
        size = answers.bit_length()
        if size not in self._steps:
            smaller = [known for known in self._steps if known < size]
            place = self._steps[max(smaller)].place if smaller else 0
            self._steps[size] = _Steps(len(self._counts), place)
        return self._steps[size]
