"""Admission: who may use an engine's slots, and when.

Rule: the queue of each model is bounded, paid queries go before free ones, and among equals the requester with
the fewest queries running goes first, so that nobody's burst starves another. Overload is refused early, with the
time to come back. The owner of slots and queue; it knows nothing of streams or tokens.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from protocol.errors import ErrorCode, Refused
from protocol.ids import NodeId
from protocol.params import SECONDS

FIRST_GUESS_MS = 5 * SECONDS  # an answer's time before one was measured
MEMORY = 0.3  # weight of the newest answer in the average


@dataclass(eq=False)
class Ticket:
    """A place in the queue. `position` is 0 once admitted; `moved` is set when the position changes."""

    requester: NodeId
    paid: bool
    arrived: int
    position: int = 0
    moved: trio.Event = field(default_factory=trio.Event)

    @property
    def admitted(self) -> bool:
        """True once it holds a slot."""
        return self.position == 0


class Scheduler:
    """Slots and queue of one model."""

    def __init__(self, slots: int, queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots = slots
        self._queue = queue
        self._clock = clock
        self._running: list[Ticket] = []
        self._waiting: list[Ticket] = []
        self._arrivals = 0
        self._answer_ms = float(FIRST_GUESS_MS)

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Queries that wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def place(self, requester: NodeId, *, paid: bool) -> AsyncIterator[Ticket]:
        """Take a place; leaving the context gives it back. Raises `Refused` (OVERLOADED) when there is none.
        The caller waits until `ticket.admitted` (see `wait_moved`)."""
        ticket = self._enter(requester, paid)
        began = self._clock()
        try:
            yield ticket
        finally:
            self._leave(ticket, (self._clock() - began) * 1_000)

    async def wait_moved(self, ticket: Ticket) -> None:
        """Return when the ticket's position has changed."""
        await ticket.moved.wait()

    def wait_estimate_ms(self, position: int) -> int:
        """The expected wait at a position in the queue, from recent answers."""
        return round(self._answer_ms * position / self._slots)

    def _enter(self, requester: NodeId, paid: bool) -> Ticket:
        waiting_too = sum(ticket.requester == requester for ticket in self._waiting)
        full = len(self._waiting) >= self._queue
        greedy = self._queue > 1 and waiting_too >= max(1, self._queue * 3 // 4)
        if len(self._running) >= self._slots and (full or greedy):
            whose = "this requester's share of the queue" if greedy and not full else "the queue"
            retry = max(500, self.wait_estimate_ms(1))
            raise Refused(ErrorCode.OVERLOADED, f"{whose} is full ({len(self._waiting)} waiting)", retry)
        self._arrivals += 1
        ticket = Ticket(requester, paid, self._arrivals, position=len(self._waiting) + 1)
        self._waiting.append(ticket)
        self._advance()
        return ticket

    def _leave(self, ticket: Ticket, took_ms: float) -> None:
        if ticket in self._running:
            self._running.remove(ticket)
            self._answer_ms = (1 - MEMORY) * self._answer_ms + MEMORY * took_ms
        else:
            self._waiting.remove(ticket)
        self._advance()

    def _advance(self) -> None:
        """Fill free slots, then tell everybody whose position changed."""
        while self._waiting and len(self._running) < self._slots:
            following = min(self._waiting, key=self._order)
            self._waiting.remove(following)
            self._running.append(following)
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
