"""Admission: who may use an engine's slots, and when.

Rule: the queue of each model is bounded, paid queries go before free ones, and among equals the requester with
the fewest queries running goes first, so that nobody's burst starves another. What cannot be served is refused early,
with the time to come back: when the queue is full, and when a query's turn would come after its time is up. That time
is what whole answers took, or what the running ones have taken already if that is more. A paid query finds room in a
queue that free ones have filled. The owner of slots and queue; it knows nothing of streams or tokens.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from protocol.errors import ErrorCode, Refused
from protocol.ids import NodeId
from protocol.params import MAX_DEADLINE, SECONDS

FIRST_GUESS_MS = 5 * SECONDS  # an answer's time before one was measured
MEMORY = 0.3  # weight of the newest answer in the average


@dataclass(eq=False)
class Ticket:
    """A place in the queue. `position` is 0 once admitted; `moved` is set when the position changes. One that is not
    `ready` (its pictures are still on their way) lets others pass."""

    requester: NodeId
    paid: bool
    arrived: int
    ready: bool
    position: int = 0
    moved: trio.Event = field(default_factory=trio.Event)
    admitted_at: float = 0.0
    evicted: Refused | None = None  # why it lost its place
    cut_short: bool = False  # cancelled or failed: its time says nothing of an answer's

    @property
    def admitted(self) -> bool:
        """True once it holds a slot."""
        return self.position == 0


class Scheduler:
    """Slots and queue of one model."""

    def __init__(
        self,
        slots: int,
        queue: int,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` is called when a query came or left."""
        self._on_change = on_change
        self._slots = slots
        self._queue = queue
        self._clock = clock
        self._running: list[Ticket] = []
        self._waiting: list[Ticket] = []
        self._arrivals = 0
        self._answer_ms = float(FIRST_GUESS_MS)
        self._closed = False
        self._retired: Refused | None = None

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Queries that wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def place(
        self, requester: NodeId, *, paid: bool, time_left_ms: int = MAX_DEADLINE, ready: bool = True
    ) -> AsyncIterator[Ticket]:
        """Take a place; leaving the context gives it back. Raises `Refused` (OVERLOADED) when there is none, or none
        that comes up within `time_left_ms`. The caller waits until `ticket.admitted` (see `wait_moved`)."""
        ticket = self._enter(requester, paid, ready)
        try:
            self._refuse_too_late(ticket, time_left_ms)
            yield ticket
        except BaseException:
            ticket.cut_short = True
            raise
        finally:
            self._leave(ticket)

    async def wait_moved(self, ticket: Ticket) -> None:
        """Return when the ticket's position has changed. Raises `Refused` (OVERLOADED) if it lost its place."""
        await ticket.moved.wait()
        if ticket.evicted is not None:
            raise ticket.evicted

    def make_ready(self, ticket: Ticket) -> None:
        """All that the query needs is here."""
        ticket.ready = True
        self._advance()

    # --- the gate: a model that is not loaded keeps its queue ----------------------------------------

    def open(self) -> None:
        """Admit queries."""
        self._closed = False
        self._advance()

    def close(self) -> None:
        """Admit nobody for now. Those who wait keep their places, those who run are left alone."""
        self._closed = True

    def turn_away(self, why: str, retry_after_ms: int, code: ErrorCode = ErrorCode.OVERLOADED) -> None:
        """Refuse all that wait: their turn would not come."""
        for ticket in list(self._waiting):
            self._evict(ticket, Refused(code, why, retry_after_ms))

    def retire(self, why: str, code: ErrorCode = ErrorCode.NO_SUCH_MODEL) -> None:
        """For good: refuse all that wait and all that come. Those who run are left alone."""
        self.close()
        self._retired = Refused(code, why)
        self.turn_away(why, 0, code)

    @property
    def _may_admit(self) -> bool:
        return not self._closed and len(self._running) < self._slots

    def wait_estimate_ms(self, position: int) -> int:
        """The expected wait at a position in the queue, from recent answers and the running ones."""
        return round(self._expected_ms() * position / self._slots)

    def _expected_ms(self) -> float:
        """What an answer takes. Each that runs takes the average, or its age if it is older than that: the mean, so
        that one long answer among many short ones does not speak for all."""
        ages = [self._age_ms(ticket) for ticket in self._running]
        return sum(max(self._answer_ms, age) for age in ages) / len(ages) if ages else self._answer_ms

    def _age_ms(self, ticket: Ticket) -> float:
        return (self._clock() - ticket.admitted_at) * 1_000

    def _enter(self, requester: NodeId, paid: bool, ready: bool) -> Ticket:
        if self._retired is not None:
            raise self._retired
        self._arrivals += 1
        ticket = Ticket(requester, paid, self._arrivals, ready, position=len(self._waiting) + 1)
        if not (ready and self._may_admit):
            self._make_room(ticket)
        self._waiting.append(ticket)
        self._advance()
        self._on_change()
        return ticket

    def _make_room(self, newcomer: Ticket) -> None:
        """Raises `Refused` (OVERLOADED) if the queue has no place for a newcomer."""
        waiting_too = sum(ticket.requester == newcomer.requester for ticket in self._waiting)
        if self._queue > 1 and waiting_too >= max(1, self._queue * 3 // 4):
            raise self._overloaded(f"this requester's share of the queue is full ({waiting_too} waiting)")
        if len(self._waiting) < self._queue:
            return
        free = [ticket for ticket in self._waiting if not ticket.paid]
        if not (newcomer.paid and free):
            raise self._overloaded(f"the queue is full ({len(self._waiting)} waiting)")
        self._evict(max(free, key=self._order), self._overloaded("paid queries took the places of free ones"))

    def _evict(self, ticket: Ticket, why: Refused) -> None:
        self._waiting.remove(ticket)
        ticket.evicted = why
        ticket.moved.set()

    def _refuse_too_late(self, ticket: Ticket, time_left_ms: int) -> None:
        wait = self.wait_estimate_ms(ticket.position)
        if wait > time_left_ms:
            why = f"it would be this query's turn in {wait / 1_000:.0f} s, when its time is up"
            raise self._overloaded(why, ticket.position)

    def _overloaded(self, why: str, position: int = 1) -> Refused:
        """`position` is whose turn to wait for: by default the next slot's, which makes room in the queue."""
        return Refused(ErrorCode.OVERLOADED, why, max(500, self.wait_estimate_ms(position)))

    def _leave(self, ticket: Ticket) -> None:
        if ticket in self._running:
            self._running.remove(ticket)
            if not ticket.cut_short:
                self._answer_ms = (1 - MEMORY) * self._answer_ms + MEMORY * self._age_ms(ticket)
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
        self._advance()
        self._on_change()

    def _advance(self) -> None:
        """Fill free slots, then tell everybody whose position changed."""
        while self._may_admit and (ready := [ticket for ticket in self._waiting if ticket.ready]):
            following = min(ready, key=self._order)
            self._waiting.remove(following)
            self._running.append(following)
            following.admitted_at = self._clock()
            _move(following, 0)
        for index, ticket in enumerate(sorted(self._waiting, key=self._order), start=1):
            _move(ticket, index)

    def _order(self, ticket: Ticket) -> tuple[bool, int, int]:
        running = sum(other.requester == ticket.requester for other in self._running)
        return (not ticket.paid, running, ticket.arrived)


def _move(ticket: Ticket, position: int) -> None:
    if ticket.position != position:
        ticket.position = position
        moved, ticket.moved = ticket.moved, trio.Event()
        moved.set()
