"""A query from a client to the node, and its events back.

Rule: queries are bounded in number, let in by the caller's limits, and paid by whom the caller's key says. An answer
that does not end with `Completed` is an error. A client that leaves cancels its query.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial

from aiohttp import web

from node.answers import AnswerEvent, Completed, Failed, Question, Routed
from node.gateway.bridge import Bridge, JobStream, NodeStopping
from node.gateway.callers import Caller
from node.gateway.failures import ApiError, from_code
from node.gateway.guards import Admission, Guards
from node.gateway.ports import Answers
from node.log_context import client_named, query_named
from protocol.errors import ErrorCode
from protocol.ids import peer_id

QUERY_ID = web.RequestKey("query_id", str)  # of a request that became one
REQUEST_NAME = web.RequestKey("request_name", str)  # the client's own name for a request, if it sent one

KEEP_ALIVE_SECONDS = 10.0  # of silence, after which a stream says that it lives


class Asking:
    """One query on its way. `completed` is set by its last event."""

    def __init__(self, question: Question, events: JobStream[AnswerEvent], admission: Admission) -> None:
        self.question = question
        self.routed: Routed | None = None
        self.completed: Completed | None = None
        self._events = events
        self._admission = admission

    async def events(self) -> AsyncGenerator[AnswerEvent, None]:
        """Up to and with `Completed`. Raises `ApiError` for any other end."""
        while self.completed is None:
            yield await self._next(None)

    async def events_and_pauses(self, seconds: float = KEEP_ALIVE_SECONDS) -> AsyncGenerator[AnswerEvent | None, None]:
        """The same, and None whenever nothing came for so long."""
        while self.completed is None:
            try:
                item = await self._next(seconds)
            except TimeoutError:
                yield None
            else:
                yield item

    def headers(self) -> dict[str, str]:
        """Who answers, where the query stands in the books, and how far the caller is from its limits."""
        headers = {"x-mtor-query": self.question.query_id.hex()} | self._admission.headers()
        if self.routed is not None:
            headers["x-mtor-worker"] = peer_id(self.routed.worker)
            headers["x-mtor-queue-position"] = str(self.routed.queue_position)
            headers["x-mtor-wait-ms"] = str(self.routed.wait_ms)
        return headers

    async def _next(self, patience: float | None) -> AnswerEvent:
        item = await self._events.next(patience)
        if item is None:
            raise ApiError(500, "the answer ended without a last word", code="internal")
        if isinstance(item, Routed):
            self.routed = item
        if isinstance(item, Completed):
            self.completed = item
        if isinstance(item, Failed):
            raise self._failure(item)
        return item

    def _failure(self, failed: Failed) -> ApiError:
        named = self.question.requirements.model
        if failed.code is ErrorCode.NO_PEER and named and "offers the model " in failed.message:
            return ApiError(404, failed.message, code="model_not_found", param="model")
        return from_code(failed.code, failed.message, failed.retry_after_ms)


class Asker:
    """Takes queries to the node."""

    def __init__(self, bridge: Bridge, answers: Answers, max_concurrent: int, guards: Guards) -> None:
        self._bridge = bridge
        self._answers = answers
        self.max_concurrent = max_concurrent
        self._guards = guards
        self._running = 0

    @property
    def running(self) -> int:
        """Queries that are being answered."""
        return self._running

    def ask(self, request: web.Request, question: Question) -> AbstractAsyncContextManager[Asking]:
        """`ask_as` whoever sent this request."""
        request.setdefault(QUERY_ID, question.query_id.hex())
        return self.ask_as(self._guards.caller(request), question, request.get(REQUEST_NAME, ""))

    @asynccontextmanager
    async def ask_as(self, caller: Caller, question: Question, named: str = "") -> AsyncIterator[Asking]:
        """A query that runs until the context is left; `named` is the client's own name for it, for the log. Raises
        `ApiError` (401, 403, 429, 503)."""
        if self._running >= self.max_concurrent:
            message = f"{self._running} queries are being answered, which is gateway.max_concurrent; try again soon"
            raise ApiError(503, message, type="overloaded_error", code="overloaded", retry_ms=1_000)
        admission = self._guards.admit(caller, question.realm)
        question = replace(question, payer=admission.caller.payer, charged=admission.charged)
        self._running += 1
        client = caller.name + (f", request {named}" if named else "")
        try:
            with query_named(question.query_id.hex()), client_named(client):
                async with self._bridge.stream(partial(self._answers.answer, question)) as events:
                    yield Asking(question, events, admission)
        except NodeStopping:
            raise ApiError(
                503, "the node is stopping", type="overloaded_error", code="stopping", retry_ms=5_000
            ) from None
        finally:
            self._running -= 1
            admission.leave()
