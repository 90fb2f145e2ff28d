"""What the node needs of an engine, as types.

Rule: nothing above this file knows torch. An engine answers one realm's requests with a stream of events,
never produces more tokens than were granted, and stops at the next token when cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from protocol import params
from protocol.errors import ErrorCode
from protocol.messages import ChatRequest, Chosen, Device
from protocol.requests import Request
from protocol.wishes import wishes_of


class EngineError(Exception):
    """A generation failed. `code` is what the wire says of it (CONTEXT_OVERFLOW, INVALID_REQUEST, ENGINE_FAILED …)."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def check_roles(request: ChatRequest) -> None:
    """What every engine asks of a request. Raises `EngineError`."""
    known = {"system", "user", "assistant"} | ({"tool"} if wishes_of(request).calls else set())
    strange = {turn.role for turn in request.turns} - known
    if strange:
        said = f"roles are {', '.join(sorted(known))}, not {', '.join(sorted(strange))}"
        raise EngineError(ErrorCode.INVALID_REQUEST, said)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What was loaded."""

    name: str
    digest: bytes  # 32 bytes
    context_tokens: int  # 0 where a realm has no such thing
    device: Device
    memory_mib: int
    requests: tuple[int, ...]  # message numbers of the requests that it answers
    features: tuple[int, ...] = ()  # numbers of what it can do beyond text


@dataclass(frozen=True, slots=True)
class Prompted:
    """First event: the prompt was counted (chat template and prefix included)."""

    units_in: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text, whole code points only. `units_out` counts the output tokens so far, held-back ones included."""

    text: str
    units_out: int
    tokens: tuple[Chosen, ...] = ()  # that the text consists of, where likelihoods are asked for


@dataclass(frozen=True, slots=True)
class CallPart:
    """A call of a tool, or, without a name, more of the last one's arguments. `units_out` as in `Piece`."""

    name: str
    arguments: str
    units_out: int


@dataclass(frozen=True, slots=True)
class Data:
    """The next bytes of a picture or sound. `units_out` as in `Piece`; a picture's come with its last bytes, so that
    nothing is owed for half a picture."""

    media_type: str  # "image/png", "audio/pcm;rate=24000": one channel, 16 bits, little endian
    data: bytes  # at most MAX_CHUNK_BYTES
    units_out: int


@dataclass(frozen=True, slots=True)
class Step:
    """How far a long piece of work is. `total` 0: not known. `preview` is a small PNG or JPEG, or empty."""

    done: int
    total: int
    preview: bytes = b""


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event. `finish` is "stop", "length", "tool_calls" or "cancelled"."""

    finish: str
    units_in: int
    units_out: int


EngineEvent = Prompted | Piece | CallPart | Data | Step | Finished

EVENT_NAMES: dict[type[EngineEvent], str] = {
    Prompted: "prompted",
    Piece: "piece",
    CallPart: "call",
    Data: "data",
    Step: "step",
    Finished: "finished",
}  # on the pipe between a node and its engine's process

# A payload and a prefix, each within the wire's limit, and the media beside them.
PIPE_FRAME_BYTES = 2 * params.MAX_FRAME_BYTES + params.MAX_INPUT_BYTES


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Measured by the parent, for offers and `mtor status`."""

    running: int
    tokens_per_second: float  # recent, 0.0 before the first answer
    restarts: int
    memory_mib: int


class Generation(Protocol):
    """One answer in the making."""

    def events(self) -> AsyncGenerator[EngineEvent, None]:
        """Events in order: Prompted, then pieces, data and steps, then Finished. Raises `EngineError`; a crash is
        ENGINE_FAILED."""

    async def grant(self, total_units_out: int) -> None:
        """Allow output up to this many tokens in all. Before the first grant only the prompt is processed.
        A lower total than before changes nothing. A crash is told by `events`, not here."""

    async def cancel(self) -> None:
        """Stop at the next token; the events end with Finished("cancelled")."""


class Engine(Protocol):
    """A loaded model, or one being loaded or restarted."""

    @property
    def info(self) -> ModelInfo:
        """What is loaded. Known once `run` has started."""

    @property
    def ready(self) -> bool:
        """False while loading or restarting."""

    def stats(self) -> EngineStats:
        """Figures of now."""

    def generate(
        self, request: Request, prefix: str, inputs: Sequence[bytes] = ()
    ) -> AbstractAsyncContextManager[Generation]:
        """Begin an answer that continues `prefix`. `inputs` are the bytes of the request's media. Leaving the context
        cancels what still runs."""
