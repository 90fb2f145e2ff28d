"""The `Engine` port over a server: health, grants, cancels, counts and speed, the same for every kind of server.

Rule: a server's word is bounded here. What it counts is at most the bytes that it delivered and a little, and at most
what was asked for; text leaves in pieces that the grant covers, and while a grant is waited for nothing is read, so
that the server has to wait too. A cancel closes the connection. Whatever a server sends that nobody thought of costs
one query.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import trio

from node.engines.outer.health import Health
from node.engines.outer.http import BadStatus, BrokenOff, NotAllowed, NotConnected, OuterError
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
)
from node.nurseries import one_error
from protocol.errors import ErrorCode
from protocol.messages import Chosen, Device
from protocol.params import MAX_CHUNK_BYTES, MAX_CHUNK_TOKENS, MAX_INTEGER
from protocol.requests import Request

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.outer")

COUNT_ALLOWANCE = 16  # tokens without a byte: the end of the text, half a character, a role
PIECE_UNITS = 64  # handed over at a time
PIECES_AHEAD = 16  # that wait for the worker: a server that is quicker would be heard one by one
PIECE_CHARS = 512  # at most 2 KiB: a worker puts sixteen pieces into one message
MOST_TOKEN_BYTES = 64  # a text counts as one token for this many bytes at least, whatever its server says
BYTES_A_TOKEN = 4  # of text whose tokens nobody counted
SPEED_MEMORY = 0.3  # weight of the newest answer in the measured speed


@dataclass(frozen=True, slots=True)
class Facts:
    """What a check found out."""

    context_tokens: int = 0  # 0: the server does not say
    features: tuple[int, ...] = ()  # what the model can do beyond text


class Server(Protocol):
    """One kind of server."""

    async def check(self) -> Facts:
        """Raises `OuterError` if it cannot be used now."""

    async def answer(self, request: Request, prefix: str, inputs: Sequence[bytes], out: OuterGeneration) -> str:
        """Hand the answer to `out`; how it ended ("stop", "length", "tool_calls"). Raises `EngineError`."""

    async def aclose(self) -> None:
        """Close connections."""


def guess_tokens(text: str) -> int:
    """Tokens of a text whose server does not count: one for four bytes, as English has them."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)


def clean(text: str) -> str:
    """Text as it can travel: halves of a character that JSON allows become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(eq=False)
class OuterGeneration:
    """One answer: `Generation` to the worker, and what a `Server` tells its answer to."""

    send: trio.MemorySendChannel[EngineEvent | EngineError]
    receive: trio.MemoryReceiveChannel[EngineEvent | EngineError]
    granted: int = 0
    units_in: int = 0
    units_out: int = 0
    most_units: int = MAX_INTEGER  # that were asked for
    delivered_bytes: int = 0
    first_at: float = 0.0
    begun: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _moved: trio.Event = field(default_factory=trio.Event)

    # --- the worker's side ---------------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[EngineEvent, None]:
        """See `Generation`."""
        async for event in self.receive:
            if isinstance(event, EngineError):
                raise event
            yield event
            if isinstance(event, Finished):
                return

    async def grant(self, total_units_out: int) -> None:
        """See `Generation`."""
        self.granted = max(self.granted, total_units_out)
        self._moved.set()

    async def cancel(self) -> None:
        """See `Generation`."""
        self.scope.cancel()

    # --- the server's side ---------------------------------------------------------------------------

    async def prompted(self, units_in: int) -> None:
        """The server has begun."""
        self.units_in = units_in
        self.begun = True
        await self.send.send(Prompted(units_in))

    async def step(self, done: int, total: int, preview: bytes = b"") -> None:
        """How far it is."""
        await self.send.send(Step(done, total, preview))

    async def text(self, text: str, units_out: int, tokens: Sequence[Chosen] = ()) -> None:
        """More text, which brings the count to `units_out`; a count that cannot be is corrected. Waits for grants.
        `tokens` are those of the text, where they were asked for."""
        waiting = tuple(tokens[:MAX_CHUNK_TOKENS])

        def piece(part: str, units: int) -> Piece:
            nonlocal waiting
            first, waiting = waiting, ()
            return Piece(part, units, first)

        await self._in_parts(text, units_out, piece)

    async def call(self, name: str, arguments: str, units_out: int) -> None:
        """A call of a tool, or, without a name, more of the last one's arguments. Counted as `text` is."""
        if name:
            await self._hand_over(CallPart(name, "", self.units_out), len(name))
        await self._in_parts(arguments, units_out, lambda part, units: CallPart("", part, units))

    async def _in_parts(self, text: str, units_out: int, event: Callable[[str, int], Piece | CallPart]) -> None:
        room = self.most_units * MOST_TOKEN_BYTES - self.delivered_bytes
        text = clean(text[: max(room, 0)])
        size = self.delivered_bytes + len(text.encode())
        least = max(self.units_out, -(-size // MOST_TOKEN_BYTES))
        last = min(max(least, min(units_out, size + COUNT_ALLOWANCE)), self.most_units)
        while text or self.units_out < last:
            if self.units_out < last:
                await self._wait_for(self.units_out + 1)
            chars, units = _portion(len(text), last - self.units_out, self.granted - self.units_out)
            part, text = text[:chars], text[chars:]
            await self._hand_over(event(part, self.units_out + units), len(part.encode()))

    async def data(self, media_type: str, data: bytes, units_out: int) -> None:
        """More bytes of a picture or sound. Does not wait: see `wait_for_more`."""
        for start in range(0, len(data), MAX_CHUNK_BYTES):
            part = data[start : start + MAX_CHUNK_BYTES]
            last = start + MAX_CHUNK_BYTES >= len(data)
            await self._hand_over(Data(media_type, part, units_out if last else self.units_out), len(part))

    async def wait_for_more(self) -> None:
        """Wait until a unit more than is out is granted."""
        await self._wait_for(self.units_out + 1)

    async def correct(self, units_out: int) -> None:
        """The server's own count at the end, if it counted more: what is granted of it."""
        upto = min(units_out, self.granted, self.most_units, self.delivered_bytes + COUNT_ALLOWANCE)
        if upto > self.units_out:
            await self._hand_over(Piece("", upto), 0)

    async def _wait_for(self, units_out: int) -> None:
        while self.granted < units_out:
            self._moved = trio.Event()
            await self._moved.wait()

    async def _hand_over(self, event: Piece | CallPart | Data, size: int) -> None:
        self.first_at = self.first_at or time.monotonic()
        await self.send.send(event)
        self.units_out = event.units_out
        self.delivered_bytes += size

    async def run(
        self,
        answer: Callable[[OuterGeneration], Coroutine[Any, Any, str]],
        note: Callable[[OuterGeneration, EngineEvent | EngineError], None],
    ) -> None:
        """Let a server answer. `note` hears of the last event before the asker does."""
        last: EngineEvent | EngineError = Finished("cancelled", 0, 0)
        async with self.send:
            try:
                with self.scope, one_error():
                    finish = await answer(self)
                    last = Finished(finish, self.units_in, self.units_out)
                if self.scope.cancelled_caught:
                    last = Finished("cancelled", self.units_in, self.units_out)
            except EngineError as error:
                last = error
            except Exception as error:
                # Never its text: that may repeat what a server sent.
                log.error("an answer could not be read: %s", type(error).__name__)
                last = EngineError(ErrorCode.ENGINE_FAILED, "the worker could not read its server's answer")
            note(self, last)
            await self.send.send(last)


def _portion(chars: int, units: int, allowed: int) -> tuple[int, int]:
    """Of a text of so many characters and units: how much of both may leave now, in proportion."""
    share = min(units, allowed, PIECE_UNITS)
    part = chars if share == units else chars * share // units
    if part > PIECE_CHARS:
        return PIECE_CHARS, share * PIECE_CHARS // part
    return part, share


class OuterEngine:
    """The `Engine` port over a `Server`."""

    def __init__(self, name: str, server: Server, requests: tuple[int, ...], context_tokens: int = 0) -> None:
        """`context_tokens` is the operator's word, and goes over the server's."""
        self._server = server
        self._said_context = context_tokens
        self._info = ModelInfo(name, bytes(32), context_tokens, Device("outer", "", 0, 0), 0, requests)
        self._health = Health(f"the server of {name}", self._check)
        self._running = 0
        self._speed = 0.0

    @property
    def info(self) -> ModelInfo:
        """See `Engine`. The digest is not known: the weights are the server's."""
        return self._info

    @property
    def ready(self) -> bool:
        """See `Engine`. False while the server does not answer."""
        return self._health.ready

    @property
    def problem(self) -> str:
        """Why it is not ready, for the operator."""
        return self._health.problem

    def stats(self) -> EngineStats:
        """See `Engine`."""
        return EngineStats(self._running, self._speed, self._health.failures, 0)

    @asynccontextmanager
    async def generate(
        self, request: Request, prefix: str, inputs: Sequence[bytes] = ()
    ) -> AsyncIterator[OuterGeneration]:
        """See `Engine`. Raises `OuterError` at once while the server is down."""
        if not self.ready:
            error = OuterError("the worker's server is down")
            error.retry_after_ms = self._health.retry_after_ms()
            raise error
        send, receive = trio.open_memory_channel[EngineEvent | EngineError](PIECES_AHEAD)
        generation = OuterGeneration(send, receive)

        def asked(out: OuterGeneration) -> Coroutine[Any, Any, str]:
            return self._server.answer(request, prefix, inputs, out)

        self._running += 1
        try:
            with one_error():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(generation.run, asked, self._note)
                    yield generation
                    nursery.cancel_scope.cancel()
        finally:
            self._running -= 1

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch the server; started when it was asked once, there or not."""
        try:
            await self._health.run(task_status)
        finally:
            with trio.CancelScope(shield=True):
                await self._server.aclose()

    async def _check(self) -> None:
        facts = await self._server.check()
        info = self._info
        context = self._said_context or facts.context_tokens
        self._info = ModelInfo(info.name, info.digest, context, info.device, 0, info.requests, facts.features)

    def _note(self, generation: OuterGeneration, last: EngineEvent | EngineError) -> None:
        """The speed of a whole answer; a failure that a look at the server can explain."""
        if isinstance(last, OuterError):
            gone = isinstance(last, NotConnected | BrokenOff | NotAllowed)
            gone = gone or (isinstance(last, BadStatus) and last.status >= 500)
            level = logging.WARNING if gone else logging.INFO  # the rest may be the asker's doing
            log.log(level, "the server of %s failed a query: %s", self._info.name, last.detail)
            if gone:
                self._health.suspect()
        if isinstance(last, Finished) and last.units_out > 8:
            speed = (last.units_out - 1) / max(1e-6, time.monotonic() - generation.first_at)
            self._speed = speed if not self._speed else (1 - SPEED_MEMORY) * self._speed + SPEED_MEMORY * speed
