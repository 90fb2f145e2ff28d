"""`/v1/chat/completions`: a query in, one answer out, streamed or whole.

Rule: a broken answer never looks like a whole one. Until the first byte is out an error is an HTTP status; after it, it
is an error frame in the stream, and `[DONE]` is sent only after `Completed`. A client that leaves cancels its query.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

from aiohttp import web

from node.answers import AnswerEvent, Completed, Delta, Failed, Routed
from node.gateway.bridge import Bridge, NodeStopping
from node.gateway.failures import ApiError, from_code
from node.gateway.metrics import Metrics
from node.gateway.openai import DONE_EVENT, Asked, Shapes, event, facts, read_chat_request
from node.gateway.ports import Answers
from protocol.errors import ErrorCode
from protocol.ids import NodeId, peer_id

log = logging.getLogger("mtor.gateway")

Payer = Callable[[web.Request], NodeId | None]

KEEP_ALIVE_SECONDS = 10.0  # a comment line while there is no text, so that proxies do not hang up


class ChatRoutes:
    """Handlers of the chat route."""

    def __init__(self, bridge: Bridge, answers: Answers, metrics: Metrics, max_concurrent: int, payer: Payer) -> None:
        """`payer` says which sub-account pays for a client's queries, if one does."""
        self._payer = payer
        self._bridge = bridge
        self._answers = answers
        self._metrics = metrics
        self._max_concurrent = max_concurrent
        self._running = 0

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        app.router.add_post("/v1/chat/completions", self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One query."""
        asked = read_chat_request(await request.read())
        asked = replace(asked, question=replace(asked.question, payer=self._payer(request)))
        if self._running >= self._max_concurrent:
            message = f"{self._running} queries are being answered, which is gateway.max_concurrent; try again soon"
            raise ApiError(503, message, type="overloaded_error", code="overloaded", retry_ms=1_000)
        self._running += 1
        self._metrics.running.set(self._running)
        answer = _Answer(request, asked, self._metrics)
        try:
            async with self._bridge.stream(partial(self._answers.answer, asked.question)) as events:
                return await answer.send(aiter(events))
        except NodeStopping:
            raise ApiError(
                503, "the node is stopping", type="overloaded_error", code="stopping", retry_ms=5_000
            ) from None
        finally:
            self._running -= 1
            self._metrics.running.set(self._running)
            answer.count()


class _Answer:
    """One answer on its way to a client."""

    def __init__(self, request: web.Request, asked: Asked, metrics: Metrics) -> None:
        self._request = request
        self._asked = asked
        self._metrics = metrics
        self._shapes = Shapes(asked)
        self._began = time.monotonic()
        self._first_at = 0.0
        self._outcome = "client_gone"
        self._routed: Routed | None = None
        self._told: Routed | None = None  # the route that the client knows

    async def send(self, events: AsyncIterator[AnswerEvent]) -> web.StreamResponse:
        """Follow the events to the end."""
        if self._asked.stream:
            return await self._send_stream(events)
        return await self._send_whole(events)

    def count(self) -> None:
        """Into the metrics."""
        realm = self._asked.question.realm
        self._metrics.queries.labels(realm, self._outcome).inc()
        if self._first_at:
            self._metrics.first_token.labels(realm).observe(self._first_at - self._began)
        if self._outcome == "completed":
            self._metrics.answer.labels(realm).observe(time.monotonic() - self._began)

    # --- whole -------------------------------------------------------------------------------------

    async def _send_whole(self, events: AsyncIterator[AnswerEvent]) -> web.Response:
        parts: list[str] = []
        async for item in events:
            self._note(item)
            if isinstance(item, Delta):
                parts.append(item.text)
            if isinstance(item, Completed):
                body = self._shapes.whole("".join(parts), item)
                return web.json_response(body, headers=self._headers())
        raise self._failure(None)

    # --- streamed ----------------------------------------------------------------------------------

    async def _send_stream(self, events: AsyncIterator[AnswerEvent]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        following = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                done, _ = await asyncio.wait((following,), timeout=KEEP_ALIVE_SECONDS)
                if not done:
                    await self._prepare(response)
                    await response.write(b": waiting\n\n")
                    continue
                item = following.result()
                self._note_or_fail(item, response)
                if isinstance(item, Delta):
                    await self._write_text(response, item)
                if isinstance(item, Completed):
                    await self._write_end(response, item)
                    return response
                following = asyncio.ensure_future(anext(events, None))
        except ConnectionError:
            raise  # the client went away: there is nobody to tell
        except Exception as error:
            if not response.prepared:
                raise
            await response.write(event(self._in_stream(error).body()))
            await response.write_eof()
            return response
        finally:
            following.cancel()

    def _in_stream(self, error: Exception) -> ApiError:
        """What the client is told of a failure when the headers are out already: a second answer would be noise."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, NodeStopping):
            return ApiError(503, "the node is stopping", code="stopping")
        log.error("an answer failed", exc_info=error)
        return self._failure(None)

    def _note_or_fail(self, item: AnswerEvent | None, response: web.StreamResponse) -> None:
        """Keep what happened; an end without `Completed` is an error. Raises `ApiError`."""
        if item is None:
            raise self._failure(None)
        self._note(item)

    async def _prepare(self, response: web.StreamResponse) -> None:
        """Send the headers and the first chunk, once."""
        if response.prepared:
            return
        response.headers.update(self._headers())
        await response.prepare(self._request)
        await response.write(event(self._shapes.chunk({"role": "assistant", "content": ""}) | self._route()))

    async def _write_text(self, response: web.StreamResponse, delta: Delta) -> None:
        await self._prepare(response)
        await response.write(event(self._shapes.chunk({"content": delta.text}) | self._route()))

    async def _write_end(self, response: web.StreamResponse, done: Completed) -> None:
        await self._prepare(response)
        last = self._shapes.chunk({}, done.finish, mtor=facts(done))
        tail = event(last)
        if self._asked.include_usage:
            tail += event(self._shapes.usage_chunk(done))
        await response.write(tail + DONE_EVENT)
        await response.write_eof()

    # --- both --------------------------------------------------------------------------------------

    def _note(self, item: AnswerEvent) -> None:
        if isinstance(item, Routed):
            self._routed = item
            self._shapes.model = self._shapes.model or item.model
        if isinstance(item, Delta) and not self._first_at:
            self._first_at = time.monotonic()
        if isinstance(item, Completed):
            self._outcome = "completed"
            realm = self._asked.question.realm
            self._metrics.tokens.labels(realm, "in").inc(item.units_in)
            self._metrics.tokens.labels(realm, "out").inc(item.units_out)
        if isinstance(item, Failed):
            raise self._failure(item)

    def _failure(self, failed: Failed | None) -> ApiError:
        if failed is None:
            self._outcome = "internal"
            return ApiError(500, "the answer ended without a last word", code="internal")
        self._outcome = failed.code.name.lower()
        if failed.code is ErrorCode.NO_PEER and "model " in failed.message and self._asked.question.requirements.model:
            return ApiError(404, failed.message, code="model_not_found", param="model")
        return from_code(failed.code, failed.message, failed.retry_after_ms)

    def _route(self) -> dict[str, object]:
        """The `mtor` object when the worker has changed; nothing otherwise."""
        routed = self._routed
        if routed is None or (self._told is not None and self._told.worker == routed.worker):
            return {}
        self._told = routed
        return {"mtor": {"worker": peer_id(routed.worker), "attempt": routed.attempt}}

    def _headers(self) -> dict[str, str]:
        headers = {"x-mtor-query": self._asked.question.query_id.hex()}
        if self._routed is not None:
            headers["x-mtor-worker"] = peer_id(self._routed.worker)
            headers["x-mtor-queue-position"] = str(self._routed.queue_position)
        return headers
