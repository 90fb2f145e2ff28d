"""An engine without a model, for tests and load drivers.

Rule: deterministic and honest about counts: token number n of the answer to a question is always the same, a
continuation goes on exactly where the prefix ends, and grants and cancels are obeyed as by a real one. Pictures and
sounds are bytes that say what they were made from.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from node.engines.port import (
    CallPart,
    Data,
    EngineError,
    EngineEvent,
    EngineStats,
    Finished,
    ModelInfo,
    Piece,
    Prompted,
    Step,
    check_roles,
)
from protocol.errors import ErrorCode
from protocol.messages import (
    NUMBERS,
    ChatRequest,
    Chosen,
    Device,
    ImagineRequest,
    Likelihood,
    Message,
    SpeakRequest,
    TranscribeRequest,
    VisionRequest,
)
from protocol.params import MAX_CHUNK_BYTES
from protocol.requests import Request, picture_units
from protocol.wishes import wishes_of

ALL_KINDS = (ChatRequest, VisionRequest, ImagineRequest, TranscribeRequest, SpeakRequest)
FAKE_PREVIEW = b"\x89PNG\r\n\x1a\npreview"
PICTURE_BYTES = 150_000  # more than fits one message
TENTH = bytes(4_800)  # of a second of sound at 24 kHz
WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet")
ANSWER_TOKENS = 40  # a natural end, when the request allows that much


def fake_token(index: int) -> str:
    """Token `index` of every answer: a word with its number, so that a gap or a repeat shows."""
    return f"{WORDS[index % len(WORDS)]}{index} "


def fake_answer(tokens: int) -> str:
    """The first `tokens` tokens."""
    return "".join(fake_token(index) for index in range(tokens))


def fake_picture(request: ImagineRequest) -> bytes:
    """The "picture" of a request."""
    about = f"picture of {request.prompt} with seed {request.seed}\n".encode()
    return (about * (PICTURE_BYTES // len(about) + 1))[:PICTURE_BYTES]


@dataclass
class FakeGeneration:
    """One answer."""

    request: Request
    prefix: str
    inputs: Sequence[bytes]
    seconds_per_token: float
    crash_after: int | None
    first_seconds: float | None = None
    granted: int = 0
    cancelled: bool = False

    def __post_init__(self) -> None:
        self._moved = trio.Event()

    def events(self) -> AsyncGenerator[EngineEvent, None]:
        """See `Generation`."""
        kinds: dict[type[Message], Callable[[], AsyncGenerator[EngineEvent, None]]]
        kinds = {ImagineRequest: self._paint, SpeakRequest: self._speak}
        return kinds.get(type(self.request), self._write)()

    async def grant(self, total_units_out: int) -> None:
        """See `Generation`."""
        self.granted = max(self.granted, total_units_out)
        self._moved.set()

    async def cancel(self) -> None:
        """See `Generation`."""
        self.cancelled = True
        self._moved.set()

    async def _write(self) -> AsyncGenerator[EngineEvent, None]:
        units_in = self._units_in()
        yield Prompted(units_in)
        first = self.prefix.count(" ")
        wanted = self.request.max_tokens if isinstance(self.request, ChatRequest) else 0
        limit = min(wanted or ANSWER_TOKENS, max(0, ANSWER_TOKENS - first))
        calls = list(self._calls())
        for part in calls:
            if await self._may_go_on(part.units_out - 1):
                yield part
        if calls:
            yield Finished("cancelled" if self.cancelled else "tool_calls", units_in, len(calls))
            return
        finish = "stop" if first + limit >= ANSWER_TOKENS else "length"
        produced = 0
        while produced < limit and await self._may_go_on(produced):
            produced += 1
            yield self._piece(first + produced - 1, produced)
        yield Finished("cancelled" if self.cancelled else finish, units_in, produced)

    def _calls(self) -> Iterator[CallPart]:
        """A call of every tool of the request, in three parts each."""
        for index, tool in enumerate(wishes_of(self.request).tools):
            parts = ((tool.name, ""), ("", '{"number":'), ("", f"{index}}}"))
            for part, (name, arguments) in enumerate(parts, 3 * index + 1):
                yield CallPart(name, arguments, part)

    def _piece(self, index: int, produced: int) -> Piece:
        wishes, text = wishes_of(self.request), fake_token(index)
        if not wishes.logprobs:
            return Piece(text, produced)
        likeliest = [Likelihood(text.encode(), 250_000 + index), Likelihood(b"\xc3", 2_000_000)][: wishes.likeliest]
        return Piece(text, produced, (Chosen(text.encode(), 250_000 + index, tuple(likeliest)),))

    def _units_in(self) -> int:
        if isinstance(self.request, TranscribeRequest):
            return len(self.inputs[0]) // 3_200 + 1
        assert isinstance(self.request, ChatRequest)
        check_roles(self.request)
        words = sum(len(turn.text.split()) + 1 for turn in self.request.turns) + len(self.prefix.split())
        return words + len(self.inputs)

    async def _paint(self) -> AsyncGenerator[EngineEvent, None]:
        assert isinstance(self.request, ImagineRequest)
        yield Prompted(0)
        for step in range(4):
            if not await self._may_go_on(-1, step):
                yield Finished("cancelled", 0, 0)
                return
            yield Step(step + 1, 4, FAKE_PREVIEW if self.request.previews else b"")
        picture = fake_picture(self.request)
        units = picture_units(self.request.width or 64, self.request.height or 64, self.request.steps or 4)
        for start in range(0, len(picture), MAX_CHUNK_BYTES):
            last = start + MAX_CHUNK_BYTES >= len(picture)
            yield Data("image/png", picture[start : start + MAX_CHUNK_BYTES], units if last else 0)
        yield Finished("stop", 0, units)

    async def _speak(self) -> AsyncGenerator[EngineEvent, None]:
        assert isinstance(self.request, SpeakRequest)
        units_in = len(self.request.text.encode())
        yield Prompted(units_in)
        spoken = 0
        while spoken < units_in and await self._may_go_on(spoken):
            spoken += 1
            yield Data("audio/pcm;rate=24000", TENTH, spoken)
        yield Finished("cancelled" if self.cancelled else "stop", units_in, spoken)

    async def _may_go_on(self, produced: int, done: int | None = None) -> bool:
        """Wait for the grant and for the time of one unit; False once cancelled. Crashes when told to."""
        while produced >= self.granted and not self.cancelled:
            await self._moved.wait()
            self._moved = trio.Event()
        if self.cancelled:
            return False
        early = self.first_seconds is not None and not produced
        await trio.sleep((self.first_seconds or 0.0) if early else self.seconds_per_token)
        if self.crash_after is not None and (produced if done is None else done) >= self.crash_after:
            raise EngineError(ErrorCode.ENGINE_FAILED, "the engine crashed")
        return True


class FakeEngine:
    """The `Engine` port. `crash_after`: the next answers fail after so many tokens. `requests`: the kinds it takes.
    `first_seconds`: until the first token, where that is not the time of the others."""

    def __init__(
        self,
        name: str = "fake",
        seconds_per_token: float = 0.0,
        crash_after: int | None = None,
        requests: Sequence[type[Message]] = (ChatRequest,),
        first_seconds: float | None = None,
        features: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.seconds_per_token = seconds_per_token
        self.crash_after = crash_after
        self.first_seconds = first_seconds
        self.requests = tuple(NUMBERS[request] for request in requests)
        self.features = tuple(features)
        self.ready = True
        self.running = 0
        self.cancelled = 0

    @property
    def info(self) -> ModelInfo:
        """See `Engine`."""
        return ModelInfo(self.name, bytes(32), 4_096, Device("cpu", "fake", 0, 0), 1, self.requests, self.features)

    def stats(self) -> EngineStats:
        """See `Engine`."""
        return EngineStats(self.running, 0.0, 0, 1)

    @asynccontextmanager
    async def generate(
        self, request: Request, prefix: str, inputs: Sequence[bytes] = ()
    ) -> AsyncIterator[FakeGeneration]:
        """See `Engine`."""
        generation = FakeGeneration(
            request, prefix, inputs, self.seconds_per_token, self.crash_after, self.first_seconds
        )
        self.running += 1
        try:
            yield generation
        finally:
            self.running -= 1
            self.cancelled += generation.cancelled
