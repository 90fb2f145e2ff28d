"""An engine without a model, for tests and load drivers.

Rule: deterministic and honest about counts: token number n of the answer to a question is always the same, a
continuation goes on exactly where the prefix ends, and grants and cancels are obeyed as by a real one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from node.engines.port import EngineError, EngineEvent, EngineStats, Finished, ModelInfo, Piece, Prompted, check_roles
from protocol.errors import ErrorCode
from protocol.messages import ChatRequest, Device

WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet")
ANSWER_TOKENS = 40  # a natural end, when the request allows that much


def fake_token(index: int) -> str:
    """Token `index` of every answer: a word with its number, so that a gap or a repeat shows."""
    return f"{WORDS[index % len(WORDS)]}{index} "


def fake_answer(tokens: int) -> str:
    """The first `tokens` tokens."""
    return "".join(fake_token(index) for index in range(tokens))


@dataclass
class FakeGeneration:
    """One answer."""

    request: ChatRequest
    prefix: str
    seconds_per_token: float
    crash_after: int | None
    granted: int = 0
    cancelled: bool = False

    def __post_init__(self) -> None:
        self._moved = trio.Event()

    async def events(self) -> AsyncGenerator[EngineEvent, None]:
        """See `Generation`."""
        check_roles(self.request)
        units_in = sum(len(turn.text.split()) + 1 for turn in self.request.turns) + len(self.prefix.split())
        yield Prompted(units_in)
        first = self.prefix.count(" ")
        limit = min(self.request.max_tokens or ANSWER_TOKENS, max(0, ANSWER_TOKENS - first))
        finish = "stop" if first + limit >= ANSWER_TOKENS else "length"
        produced = 0
        while produced < limit and not self.cancelled:
            if produced >= self.granted:
                await self._moved.wait()
                self._moved = trio.Event()
                continue
            await trio.sleep(self.seconds_per_token)
            if self.crash_after is not None and produced >= self.crash_after:
                raise EngineError(ErrorCode.ENGINE_FAILED, "the engine crashed")
            produced += 1
            yield Piece(fake_token(first + produced - 1), produced)
        yield Finished("cancelled" if self.cancelled else finish, units_in, produced)

    async def grant(self, total_units_out: int) -> None:
        """See `Generation`."""
        self.granted = max(self.granted, total_units_out)
        self._moved.set()

    async def cancel(self) -> None:
        """See `Generation`."""
        self.cancelled = True
        self._moved.set()


class FakeEngine:
    """The `Engine` port. `crash_after`: the next answers fail after so many tokens."""

    def __init__(self, name: str = "fake", seconds_per_token: float = 0.0, crash_after: int | None = None) -> None:
        self.name = name
        self.seconds_per_token = seconds_per_token
        self.crash_after = crash_after
        self.ready = True
        self.running = 0
        self.cancelled = 0

    @property
    def info(self) -> ModelInfo:
        """See `Engine`."""
        return ModelInfo(self.name, bytes(32), 4_096, Device("cpu", "fake", 0, 0), 1)

    def stats(self) -> EngineStats:
        """See `Engine`."""
        return EngineStats(self.running, 0.0, 0, 1)

    @asynccontextmanager
    async def generate(self, request: ChatRequest, prefix: str) -> AsyncIterator[FakeGeneration]:
        """See `Engine`."""
        generation = FakeGeneration(request, prefix, self.seconds_per_token, self.crash_after)
        self.running += 1
        try:
            yield generation
        finally:
            self.running -= 1
            self.cancelled += generation.cancelled
