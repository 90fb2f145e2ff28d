"""A query from an HTTP request to the node, and its events back.

Rule: queries are bounded in number, paid by whom the client's key says, and counted once, whatever becomes of them. An
answer that does not end with `Completed` is an error. A client that leaves cancels its query.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial

from aiohttp import web

from node.answers import AnswerEvent, Bytes, Completed, Delta, Failed, Question, Routed
from node.gateway.bridge import Bridge, NodeStopping
from node.gateway.callers import Caller
from node.gateway.failures import ApiError, from_code
from node.gateway.guards import Admission, Guards
from node.gateway.metrics import Metrics
from node.gateway.ports import Answers
from protocol.errors import ErrorCode
from protocol.ids import BUILT_IN_REALMS, peer_id

KEEP_ALIVE_SECONDS = 10.0  # of silence, after which a stream says that it lives


class Asking:
    """One query on its way. `completed` is set by its last event."""

    def __init__(
        self, question: Question, events: AsyncIterator[AnswerEvent], metrics: Metrics, admission: Admission
    ) -> None:
        self.question = question
        self._admission = admission
        self.routed: Routed | None = None
        self.completed: Completed | None = None
        self._events = events
        self._metrics = metrics
        self._began = time.monotonic()
        self._first_at = 0.0
        self._outcome = "client_gone"

    async def events(self) -> AsyncGenerator[AnswerEvent, None]:
        """Up to and with `Completed`. Raises `ApiError` for any other end."""
        while True:
            try:
                item = await anext(self._events, None)
            except Exception:
                self._outcome = "internal"
                raise
            if item is None:
                raise self._failure(None)
            self._note(item)
            yield item
            if isinstance(item, Completed):
                return

    async def events_and_pauses(self, seconds: float = KEEP_ALIVE_SECONDS) -> AsyncGenerator[AnswerEvent | None, None]:
        """The same, and None whenever nothing came for so long."""
        events = self.events()
        following: asyncio.Future[AnswerEvent | None]
        following = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                done, _ = await asyncio.wait((following,), timeout=seconds)
                if not done:
                    yield None
                    continue
                item = following.result()
                if item is None:
                    return
                yield item
                following = asyncio.ensure_future(anext(events, None))
        finally:
            following.cancel()

    def headers(self) -> dict[str, str]:
        """Who answers, where the query stands in the books, and how far its client is from its limits."""
        headers = {"x-mtor-query": self.question.query_id.hex()} | self._admission.headers()
        if self.routed is not None:
            headers["x-mtor-worker"] = peer_id(self.routed.worker)
            headers["x-mtor-queue-position"] = str(self.routed.queue_position)
            headers["x-mtor-wait-ms"] = str(self.routed.wait_ms)
        return headers

    def count(self) -> None:
        """Into the metrics. A realm's name is a client's text unless it is built in."""
        realm = self._realm()
        self._metrics.queries.labels(realm, self._outcome).inc()
        if self._first_at:
            self._metrics.first_token.labels(realm).observe(self._first_at - self._began)
        if self.completed is not None:
            self._metrics.answer.labels(realm).observe(time.monotonic() - self._began)
            self._metrics.tokens.labels(realm, "in").inc(self.completed.units_in)
            self._metrics.tokens.labels(realm, "out").inc(self.completed.units_out)

    def _realm(self) -> str:
        return self.question.realm if self.question.realm in BUILT_IN_REALMS else "other"

    def _note(self, item: AnswerEvent) -> None:
        if isinstance(item, Routed):
            self.routed = item
        if isinstance(item, Delta | Bytes) and not self._first_at:
            self._first_at = time.monotonic()
        if isinstance(item, Completed):
            self._outcome = "completed"
            self.completed = item
        if isinstance(item, Failed):
            raise self._failure(item)

    def _failure(self, failed: Failed | None) -> ApiError:
        if failed is None:
            self._outcome = "internal"
            return ApiError(500, "the answer ended without a last word", code="internal")
        self._outcome = failed.code.name.lower()
        if (
            failed.code is ErrorCode.NO_PEER
            and "offers the model " in failed.message
            and self.question.requirements.model
        ):
            return ApiError(404, failed.message, code="model_not_found", param="model")
        return from_code(failed.code, failed.message, failed.retry_after_ms)


class Asker:
    """Takes queries to the node."""

    def __init__(self, bridge: Bridge, answers: Answers, metrics: Metrics, max_concurrent: int, guards: Guards) -> None:
        self._bridge = bridge
        self._answers = answers
        self._metrics = metrics
        self._max_concurrent = max_concurrent
        self._guards = guards
        self._running = 0

    def ask(self, request: web.Request, question: Question) -> AbstractAsyncContextManager[Asking]:
        """`ask_for` whoever sent this request."""
        return self.ask_for(self._guards.caller(request), question)

    @asynccontextmanager
    async def ask_for(self, caller: Caller, question: Question) -> AsyncIterator[Asking]:
        """A query that runs until the context is left. Raises `ApiError` (401, 403, 429, 503)."""
        if self._running >= self._max_concurrent:
            message = f"{self._running} queries are being answered, which is gateway.max_concurrent; try again soon"
            raise ApiError(503, message, type="overloaded_error", code="overloaded", retry_ms=1_000)
        admission = self._guards.admit(caller, question.realm)
        question = replace(question, payer=admission.caller.payer, charged=admission.charged)
        self._count(1)
        asking: Asking | None = None
        try:
            async with self._bridge.stream(partial(self._answers.answer, question)) as events:
                asking = Asking(question, aiter(events), self._metrics, admission)
                yield asking
        except NodeStopping:
            raise ApiError(
                503, "the node is stopping", type="overloaded_error", code="stopping", retry_ms=5_000
            ) from None
        finally:
            self._count(-1)
            admission.leave()
            if asking is not None:
                asking.count()

    def _count(self, change: int) -> None:
        self._running += change
        self._metrics.running.set(self._running)
