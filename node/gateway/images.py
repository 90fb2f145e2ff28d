"""`/v1/images/generations`: words in, pictures out, whole or with previews as events.

Rule: OpenAI's shapes; each of `n` pictures is a query of its own, with the next seed, and one that fails fails the
request with what went wrong. Pictures are handed over as base64, never as addresses: nothing is kept here.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web
from pydantic import Field

from node.answers import Bytes, Completed, Progressed, Question
from node.gateway.answer_shapes import PicturesAnswer
from node.gateway.asking import Asker, Asking
from node.gateway.failures import ApiError
from node.gateway.openai import facts, usage
from node.gateway.routes import EVENTS, Answered, Route
from node.gateway.sse import EventStream
from node.gateway.standing import Standing
from node.gateway.wishes import (
    Lenient,
    MtorWishes,
    bounded_text,
    encodable,
    following_seed,
    parse,
    question,
    thousandths,
    travelling_seed,
    unsupported,
)
from protocol import params
from protocol.ids import IMAGINE
from protocol.messages import ImagineRequest

MOST_PICTURES = 10
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class ImagesRequest(Lenient):
    """`POST /v1/images/generations`. `steps`, `seed`, `guidance` and `negative_prompt` are this node's own."""

    prompt: str = Field(json_schema_extra={"minLength": 1})
    model: str = "auto"
    n: int | None = Field(None, ge=1, le=MOST_PICTURES)
    size: str | None = Field(None, json_schema_extra={"pattern": f"^({SIZE.pattern}|auto)$"})
    response_format: str | None = Field(None, json_schema_extra={"enum": ["b64_json", None]})
    output_format: str | None = Field(None, json_schema_extra={"enum": ["png", None]})
    background: str | None = Field(None, json_schema_extra={"enum": ["auto", "opaque", None]})
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=100)
    negative_prompt: str = ""
    steps: int = Field(0, ge=0, le=params.MAX_PICTURE_STEPS)
    guidance: float = Field(0.0, ge=0, le=50)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    mtor: MtorWishes | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request: one question a picture."""

    questions: tuple[Question, ...]
    stream: bool


def read_images_request(body: bytes) -> Asked:
    """A request's JSON. Raises `ApiError` (400) that names the parameter."""
    wanted = parse(ImagesRequest, body)
    _refuse_unsupported(wanted)
    width, height = _size(wanted.size)
    request = ImagineRequest(
        prompt=bounded_text("prompt", wanted.prompt, params.MAX_PROMPT_BYTES),
        negative_prompt=_negative(wanted.negative_prompt),
        width=width,
        height=height,
        steps=wanted.steps,
        guidance=thousandths(wanted.guidance, 0.0),
        seed=travelling_seed(wanted.seed),
        previews=int(bool(wanted.stream and wanted.partial_images != 0)),
    )
    requests = [replace(request, seed=following_seed(request.seed, index)) for index in range(wanted.n or 1)]
    wishes = wanted.mtor or MtorWishes()
    questions = tuple(question(each, wanted.model, IMAGINE, wishes, ()) for each in requests)
    return Asked(questions, bool(wanted.stream))


def _refuse_unsupported(wanted: ImagesRequest) -> None:
    if wanted.response_format not in (None, "b64_json"):
        raise unsupported("response_format", "pictures are sent as b64_json; nothing is kept here to be fetched")
    if wanted.output_format not in (None, "png"):
        raise unsupported("output_format", "pictures are PNG")
    if wanted.background not in (None, "auto", "opaque"):
        raise unsupported("background", "pictures are opaque")
    if wanted.stream and (wanted.n or 1) > 1:
        raise unsupported("n", "a stream shows one picture; ask again for another")


def _size(text: str | None) -> tuple[int, int]:
    """(width, height) in pixels; (0, 0) leaves it to the model."""
    if text in (None, "auto"):
        return 0, 0
    match = SIZE.fullmatch(text or "")
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    most = params.MAX_PICTURE_SIDE
    if not (0 < width <= most and 0 < height <= most):
        message = f"size: write it like 512x512, at most {most}x{most}, or auto"
        raise ApiError(400, message, code="invalid_value", param="size")
    return width, height


def _negative(text: str) -> str:
    return bounded_text("negative_prompt", text, params.MAX_PROMPT_BYTES) if text.strip() else encodable("", "")


class ImageRoutes:
    """Handlers of the picture route."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    def routes(self) -> tuple[Route, ...]:
        """See `Routes`."""
        answers = (Answered(shape=PicturesAnswer), Answered(EVENTS))
        path, summary = "/v1/images/generations", "Pictures from words; `stream` shows previews."
        return (Route("POST", path, self.handle, "openai", summary, answers, takes=ImagesRequest, asks=True),)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        asked = read_images_request(await request.read())
        if asked.stream:
            return await self._stream(request, asked.questions[0])
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._picture(request, each)) for each in asked.questions]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        pictures = [task.result() for task in tasks]
        return web.json_response(_whole(pictures), headers=pictures[0].headers)

    async def _picture(self, request: web.Request, asked: Question) -> _Picture:
        async with self._asker.ask(request, asked) as asking:
            parts = [item.data async for item in asking.events() if isinstance(item, Bytes)]
            assert asking.completed is not None
            return _Picture(b"".join(parts), asking.completed, asking.headers())

    async def _stream(self, request: web.Request, asked: Question) -> web.StreamResponse:
        async with self._asker.ask(request, asked) as asking:
            stream = EventStream(request, asking.headers)
            return await stream.run(lambda: _follow(asking, stream))


@dataclass(frozen=True, slots=True)
class _Picture:
    """A finished picture."""

    data: bytes
    done: Completed
    headers: dict[str, str]


async def _follow(asking: Asking, stream: EventStream) -> None:
    """Where the query stands, previews as they come, then the picture."""
    parts: list[bytes] = []
    previews = 0
    standing = Standing()
    async with aclosing(asking.events_and_pauses()) as events:
        async for item in events:
            if standing.note(item, begun=stream.begun):
                await stream.send({"type": "image_generation.waiting"} | standing.news())
            if item is None:
                await stream.waiting()
            if isinstance(item, Bytes):
                parts.append(item.data)
            if isinstance(item, Progressed):
                await stream.send(_progress(item, previews, standing.news().get("mtor", {})))
                previews += bool(item.preview)
            if isinstance(item, Completed):
                await stream.send(_completed(_Picture(b"".join(parts), item, {})))


def _progress(item: Progressed, index: int, standing: dict[str, Any]) -> dict[str, Any]:
    progress = {"done": item.done, "total": item.total} | standing
    if not item.preview:
        return {"type": "image_generation.progress", "mtor": progress}
    partial = {"b64_json": _base64(item.preview), "partial_image_index": index, "mtor": progress}
    return {"type": "image_generation.partial_image", "created_at": int(time.time())} | partial


def _completed(picture: _Picture) -> dict[str, Any]:
    body = {"b64_json": _base64(picture.data), "usage": _usage([picture]), "mtor": facts(picture.done)}
    return {"type": "image_generation.completed", "created_at": int(time.time())} | body


def _whole(pictures: list[_Picture]) -> dict[str, Any]:
    return {
        "created": int(time.time()),
        "data": [{"b64_json": _base64(picture.data), "mtor": facts(picture.done)} for picture in pictures],
        "output_format": "png",
        "usage": _usage(pictures),
    }


def _usage(pictures: list[_Picture]) -> dict[str, Any]:
    """OpenAI's names for it, in this realm's units."""
    counts = [usage(picture.done) for picture in pictures]
    units_in = sum(count["prompt_tokens"] for count in counts)
    units_out = sum(count["completion_tokens"] for count in counts)
    details = {"text_tokens": units_in, "image_tokens": 0}
    return {
        "input_tokens": units_in,
        "output_tokens": units_out,
        "total_tokens": units_in + units_out,
        "input_tokens_details": details,
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
