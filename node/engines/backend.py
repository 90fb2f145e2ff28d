"""What the child process needs of a loaded model, as types; and how simple models take turns.

Rule: a backend does bounded pieces of work, so that commands are heard in between; it knows neither pipes nor peers.
Nothing here imports torch: which model libraries a child loads is its backend's choice alone.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from node.engines.port import Data, EngineError, EngineEvent, Finished, Piece, Prompted
from protocol.errors import ErrorCode
from protocol.messages import Device, Message
from protocol.requests import Request

BatchEvent = EngineEvent | EngineError


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a backend says of its model once it is loaded."""

    context_tokens: int  # 0 where there is no such thing
    device: Device
    memory_mib: int
    requests: tuple[type[Message], ...]  # the kinds that it answers
    features: tuple[int, ...] = ()  # what it can do beyond text


class Answerer(Protocol):
    """A model that answers one request by one generator."""

    @property
    def facts(self) -> Loaded:
        """What is loaded."""

    def answer(self, request: Any, prefix: str, inputs: Sequence[bytes]) -> Iterator[EngineEvent | None]:
        """Events, and None after a bounded step of work without one. `request` is of one of `facts.requests`. Raises
        `EngineError`. Closing the generator ends the work and frees what it holds."""


class Batch(Protocol):
    """The answers in the making of one model."""

    @property
    def facts(self) -> Loaded:
        """What is loaded."""

    @property
    def runnable(self) -> bool:
        """True if `step` has something to do now."""

    def begin(self, key: int, request: Any, prefix: str, inputs: Sequence[bytes]) -> Prompted | None:
        """Take in a query; None if its prompt is counted by a later step. Raises `EngineError`."""

    def grant(self, key: int, total: int) -> None:
        """Allow `total` units in all. An unknown key changes nothing."""

    def cancel(self, key: int) -> None:
        """End at the next step with Finished("cancelled"). An unknown key changes nothing."""

    def step(self) -> list[tuple[int, BatchEvent]]:
        """One bounded piece of work for everybody who can run. `Finished` or an `EngineError` is a query's last."""


class _Turn:
    """One answer of an `Answerer`. At its grant it goes one step ahead, for that may be its last word; what comes of it
    beyond the grant is held back."""

    def __init__(self, events: Iterator[EngineEvent | None]) -> None:
        self.granted = 0
        self.cancelled = False
        self._events = events
        self._units_in = 0
        self._units_out = 0
        self._prompted = False
        self._ahead = False
        self._held: EngineEvent | None = None

    @property
    def runnable(self) -> bool:
        return self.cancelled or self._within or (self._units_out > 0 and not self._ahead)

    @property
    def _within(self) -> bool:
        return not self._prompted or self._units_out < self.granted

    def next(self) -> EngineEvent | None:
        if self.cancelled:
            self.close()
            return Finished("cancelled", self._units_in, self._units_out)
        self._ahead = not self._within
        event, self._held = self._held or next(self._events), None
        if self._ahead and isinstance(event, Piece | Data):
            self._held = event
            return None
        if isinstance(event, Prompted):
            self._prompted, self._units_in = True, event.units_in
        if isinstance(event, Piece | Data):
            self._units_out = event.units_out
        return event

    def close(self) -> None:
        close = getattr(self._events, "close", None)
        if close is not None:
            close()


class Turns:
    """The `Batch` of an `Answerer`: its oldest `slots` answers do one step each in turn."""

    def __init__(self, answerer: Answerer, slots: int) -> None:
        self._answerer = answerer
        self._slots = slots
        self._turns: dict[int, _Turn] = {}

    @property
    def facts(self) -> Loaded:
        """See `Batch`."""
        return self._answerer.facts

    @property
    def runnable(self) -> bool:
        """See `Batch`."""
        return bool(self._ready())

    def begin(self, key: int, request: Request, prefix: str, inputs: Sequence[bytes]) -> None:
        """See `Batch`."""
        if type(request) not in self.facts.requests:
            raise EngineError(ErrorCode.INVALID_REQUEST, f"this model answers no {type(request).__name__}")
        self._turns[key] = _Turn(self._answerer.answer(request, prefix, inputs))

    def grant(self, key: int, total: int) -> None:
        """See `Batch`."""
        if key in self._turns:
            self._turns[key].granted = max(self._turns[key].granted, total)

    def cancel(self, key: int) -> None:
        """See `Batch`."""
        if key in self._turns:
            self._turns[key].cancelled = True

    def step(self) -> list[tuple[int, BatchEvent]]:
        """See `Batch`."""
        return [pair for key in self._ready() for pair in self._step(key)]

    def _ready(self) -> list[int]:
        """Those that can do something now. A cancelled one need not wait for a slot."""
        oldest = set(islice(self._turns, self._slots))
        return [key for key, turn in self._turns.items() if turn.runnable and (turn.cancelled or key in oldest)]

    def _step(self, key: int) -> Iterator[tuple[int, BatchEvent]]:
        try:
            event = self._turns[key].next()
        except EngineError as error:
            del self._turns[key]
            yield key, error
            return
        except StopIteration:
            del self._turns[key]
            yield key, EngineError(ErrorCode.ENGINE_FAILED, "the model ended without a last word")
            return
        except Exception as error:
            del self._turns[key]
            yield key, failure(error, self.facts.device)
            return
        if event is not None:
            yield key, event
        if isinstance(event, Finished):
            del self._turns[key]


# --- which class loads what -----------------------------------------------------------------------------

BACKENDS: Mapping[str, str] = {
    "torch-chat": "node.engines.chat_backend:load_batch",
    "torch-vision": "node.engines.vision_chat:VisionChat",
    "vision-composed": "node.engines.vision_composed:ComposedEyes",
    "diffusers": "node.engines.imagine_diffusers:DiffusersPainter",
    "emoji": "node.engines.imagine_emoji:EmojiPainter",
    "whisper": "node.engines.speech_whisper:Transcriber",
    "voice": "node.engines.speech_voice:Voice",
    "torch-voice": "node.engines.speech_transformers:TransformersVoice",
}


def load_batch(engine: str, folder: Path, device: str, threads: int, slots: int, options: Mapping[str, str]) -> Batch:
    """Load a model. Blocks. Raises what the model's library raises."""
    module, _, name = BACKENDS[engine].partition(":")
    maker = getattr(import_module(module), name)
    if name == "load_batch":
        batch: Batch = maker(folder, device, threads, slots, options)
        return batch
    return Turns(maker(folder, device, threads, options), slots)


def process_memory_mib() -> int:
    """The most memory that this process ever had; 0 where the platform does not say."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10


def failure(error: Exception, device: Device) -> EngineError:
    """What one query's unexpected error is called. Where it may have spoilt more than that query (memory is short, or a
    card may be in any state) it is raised again: the process should end and start afresh. The log gets kind and place,
    not the message, which may hold what somebody wrote."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    print(f"a query failed: {type(error).__name__} at {last.filename}:{last.lineno}", file=sys.stderr, flush=True)
    if device.kind != "cpu" or _short_of_memory(error):
        raise error
    return EngineError(ErrorCode.ENGINE_FAILED, f"{type(error).__name__} in the model")


def _short_of_memory(error: Exception) -> bool:
    """Also in torch's words: its CPU allocator raises a RuntimeError."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "not enough memory" in str(error)
