"""Is a server there? Asked again and again, and at once when a query found it failing.

Rule: a server that is down costs its own offers and nothing else. It is asked again after 1 s, then 2, 4 … 60 s, each
pause a little longer or shorter so that many nodes do not ask together, and it is back with its first good answer.
The log says when it goes and when it comes, not each time it was asked.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from node.engines.outer.http import OuterError

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.outer")

EVERY_SECONDS = 15.0  # while all is well
FIRST_PAUSE_SECONDS = 1.0
MOST_PAUSE_SECONDS = 60.0
JITTER = 0.2  # of a pause, to either side
CHECK_SECONDS = 10.0  # for one answer


class Health:
    """The state of one server. `check` raises `OuterError` where something is wrong."""

    def __init__(self, name: str, check: Callable[[], Awaitable[None]], chance: random.Random | None = None) -> None:
        self._name = name
        self._check = check
        self._chance = chance or random.Random()
        self._missed = 0  # answers, one after the other
        self._next_at = 0.0  # trio's clock
        self._suspected = trio.Event()
        self.ready = False
        self.problem = "it was not asked yet"  # for the operator; empty while all is well
        self.failures = 0  # times that it went away

    def retry_after_ms(self) -> int:
        """When coming back may help."""
        return max(1_000, round((self._next_at - trio.current_time()) * 1_000))

    def suspect(self) -> None:
        """A query found it failing: ask now."""
        self._suspected.set()

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask for ever; started with the first answer or failure."""
        while True:
            await self._ask()
            pause = self._pause() * self._chance.uniform(1 - JITTER, 1 + JITTER)
            self._next_at = trio.current_time() + pause
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            self._suspected = trio.Event()
            with trio.move_on_after(pause):
                await self._suspected.wait()
                await trio.sleep(FIRST_PAUSE_SECONDS)  # many queries fail at once

    def _pause(self) -> float:
        if self.ready:
            return EVERY_SECONDS
        return min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._missed - 1, 10), MOST_PAUSE_SECONDS)

    async def _ask(self) -> None:
        try:
            with trio.fail_after(CHECK_SECONDS):
                await self._check()
        except OuterError as error:
            self._down(error.detail)
        except trio.TooSlowError:
            self._down(f"no answer in {CHECK_SECONDS:.0f} s")
        else:
            self._up()

    def _up(self) -> None:
        if not self.ready:
            log.info("%s answers", self._name)
        self.ready, self.problem, self._missed = True, "", 0

    def _down(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("%s is not used: %s", self._name, problem)
        self._missed += 1
        self.failures += int(self.ready)
        self.ready, self.problem = False, problem
