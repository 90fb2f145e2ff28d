"""`/v1/completions`: OpenAI's older interface, a text and how it goes on.

Rule: the wire carries conversations and no raw text, so each prompt is asked as one user's message, and the answer is
what the model says to it. Each choice is a query of its own; what cannot be done that way is refused.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import Field

from node.answers import AnswerEvent, Completed, Delta, Question, TokenLogprob
from node.gateway.answer_shapes import ChoicesAnswer
from node.gateway.asking import Asker, Asking
from node.gateway.chat import merged
from node.gateway.conversing import Said, chat_questions, whole
from node.gateway.failures import ApiError
from node.gateway.openai import MOST_CHOICES as MOST_OF_ONE
from node.gateway.openai import Sampling, StreamOptions, facts, facts_of_all, usage_of_all
from node.gateway.routes import EVENTS, Answered, Route
from node.gateway.sse import DONE_EVENT, EventStream
from node.gateway.standing import Standing
from node.gateway.wishes import MtorWishes, parse, unsupported

MOST_CHOICES = 16  # queries of one request
SAMPLING = (
    *("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty"),
    *("frequency_penalty", "presence_penalty", "stop", "seed", "n"),
)


class CompletionRequest(Sampling):
    """`POST /v1/completions`."""

    model: str
    prompt: str | list[str] | list[int] | list[list[int]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    n: int | None = Field(None, ge=1, le=MOST_OF_ONE)
    best_of: int | None = None
    suffix: str | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    logit_bias: dict[str, Any] | None = None
    mtor: MtorWishes | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request: one question a choice, and what goes before its answer."""

    questions: tuple[Question, ...]
    echoes: tuple[str, ...]
    model: str  # as the client wrote it
    stream: bool
    include_usage: bool
    logprobs: int | None


def read_completion_request(body: bytes) -> Asked:
    """A request's JSON. Raises `ApiError` (400) that names the parameter."""
    wanted = parse(CompletionRequest, body)
    _refuse_unsupported(wanted)
    prompts = _prompts(wanted.prompt)
    copies = wanted.n or 1
    if len(prompts) * copies > MOST_CHOICES:
        message = f"{len(prompts)} prompts times n are more than {MOST_CHOICES} choices; ask in several requests"
        raise ApiError(400, message, code="invalid_value", param="n" if copies > 1 else "prompt")
    places = ["prompt"] if isinstance(wanted.prompt, str) else [f"prompt.{index}" for index in range(len(prompts))]
    questions = [
        each for prompt, place in zip(prompts, places, strict=True) for each in _questions(wanted, prompt, place)
    ]
    echoes = [prompt if wanted.echo else "" for prompt in prompts for _ in range(copies)]
    options = wanted.stream_options or StreamOptions()
    stream, include_usage = bool(wanted.stream), options.include_usage
    return Asked(tuple(questions), tuple(echoes), wanted.model, stream, include_usage, wanted.logprobs)


def _refuse_unsupported(wanted: CompletionRequest) -> None:
    if wanted.suffix:
        raise unsupported("suffix", "models are asked as in a conversation and fill no gaps")
    if wanted.best_of not in (None, 1) and wanted.best_of != wanted.n:
        raise unsupported("best_of", "every choice is given; ask for n of them")
    if wanted.echo and wanted.logprobs is not None:
        raise unsupported("echo", "log probabilities are of the answer, not of the prompt")
    if wanted.logit_bias:
        raise unsupported("logit_bias", "peers' models have different tokens")


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    texts = [each for each in prompts if isinstance(each, str)]
    if not prompts:
        raise ApiError(400, "prompt is empty", code="missing_value", param="prompt")
    if len(texts) < len(prompts):
        raise unsupported("prompt", "token numbers mean something else in each peer's model; send text")
    return texts


def _questions(wanted: CompletionRequest, prompt: str, place: str) -> tuple[Question, ...]:
    """One a choice of this prompt."""
    fields = {name: getattr(wanted, name) for name in SAMPLING}
    fields |= {"model": wanted.model, "messages": [{"role": "user", "content": prompt}]}
    if wanted.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": wanted.logprobs}
    if wanted.mtor is not None:
        fields["mtor"] = wanted.mtor.model_dump()
    return chat_questions(fields, [place])


class CompletionRoutes:
    """Handlers of the completions route."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    def routes(self) -> tuple[Route, ...]:
        """See `Routes`."""
        answers = (Answered(shape=ChoicesAnswer), Answered(EVENTS))
        path, summary = "/v1/completions", "What a model answers to a text; each prompt is asked as a user's message."
        return (Route("POST", path, self.handle, "openai", summary, answers, takes=CompletionRequest, asks=True),)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        asked = read_completion_request(await request.read())
        async with self._all(request, asked) as askings:
            if not asked.stream:
                return await _whole(asked, askings)
            stream = EventStream(request, askings[0].headers)
            return await stream.run(_Streamed(asked, askings, stream).follow)

    @asynccontextmanager
    async def _all(self, request: web.Request, asked: Asked) -> AsyncIterator[list[Asking]]:
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self._asker.ask(request, each)) for each in asked.questions]


class _Shapes:
    """One answer's constant parts."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self.model = ""

    def frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """A body or a chunk."""
        head = {"id": self._id, "object": "text_completion", "created": self._created}
        return head | {"model": self.model or self._asked.model, "choices": choices}

    def choice(
        self, index: int, text: str, tokens: list[TokenLogprob], finish: str | None = None, offset: int = 0
    ) -> dict[str, Any]:
        """One choice, or a part of it."""
        logprobs = _logprobs(tokens, offset) if tokens else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(tokens: list[TokenLogprob], offset: int) -> dict[str, Any]:
    """OpenAI's older shape. `offset` is where in the text the first token begins."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(token.top) for token in tokens],
        "text_offset": offsets,
    }


async def _whole(asked: Asked, askings: list[Asking]) -> web.Response:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(whole(asking)) for asking in askings]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    ended = [task.result() for task in tasks]
    shapes = _Shapes(asked)
    shapes.model = ended[0][0].model
    choices = [
        shapes.choice(index, echo + said.text, said.logprobs, done.finish)
        for index, (echo, (said, done)) in enumerate(zip(asked.echoes, ended, strict=True))
    ]
    done = [done for _, done in ended]
    body = shapes.frame(choices) | {"usage": usage_of_all(done), "mtor": facts_of_all(done)}
    return web.json_response(body, headers=askings[0].headers())


class _Streamed:
    """All choices of one request, on one stream."""

    def __init__(self, asked: Asked, askings: list[Asking], stream: EventStream) -> None:
        self._asked = asked
        self._askings = askings
        self._stream = stream
        self._shapes = _Shapes(asked)
        self._said = [Said() for _ in askings]
        self._standing = [Standing() for _ in askings]

    async def follow(self) -> None:
        """Send the choices as they come, then the end."""
        async with aclosing(merged(self._askings)) as events:
            async for index, item in events:
                self._said[index].take(item)
                self._shapes.model = self._shapes.model or self._said[index].model
                await self._take(index, item, self._said[index], self._standing[index])
        if self._asked.include_usage:
            done = [asking.completed for asking in self._askings if asking.completed is not None]
            await self._stream.send(self._shapes.frame([]) | {"usage": usage_of_all(done)})
        await self._stream.write(DONE_EVENT)

    async def _take(self, index: int, item: AnswerEvent | None, said: Said, standing: Standing) -> None:
        if standing.note(item, begun=self._stream.begun):
            await self._send(self._shapes.choice(index, "", []), standing)
        if item is None:
            await self._stream.waiting()
        echo = self._asked.echoes[index]
        if isinstance(item, Delta):
            first = len(said.parts) == 1
            offset = sum(len(part) for part in said.parts[:-1])
            text = (echo if first else "") + item.text
            await self._send(self._shapes.choice(index, text, list(item.logprobs), offset=offset), standing)
        if isinstance(item, Completed):
            rest = "" if said.parts else echo
            end = self._shapes.choice(index, rest, [], item.finish)
            await self._send(end, standing, mtor=facts(item))

    async def _send(self, choice: dict[str, Any], standing: Standing, **more: Any) -> None:
        await self._stream.send(self._shapes.frame([choice]) | standing.news() | more)
