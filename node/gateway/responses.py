"""`/v1/responses`: OpenAI's newer interface.

Rule: the events are OpenAI's, in OpenAI's order, numbered without a gap; the last one is `response.completed`,
`response.incomplete` or `response.failed`, and a broken answer never has one of the first two. Nothing is kept:
`store` is answered as false, whatever was asked.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from aiohttp import web

from node.answers import AnswerEvent, Completed, Delta, TokenLogprob, ToolCalled
from node.gateway.answer_shapes import ResponseAnswer
from node.gateway.asking import Asker, Asking
from node.gateway.conversing import Said, whole
from node.gateway.failures import ApiError
from node.gateway.openai import facts, likelihoods, usage
from node.gateway.responses_request import NOTHING_KEPT, Asked, Json, ResponsesRequest, read_responses_request
from node.gateway.routes import EVENTS, Answered, Route
from node.gateway.sse import EventStream, compact
from node.gateway.standing import Standing


class ResponseRoutes:
    """Handlers of the responses routes."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    def routes(self) -> tuple[Route, ...]:
        """See `Routes`."""
        answers = (Answered(shape=ResponseAnswer), Answered(EVENTS))
        path, summary, missing = "/v1/responses", "The next step of a conversation.", "Not there: nothing is kept here."
        kept = "/v1/responses/{response}"
        return (
            Route("POST", path, self.handle, "openai", summary, answers, takes=ResponsesRequest, asks=True),
            Route("GET", kept, self.kept, "openai", missing, errors=(404,)),
            Route("DELETE", kept, self.kept, "openai", missing, errors=(404,)),
        )

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One query."""
        asked = read_responses_request(await request.read())
        shapes = _Shapes(asked)
        async with self._asker.ask(request, asked.question) as asking:
            if asked.request.stream:
                stream = _ResponseStream(request, asking, shapes)
                return await stream.run(_Streamed(asking, shapes, stream).follow)
            said, done = await whole(asking)
            return web.json_response(shapes.ended(said, done), headers=asking.headers())

    async def kept(self, request: web.Request) -> web.StreamResponse:
        """Always 404."""
        raise ApiError(404, f"there is no such response: {NOTHING_KEPT}", code="not_found")


class _Shapes:
    """One response and its items."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._id = _new("resp")
        self._created = int(time.time())
        self._message = _new("msg")
        self._calls: dict[str, str] = {}  # of a tool's call -> of its item

    def response(self, status: str, said: Said, output: list[Json], **more: Any) -> Json:
        """The response as it is now."""
        wanted = self._asked.request
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": wanted.instructions,
            "max_output_tokens": wanted.max_output_tokens,
            "metadata": wanted.metadata or {},
            "model": said.model or wanted.model,
            "output": output,
            "parallel_tool_calls": wanted.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": wanted.temperature,
            "text": {"format": (wanted.text and wanted.text.format) or {"type": "text"}},
            "tool_choice": wanted.tool_choice or "auto",
            "tools": wanted.tools or [],
            "top_p": wanted.top_p,
            "truncation": "disabled",
            "usage": None,
        } | more

    def ended(self, said: Said, done: Completed) -> Json:
        """The whole response."""
        cut = done.finish == "length"
        status = "incomplete" if cut else "completed"
        more: Json = {"usage": _usage(done), "mtor": facts(done)}
        if cut:
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        return self.response(status, said, self.output(said, status), **more)

    def output(self, said: Said, status: str) -> list[Json]:
        """All items. There is a message even without a word, unless the model called tools instead."""
        message = [self.message(said, status)] if said.parts or not said.calls else []
        return [*message, *(self.call(call) for call in said.calls)]

    def message(self, said: Said, status: str) -> Json:
        """The item of the text."""
        content = [self.part(said)] if status != "in_progress" else []
        return {"type": "message", "id": self._message, "status": status, "role": "assistant", "content": content}

    def part(self, said: Said | None) -> Json:
        """The text within its item; None before there is any."""
        text, tokens = (said.text, said.logprobs) if said else ("", [])
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": _logprobs(tokens)}

    def call(self, call: ToolCalled, arguments: str | None = None) -> Json:
        """The item of a tool's call; with other `arguments` while it begins."""
        item = self._calls.setdefault(call.id, _new("fc"))
        status = "completed" if arguments is None else "in_progress"
        given = call.arguments if arguments is None else arguments
        about = {"type": "function_call", "id": item, "call_id": call.id, "status": status}
        return about | {"name": call.name, "arguments": given}


def _new(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[Json]:
    found: list[Json] = likelihoods(tokens)["content"]
    return found


def _usage(done: Completed) -> Json:
    counts = usage(done)
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts["total_tokens"],
    }


class _ResponseStream(EventStream):
    """Events with their names and numbers."""

    def __init__(self, request: web.Request, asking: Asking, shapes: _Shapes) -> None:
        super().__init__(request, asking.headers)
        self._shapes = shapes
        self._number = 0
        self.said = Said()

    def encode(self, data: Json) -> bytes:
        """One event; its `type` is its name."""
        numbered = data | {"sequence_number": self._number}
        self._number += 1
        return f"event: {data['type']}\ndata: ".encode() + compact(numbered) + b"\n\n"

    def failure(self, error: ApiError) -> Json:
        """`response.failed`, with what was said until then."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"  # of the few that clients know
        told = {"error": {"code": code, "message": error.message}, "mtor": error.body()}
        output = self._shapes.output(self.said, "incomplete") if self.said.parts or self.said.calls else []
        return {"type": "response.failed", "response": self._shapes.response("failed", self.said, output, **told)}


class _Streamed:
    """One response on its way, event by event."""

    def __init__(self, asking: Asking, shapes: _Shapes, stream: _ResponseStream) -> None:
        self._asking = asking
        self._shapes = shapes
        self._stream = stream
        self._said = stream.said
        self._standing = Standing()
        self._items = 0  # that were begun
        self._message: int | None = None  # the message's place among them
        self._message_ended = False

    async def follow(self) -> None:
        """To the end."""
        async with aclosing(self._asking.events_and_pauses()) as events:
            async for item in events:
                self._said.take(item)
                await self._take(item)

    async def _take(self, item: AnswerEvent | None) -> None:
        if self._standing.note(item, begun=self._stream.begun):
            await self._tell()
        if item is None:
            await self._begin()
            await self._stream.waiting()
        if isinstance(item, Delta):
            await self._delta(item)
        if isinstance(item, ToolCalled):
            await self._call(item)
        if isinstance(item, Completed):
            await self._end(item)

    async def _begin(self) -> None:
        """The first two events, once."""
        if self._stream.begun:
            return
        response = self._shapes.response("in_progress", self._said, [])
        await self._stream.send({"type": "response.created", "response": response})
        await self._stream.send({"type": "response.in_progress", "response": response} | self._standing.news())

    async def _tell(self) -> None:
        """Where the query stands now."""
        await self._begin()
        if news := self._standing.news():  # it was not in the first events
            response = self._shapes.response("in_progress", self._said, [])
            await self._stream.send({"type": "response.in_progress", "response": response} | news)

    async def _begin_message(self) -> None:
        if self._message is not None:
            return
        await self._begin()
        self._message, self._items = self._items, self._items + 1
        item = self._shapes.message(self._said, "in_progress")
        await self._stream.send({"type": "response.output_item.added", "output_index": self._message, "item": item})
        await self._about_part("response.content_part.added", {"part": self._shapes.part(None)})

    async def _delta(self, item: Delta) -> None:
        await self._begin_message()
        about = {"delta": item.text, "logprobs": _logprobs(item.logprobs)}
        await self._about_part("response.output_text.delta", about)

    async def _end_message(self, status: str) -> None:
        if self._message is None or self._message_ended:
            return
        self._message_ended = True
        part, item = self._shapes.part(self._said), self._shapes.message(self._said, status)
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        await self._about_part("response.output_text.done", text)
        await self._about_part("response.content_part.done", {"part": part})
        await self._stream.send({"type": "response.output_item.done", "output_index": self._message, "item": item})

    async def _about_part(self, kind: str, more: Json) -> None:
        item = self._shapes.message(self._said, "in_progress")["id"]
        place = {"item_id": item, "output_index": self._message, "content_index": 0}
        await self._stream.send({"type": kind} | place | more)

    async def _call(self, call: ToolCalled) -> None:
        """A call comes whole, and is told in the pieces that clients put together."""
        await self._begin()
        await self._end_message("completed")
        index, self._items = self._items, self._items + 1
        begun, item = self._shapes.call(call, ""), self._shapes.call(call)
        place = {"item_id": item["id"], "output_index": index}
        kind = "response.function_call_arguments"
        await self._stream.send({"type": "response.output_item.added", "output_index": index, "item": begun})
        await self._stream.send({"type": f"{kind}.delta", "delta": call.arguments} | place)
        await self._stream.send({"type": f"{kind}.done", "name": call.name, "arguments": call.arguments} | place)
        await self._stream.send({"type": "response.output_item.done", "output_index": index, "item": item})

    async def _end(self, done: Completed) -> None:
        if not self._said.calls:
            await self._begin_message()
        response = self._shapes.ended(self._said, done)
        await self._end_message(response["status"])
        await self._stream.send({"type": f"response.{response['status']}", "response": response})
