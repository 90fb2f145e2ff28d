"""`/v1/chat/completions`: one query a choice in, one answer out, streamed or whole.

Rule: a broken answer never looks like a whole one: a finish reason is sent only after its choice's `Completed`, and
`[DONE]` only after all of them. A choice that fails fails the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing

from aiohttp import web

from node.answers import AnswerEvent, Completed, Delta, Routed, TokenLogprob, ToolCalled
from node.gateway.answer_shapes import ChoicesAnswer
from node.gateway.asking import Asker, Asking
from node.gateway.fetching import Inlined
from node.gateway.openai import Asked, ChatCompletionRequest, Choice, Shapes, call_shape, facts, read_chat_request
from node.gateway.routes import EVENTS, Answered, Route
from node.gateway.sse import DONE_EVENT, EventStream
from node.gateway.standing import Standing


class ChatRoutes:
    """Handlers of the chat route."""

    def __init__(self, asker: Asker, inlined: Inlined | None = None) -> None:
        """`inlined` fetches the pictures that a body names; None: they have to be in it."""
        self._asker = asker
        self._inlined = inlined

    def routes(self) -> tuple[Route, ...]:
        """See `Routes`."""
        answers = (Answered(shape=ChoicesAnswer), Answered(EVENTS))
        path, summary = "/v1/chat/completions", "The next message of a conversation, with pictures in it or without."
        return (Route("POST", path, self.handle, "openai", summary, answers, takes=ChatCompletionRequest, asks=True),)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        body = await request.read()
        asked = read_chat_request(await self._inlined(body) if self._inlined is not None else body)
        async with AsyncExitStack() as stack:
            askings = [
                await stack.enter_async_context(self._asker.ask(request, question)) for question in asked.questions
            ]
            answer = _Streamed(request, asked, askings) if asked.stream else _Whole(asked, askings)
            return await answer.send()


class _Whole:
    """All choices in one piece."""

    def __init__(self, asked: Asked, askings: Sequence[Asking]) -> None:
        self._shapes = Shapes(asked)
        self._askings = askings

    async def send(self) -> web.Response:
        """Follow all events to the end."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._choice(asking)) for asking in self._askings]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        body = self._shapes.whole([task.result() for task in tasks])
        return web.json_response(body, headers=self._askings[0].headers())

    async def _choice(self, asking: Asking) -> Choice:
        parts, calls, logprobs = list[str](), list[ToolCalled](), list[TokenLogprob]()
        async for item in asking.events():
            if isinstance(item, Routed):
                self._shapes.model = self._shapes.model or item.model
            if isinstance(item, Delta):
                parts.append(item.text)
                logprobs += item.logprobs
            if isinstance(item, ToolCalled):
                calls.append(item)
        assert asking.completed is not None
        return Choice("".join(parts), tuple(logprobs), tuple(calls), asking.completed)


class _Streamed:
    """All choices on their way to a client, piece by piece."""

    def __init__(self, request: web.Request, asked: Asked, askings: Sequence[Asking]) -> None:
        self._asked = asked
        self._askings = askings
        self._shapes = Shapes(asked)
        self._stream = EventStream(request, askings[0].headers)
        self._choices = [_StreamedChoice(self._stream, self._shapes, index) for index in range(len(askings))]

    async def send(self) -> web.StreamResponse:
        """Follow all events to the end."""
        return await self._stream.run(self._follow)

    async def _follow(self) -> None:
        async with aclosing(merged(self._askings)) as events:
            async for index, item in events:
                await self._choices[index].take(item)
        done = [asking.completed for asking in self._askings if asking.completed is not None]
        if self._asked.include_usage:
            await self._stream.send(self._shapes.usage_chunk(done))
        await self._stream.write(DONE_EVENT)


class _StreamedChoice:
    """One of them."""

    def __init__(self, stream: EventStream, shapes: Shapes, index: int) -> None:
        self._stream = stream
        self._shapes = shapes
        self._index = index
        self._begun = False
        self._calls = 0
        self._standing = Standing()

    async def take(self, item: AnswerEvent | None) -> None:
        """The next event, or None for a pause."""
        if isinstance(item, Routed):
            self._shapes.model = self._shapes.model or item.model
        if self._standing.note(item, begun=self._stream.begun):
            await self._tell()
        if item is None:
            await self._begin()
            await self._stream.waiting()
        if isinstance(item, Delta):
            await self._begin()
            chunk = self._shapes.chunk({"content": item.text}, index=self._index, logprobs=item.logprobs)
            await self._stream.send(chunk | self._standing.news())
        if isinstance(item, ToolCalled):
            await self._begin()
            call = {"index": self._calls} | call_shape(item)
            self._calls += 1
            await self._stream.send(self._shapes.chunk({"tool_calls": [call]}, index=self._index))
        if isinstance(item, Completed):
            await self._begin()
            await self._stream.send(self._shapes.chunk({}, item.finish, self._index, mtor=facts(item)))

    async def _begin(self) -> None:
        """The first chunk, once."""
        if not self._begun:
            self._begun = True
            first = self._shapes.chunk({"role": "assistant", "content": ""}, index=self._index)
            await self._stream.send(first | self._standing.news())

    async def _tell(self) -> None:
        """Where the query stands now, in a chunk of its own."""
        await self._begin()
        news = self._standing.news()
        if news:  # it was not in the first chunk
            await self._stream.send(self._shapes.chunk({}, index=self._index) | news)


async def merged(askings: Sequence[Asking]) -> AsyncGenerator[tuple[int, AnswerEvent | None], None]:
    """(choice, event) as they come, up to each one's `Completed`. Raises `ApiError` for any other end of one."""
    if len(askings) == 1:
        async with aclosing(askings[0].events_and_pauses()) as events:
            async for item in events:
                yield 0, item
        return
    items: asyncio.Queue[tuple[int, AnswerEvent | None]] = asyncio.Queue(len(askings))

    async def follow(index: int, asking: Asking) -> None:
        async with aclosing(asking.events_and_pauses()) as events:
            async for item in events:
                await items.put((index, item))

    tasks = [asyncio.create_task(follow(index, asking)) for index, asking in enumerate(askings)]
    following = asyncio.ensure_future(items.get())
    try:
        running = set(tasks)
        while running or not items.empty() or following.done():
            await asyncio.wait((*running, following), return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                yield following.result()
                following = asyncio.ensure_future(items.get())
                continue
            for task in [task for task in running if task.done()]:
                running.discard(task)
                task.result()
    finally:
        for each in (following, *tasks):
            each.cancel()
