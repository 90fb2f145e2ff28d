"""Queries that outlive their socket: each is followed by a task of its own into a log of numbered events, which one
reader at a time reads from any number on.

Rule: one owner of them all. A query reads on only while there is room for what it reads: in its own log, in its
client's share and over all. What was delivered makes room, oldest first; what was not never does, so a reader that is
slow or away stops its query, and not the node's memory. A query whose client left is cancelled after a while, a
finished one is forgotten after a while, and exactly one last event ends each.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass

from node.answers import AnswerEvent, Completed, Question, Routed, Waiting
from node.gateway.asking import Asker
from node.gateway.callers import Caller
from node.gateway.failures import ApiError
from node.gateway.frames import Json, accepted, cancelled, encoded, failed, happened
from protocol.params import MIB

log = logging.getLogger("mtor.gateway")

ABSENT_SECONDS = 60.0  # for a client that left to come back: a page that is reloaded, a phone that changes networks
KEPT_SECONDS = 120.0  # after a query's end
LOG_BYTES = 4 * MIB  # of one query: the longest text, a large picture, a minute of speech
EVENT_BYTES = 200  # what an event costs beside its text
CLIENT_SHARE = 2  # one client has one half of all bytes at most
CLIENT_QUERIES = 128  # running or kept
ALL_QUERIES = 1_024


class TakenOver(Exception):
    """Somebody else reads the query now."""


@dataclass(frozen=True, slots=True)
class Event:
    """One numbered event, encoded, without the name that its reader has for the query."""

    seq: int
    body: bytes
    last: bool

    @property
    def size(self) -> int:
        """What it takes of the room."""
        return len(self.body) + EVENT_BYTES


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of logs, and how many of them may go if others need room."""

    size: int = 0
    spare: int = 0


class Bell:
    """Wakes everybody who waits for it now."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake them."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait(self) -> None:
        """Until the next ring."""
        await self._rung.wait()


class Query:
    """One of them: its log and who reads it."""

    def __init__(self, registry: Ongoing, caller: Caller, question: Question) -> None:
        self.id = question.query_id.hex()
        self.client = caller.client
        self.ended_at: float | None = None
        self.size = 0
        self.changed = Bell()  # a new event, or another reader
        self._registry = registry
        self._events: deque[Event] = deque()
        self._latest = 0
        self._delivered = 0  # up to this event
        self._delivered_size = 0
        self._counted = Room()
        self._reader: Reader | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._end: Json = cancelled()  # what a cancelled task means
        self._add(accepted(self.id))
        self._task = asyncio.get_running_loop().create_task(self._follow(caller, question))
        self._task.add_done_callback(self._finish)

    @property
    def read(self) -> bool:
        """True while somebody reads it."""
        return self._reader is not None

    @property
    def idle(self) -> bool:
        """True if it is kept for who may come back, and nothing more."""
        return self.ended_at is not None and not self.read

    @property
    def empty(self) -> bool:
        """True if nothing is kept."""
        return not self._events

    def cancel(self, end: Json | None = None) -> None:
        """End it; `end` says why if it was not the client's wish."""
        if self.ended_at is None:
            self._end = end or self._end
            self._task.cancel()

    def attach(self, after: int) -> Reader:
        """A new reader; the one before is told that it is none any more. Raises `ApiError`."""
        oldest = self._events[0].seq if self._events else self._latest + 1
        if after > self._latest:
            raise ApiError(400, f"after: this query has had {self._latest} events", code="invalid_value", param="after")
        if after < oldest - 1:
            message = f"events up to {oldest - 1} are no longer kept; resume with after = {oldest - 1}, or ask again"
            raise ApiError(410, message, code="events_gone", param="after")
        self._reader = Reader(self, after)
        self._delivered = after
        self._delivered_size = sum(event.size for event in self._events if event.seq <= after)
        self._count()
        self.changed.ring()
        self._set_timer()
        return self._reader

    def detach(self, reader: Reader) -> None:
        """The reader leaves; nothing happens if it was none any more."""
        if self._reader is reader:
            self._reader = None
            self._count()
            self._set_timer()

    def reads(self, reader: Reader) -> bool:
        """True while this is the one."""
        return self._reader is reader

    def delivered(self, event: Event) -> None:
        """The reader has handed on everything up to this one."""
        self._delivered = event.seq
        self._delivered_size += event.size
        self._count()

    def following(self, seq: int) -> Event | None:
        """The event after `seq`, if there is one yet."""
        return self._events[seq + 1 - self._events[0].seq] if seq < self._latest else None

    def make_room(self, enough: int) -> int:
        """Drop what was delivered, oldest first, until so many bytes are free; how many became free."""
        freed = 0
        while freed < enough and self._events and self._events[0].seq <= self._delivered:
            freed += self._events.popleft().size
        if freed:
            self.size -= freed
            self._delivered_size -= freed
            self._count()
        return freed

    def forget(self) -> None:
        """Give all back."""
        self._events.clear()
        self.size = 0
        self._count()
        if self._timer is not None:
            self._timer.cancel()

    # --- the task ------------------------------------------------------------------------------------

    async def _follow(self, caller: Caller, question: Question) -> Json:
        """The events up to the last, which is handed back. Raises `ApiError`."""
        standing: AnswerEvent | None = None
        async with self._registry.asker.ask_as(caller, question) as asking, aclosing(asking.events()) as events:
            async for item in events:
                if isinstance(item, Completed):
                    return happened(item)
                if isinstance(item, Routed | Waiting):
                    if item == standing:
                        continue
                    standing = item
                await self._append(happened(item))
        raise AssertionError("an answer ends with Completed or an error")

    async def _append(self, told: Json) -> None:
        event = self._event(told)
        while not self._registry.has_room(self, event.size):
            await self._registry.freed.wait()
        self._keep(event)

    def _finish(self, task: asyncio.Task[Json]) -> None:
        """The last event, which has room always: there is one for each query."""
        self._add(self._end if task.cancelled() else _last_word(self.id, task), last=True)
        self.ended_at = asyncio.get_running_loop().time()
        self._count()
        self._set_timer()

    def _add(self, told: Json, *, last: bool = False) -> None:
        self._keep(self._event(told, last=last))

    def _event(self, told: Json, *, last: bool = False) -> Event:
        seq = self._latest + 1
        return Event(seq, encoded({"seq": seq} | told), last)

    def _keep(self, event: Event) -> None:
        self._events.append(event)
        self._latest = event.seq
        self.size += event.size
        self._count()
        self.changed.ring()

    def _count(self) -> None:
        """Tell the registry what became of the room that this one takes."""
        now = Room(self.size, self.size if self.idle else self._delivered_size)
        self._registry.count(self.client, now.size - self._counted.size, now.spare - self._counted.spare)
        self._counted = now

    def _set_timer(self) -> None:
        """What happens if nobody reads it for long."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        if self.read:
            return
        if self.ended_at is None:
            self._timer = loop.call_later(ABSENT_SECONDS, self.cancel)
        else:
            self._timer = loop.call_at(self.ended_at + KEPT_SECONDS, self._registry.forget, self)


class Reader:
    """Who reads a query now: an asynchronous iterator. Whoever asks for the next event has handed on the one before."""

    def __init__(self, query: Query, after: int) -> None:
        self.query = query
        self._after = after
        self._last: Event | None = None  # handed out

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> Event:
        """Events up to the last. Raises `TakenOver`."""
        while True:
            if not self.query.reads(self):
                raise TakenOver
            if self._last is not None:
                self.query.delivered(self._last)
                self._last = None
            event = self.query.following(self._after)
            if event is not None:
                self._last, self._after = event, event.seq
                return event
            if self.query.ended_at is not None:
                raise StopAsyncIteration
            await self.query.changed.wait()

    def leave(self) -> None:
        """Read no more; the query goes on for a while."""
        self.query.detach(self)


class Ongoing:
    """All of them."""

    def __init__(self, asker: Asker, max_bytes: int) -> None:
        """`max_bytes`: of all logs together."""
        self.asker = asker
        self.freed = Bell()  # there may be room again
        self._max_bytes = max_bytes
        self._queries: dict[str, Query] = {}  # by id, oldest first
        self._rooms: dict[str | None, Room] = {}  # by client; None: of all together
        self._stopped = False

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._room(None).size

    def start(self, caller: Caller, question: Question) -> Reader:
        """Ask. Raises `ApiError` (429, 503)."""
        if self._stopped:
            raise _stopping()
        self._refuse_too_many(caller.client)
        query = Query(self, caller, question)
        self._queries[query.id] = query
        log.debug("query %s was asked over a socket", query.id)
        return query.attach(0)

    def resume(self, caller: Caller, query_id: str, after: int) -> Reader:
        """Read a query of the same client's from somewhere else, or again. Raises `ApiError`."""
        query = self._queries.get(query_id)
        if query is None or query.client != caller.client:
            message = f"there is no such query: one is kept {KEPT_SECONDS:.0f} s after its end; ask again"
            raise ApiError(404, message, code="no_such_query", param="query")
        log.debug("query %s is read from event %d on", query.id, after + 1)
        return query.attach(after)

    def stop(self) -> None:
        """The node ends: a last word for all."""
        self._stopped = True
        for query in self._queries.values():
            query.cancel(failed(_stopping()))

    # --- called by the queries -----------------------------------------------------------------------

    def has_room(self, query: Query, size: int) -> bool:
        """True if the query may keep so much more. One that keeps nothing always may, or nothing would move on."""
        query.make_room(query.size + size - LOG_BYTES)
        fits = query.size + size <= LOG_BYTES
        if fits:
            for whose, most in ((query.client, self._max_bytes // CLIENT_SHARE), (None, self._max_bytes)):
                self._make_room(whose, self._room(whose).size + size - most)
                fits = fits and self._room(whose).size + size <= most
        return fits or query.empty

    def count(self, client: str, size: int, spare: int) -> None:
        """A log grew, shrank or was read."""
        for whose in (client, None):
            room = self._room(whose)
            self._rooms[whose] = Room(room.size + size, room.spare + spare)
        if not self._rooms[client].size:
            del self._rooms[client]
        if size < 0 or spare > 0:
            self.freed.ring()

    def forget(self, query: Query) -> None:
        """Its time is up."""
        del self._queries[query.id]
        query.forget()

    # --- room ----------------------------------------------------------------------------------------

    def _room(self, whose: str | None) -> Room:
        return self._rooms.get(whose, Room())

    def _make_room(self, whose: str | None, enough: int) -> None:
        """Free so many bytes, if so many can be: of what is kept for who may come back first, then of what was
        delivered, of the largest first."""
        if enough <= 0 or not self._room(whose).spare:
            return
        for query in list(self._of(whose)):
            if enough > 0 and query.idle:
                enough -= query.size
                self.forget(query)
        for query in sorted(self._of(whose), key=lambda each: -each.size):
            enough -= query.make_room(enough)

    def _of(self, client: str | None) -> Iterator[Query]:
        return (query for query in self._queries.values() if client is None or query.client == client)

    def _refuse_too_many(self, client: str) -> None:
        for whose, most in ((client, CLIENT_QUERIES), (None, ALL_QUERIES)):
            queries = list(self._of(whose))
            if len(queries) < most:
                continue
            idle = next((query for query in queries if query.idle), None)
            if idle is None:
                message = f"{len(queries)} queries over sockets are running or being read; end some of them first"
                raise ApiError(429, message, type="rate_limit_error", code="too_many_queries", retry_ms=1_000)
            self.forget(idle)


def _last_word(query_id: str, task: asyncio.Task[Json]) -> Json:
    """What ended the task, for the client."""
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, ApiError):
        return failed(error)
    log.error("query %s failed", query_id, exc_info=error)
    return failed(ApiError(500, "the answer ended without a last word", code="internal"))


def _stopping() -> ApiError:
    return ApiError(503, "the node is stopping", type="overloaded_error", code="stopping", retry_ms=5_000)
