"""`/v1/chat/completions`: a query in, one answer out, streamed or whole.

Rule: a broken answer never looks like a whole one: the finish reason and `[DONE]` are sent only after `Completed`.
"""

from __future__ import annotations

from contextlib import aclosing

from aiohttp import web

from node.answers import AnswerEvent, Completed, Delta, Routed
from node.gateway.answer_shapes import ChoicesAnswer
from node.gateway.asking import Asker, Asking
from node.gateway.openai import Asked, ChatCompletionRequest, Shapes, facts, read_chat_request
from node.gateway.routes import EVENTS, Answered, Route
from node.gateway.sse import DONE_EVENT, EventStream, event
from node.gateway.standing import Standing


class ChatRoutes:
    """Handlers of the chat route."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    def routes(self) -> tuple[Route, ...]:
        """See `Routes`."""
        answers = (Answered(shape=ChoicesAnswer), Answered(EVENTS))
        path, summary = "/v1/chat/completions", "The next message of a conversation, with pictures in it or without."
        return (Route("POST", path, self.handle, "openai", summary, answers, takes=ChatCompletionRequest, asks=True),)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One query."""
        asked = read_chat_request(await request.read())
        async with self._asker.ask(request, asked.question) as asking:
            answer = _Streamed(request, asked, asking) if asked.stream else _Whole(asked, asking)
            return await answer.send()


class _Whole:
    """One answer in one piece."""

    def __init__(self, asked: Asked, asking: Asking) -> None:
        self._shapes = Shapes(asked)
        self._asking = asking

    async def send(self) -> web.Response:
        """Follow the events to the end."""
        parts: list[str] = []
        async for item in self._asking.events():
            if isinstance(item, Routed):
                self._shapes.model = self._shapes.model or item.model
            if isinstance(item, Delta):
                parts.append(item.text)
        assert self._asking.completed is not None
        body = self._shapes.whole("".join(parts), self._asking.completed)
        return web.json_response(body, headers=self._asking.headers())


class _Streamed:
    """One answer on its way to a client, piece by piece."""

    def __init__(self, request: web.Request, asked: Asked, asking: Asking) -> None:
        self._asked = asked
        self._asking = asking
        self._shapes = Shapes(asked)
        self._stream = EventStream(request, asking.headers)
        self._standing = Standing()

    async def send(self) -> web.StreamResponse:
        """Follow the events to the end."""
        return await self._stream.run(self._follow)

    async def _follow(self) -> None:
        async with aclosing(self._asking.events_and_pauses()) as events:
            async for item in events:
                await self._take(item)

    async def _take(self, item: AnswerEvent | None) -> None:
        if isinstance(item, Routed):
            self._shapes.model = self._shapes.model or item.model
        if self._standing.note(item, begun=self._stream.begun):
            await self._tell()
        if item is None:
            await self._begin()
            await self._stream.waiting()
        if isinstance(item, Delta):
            await self._begin()
            await self._stream.send(self._shapes.chunk({"content": item.text}) | self._standing.news())
        if isinstance(item, Completed):
            await self._end(item)

    async def _begin(self) -> None:
        """The first chunk, once."""
        if not self._stream.begun:
            await self._stream.send(self._shapes.chunk({"role": "assistant", "content": ""}) | self._standing.news())

    async def _tell(self) -> None:
        """Where the query stands now, in a chunk of its own."""
        await self._begin()
        news = self._standing.news()
        if news:  # it was not in the first chunk
            await self._stream.send(self._shapes.chunk({}) | news)

    async def _end(self, done: Completed) -> None:
        await self._begin()
        tail = event(self._shapes.chunk({}, done.finish, mtor=facts(done)))
        if self._asked.include_usage:
            tail += event(self._shapes.usage_chunk(done))
        await self._stream.write(tail + DONE_EVENT)
