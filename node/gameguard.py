"""The owner comes first: looks once a second whether the machine is needed, and makes the node step aside.

Rule: each sense looks in a task of its own, so that a driver that hangs blinds one of them and delays none. What holds
is decided by `node.guard.decision`; what is to be done is done by the `Aside` port, always to its end, one at a time.
The guard itself never fails: an effect that does is logged and tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio

from node.guard.by_hand import ByHand
from node.guard.decision import Decision, decide, overrule
from node.guard.sense import Reading, Says, Sense
from protocol.params import SECONDS

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.guard")

LOOK_SECONDS = 1.0
STALE_SECONDS = 5.0  # a sense that has not answered for so long is blind
FIRST_LOOK_SECONDS = 2.0  # the node's start waits this long for the first look of all
RETRY_MS = 30 * SECONDS  # what a refused peer is told when nobody knows when the pause ends
MOST_RETRY_MS = 60 * SECONDS  # they stay away for so long even if we are back sooner; our offer tells the rest


class Aside(Protocol):
    """What stepping aside means. Both may be called again when nothing is to be done."""

    async def drain(self, reason: str, retry_after_ms: int) -> None:
        """Refuse new queries, hand over running ones, give all memory of the cards back."""

    async def resume(self) -> None:
        """Serve again."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A sense and what it said last, for the operator."""

    name: str
    reading: Reading


@dataclass(frozen=True, slots=True)
class GuardState:
    """For `mtor status`. Seconds are of now."""

    paused: bool
    why: str
    seconds: int  # since it is so
    until_ms: int | None  # wall clock
    resumes_in_seconds: int | None  # of a pause that nobody asks for any more
    overruled: tuple[str, ...]
    senses: tuple[Seen, ...]


class GameGuard:
    """Watches, decides, acts."""

    def __init__(
        self,
        senses: Sequence[Sense],
        by_hand: ByHand,
        aside: Aside,
        resume_after_seconds: float,
        clock: Callable[[], int],
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """`clock`: Unix milliseconds, for the ends of pauses alone."""
        self._senses = tuple(senses)
        self._by_hand = by_hand
        self._aside = aside
        self._resume_after_ms = round(resume_after_seconds * 1_000)
        self._clock = clock
        self._look_seconds = look_seconds
        self._readings: dict[str, tuple[Reading, float]] = {}
        self._decision = Decision(since_ms=_steady_ms())
        self._looked = trio.Event()
        self._done: tuple[bool, str] = (False, "")  # what was acted on
        self._acting = trio.Lock()

    # --- the service ---------------------------------------------------------------------------------

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch for ever; started when the first look was acted on, so that a node that is started beside a game loads
        nothing."""
        async with trio.open_nursery() as nursery:
            for sense in self._senses:
                nursery.start_soon(self._watch, sense)
            with trio.move_on_after(FIRST_LOOK_SECONDS):
                while len(self._readings) < len(self._senses):
                    await self._next_look()
            await self._act()
            task_status.started()
            while True:
                with trio.move_on_after(self._look_seconds):
                    await self._next_look()
                await self._act()

    @property
    def state(self) -> GuardState:
        """As of now."""
        decision, now = self._decision, _steady_ms()
        quiet = decision.quiet_since_ms
        left = None if quiet is None else max(0, self._resume_after_ms - (now - quiet))
        return GuardState(
            paused=decision.paused,
            why=decision.why,
            seconds=(now - decision.since_ms) // 1_000,
            until_ms=decision.until_ms,
            resumes_in_seconds=None if left is None else -(-left // 1_000),
            overruled=tuple(sorted(decision.overruled)),
            senses=tuple(Seen(name, reading) for name, reading in self._heard().items()),
        )

    async def pause(self, for_seconds: int | None) -> GuardState:
        """`mtor pause`: returns when the node has stepped aside. Raises `OSError` if it cannot be kept."""
        for_ms = None if for_seconds is None else for_seconds * SECONDS
        await trio.to_thread.run_sync(partial(self._by_hand.pause, for_ms))
        await self._act()
        return self.state

    async def resume(self, *, anyway: bool) -> GuardState:
        """`mtor resume`: ends a pause by hand; `anyway` also overrules what else asks now, until it is quiet. Raises
        `OSError` if it cannot be kept."""
        await trio.to_thread.run_sync(self._by_hand.resume)
        if anyway:
            self._decide()
            self._decision = overrule(self._decision)
        await self._act()
        return self.state

    # --- looking -------------------------------------------------------------------------------------

    async def _watch(self, sense: Sense) -> None:
        """One sense, for ever. A look that hangs is left behind in its thread, and no second one is begun beside it."""
        while True:
            # The stubs know an older trio.
            reading = await trio.to_thread.run_sync(_read, sense, abandon_on_cancel=True)  # type: ignore[call-arg]
            self._readings[sense.name] = (reading, time.monotonic())
            looked, self._looked = self._looked, trio.Event()
            looked.set()
            await trio.sleep(self._look_seconds)

    async def _next_look(self) -> None:
        await self._looked.wait()

    def _heard(self) -> dict[str, Reading]:
        """The newest readings; a sense that has not answered for a while is blind."""
        heard = {self._by_hand.name: self._by_hand.read()}
        now = time.monotonic()
        for sense in self._senses:
            reading, at = self._readings.get(sense.name, (Reading(Says.UNKNOWN, "it has not looked yet"), now))
            stale = now - at > STALE_SECONDS + self._look_seconds
            heard[sense.name] = Reading(Says.UNKNOWN, "it does not answer") if stale else reading
        return heard

    # --- deciding and acting -------------------------------------------------------------------------

    def _decide(self) -> None:
        before = self._decision
        self._decision = decide(before, self._heard(), _steady_ms(), self._resume_after_ms)
        if self._decision.paused and not before.paused:
            ends = "; `mtor resume` ends it" if self._by_hand.read().says is Says.PAUSE else ""
            log.info("paused: %s%s", self._decision.why, ends)
        if before.paused and not self._decision.paused:
            log.info("serving again")

    async def _act(self) -> None:
        """Decide, and bring the node there. What was begun is ended, whoever goes away meanwhile."""
        async with self._acting:
            self._decide()
            wanted = (self._decision.paused, self._decision.why)
            if wanted != self._done:
                with trio.CancelScope(shield=True):
                    await self._bring(*wanted)

    async def _bring(self, paused: bool, why: str) -> None:
        try:
            await (self._aside.drain(why, self.retry_after_ms()) if paused else self._aside.resume())
            self._done = (paused, why)
        except Exception:  # the next look tries again; the guard has to live
            log.exception("the node could not %s", "step aside" if paused else "resume")

    def retry_after_ms(self) -> int:
        """When a peer that was refused may ask again."""
        until = self._decision.until_ms
        return RETRY_MS if until is None else min(max(until - self._clock(), SECONDS), MOST_RETRY_MS)


def guard_facts(state: GuardState) -> dict[str, Any]:
    """For `mtor status --json`."""
    return {
        "paused": state.paused,
        "why": state.why,
        "seconds": state.seconds,
        "until_ms": state.until_ms,
        "resumes_in_seconds": state.resumes_in_seconds,
        "overruled": list(state.overruled),
        "senses": [
            {"name": seen.name, "says": seen.reading.says.value, "why": seen.reading.why} for seen in state.senses
        ],
    }


def _read(sense: Sense) -> Reading:
    try:
        return sense.read()
    except Exception as error:  # a sense should not, and the guard goes on if it does
        log.debug("sense %s: %r", sense.name, error)
        return Reading(Says.UNKNOWN, f"it failed: {type(error).__name__}")


def _steady_ms() -> int:
    return time.monotonic_ns() // 1_000_000
