"""An engine in a child process.

Rule: whatever happens to the child (a crash, a kill, a hang) costs the queries that ran in it and nothing else: they
fail with ENGINE_FAILED, the child is started again with growing pauses, and the node stays up. Ending the process
gives all of its memory back at once: that is how a model leaves a card to its owner, and to other models.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import trio

from node.engines.frames import LoadedFrame, read_broken, read_event, read_frame, read_loaded
from node.engines.port import (
    PIPE_FRAME_BYTES,
    CallPart,
    Data,
    EngineError,
    EngineEvent,
    EngineStats,
    Finished,
    ModelInfo,
    Piece,
    Prompted,
)
from node.log_context import current_query, query_named
from node.nurseries import one_error
from protocol.codec import encode
from protocol.errors import ErrorCode, Malformed
from protocol.framing import FrameReader, frame
from protocol.messages import Device
from protocol.requests import Request

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.engine")

FIRST_RESTART_SECONDS = 0.5
MOST_RESTART_SECONDS = 60.0
LEAST_PATIENCE_SECONDS = 30.0
PATIENCE = 30  # times the longest silence that ended well
HANG_SECONDS = 60.0  # without a sign of life while there is work; one step (a token, 256 of a prompt) is far shorter
LOAD_SECONDS = 900.0  # the largest models from a slow disk
FIXED = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# A thread that waits for the others of its step gives its core away after some microseconds. Left to itself it turns in
# a loop, and where something else wants the core too, a step takes ten times as long.
SHORT_WAITS = {"GOMP_SPINCOUNT": "3000"}
SPEED_MEMORY = 0.3  # weight of the newest answer in the measured speed


class EngineStartError(Exception):
    """The model cannot be loaded at all; trying again would not help."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What to load: a folder with config, tokenizer and safetensors, checked by the model store."""

    name: str
    path: Path
    digest: bytes
    engine: str = "torch-chat"  # of `node.engines.backend.BACKENDS`
    realm: str = "$CHAT"  # what it is made for


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a child runs. `device` is auto, cpu or cuda."""

    device: str = "auto"
    environment: Mapping[str, str] = field(default_factory=dict)  # which card it sees
    options: Mapping[str, str] = field(default_factory=dict)  # of the engine, over those that it has
    declared: Device | None = None  # what is said of the device instead of what the child finds


@dataclass(eq=False)
class _Resuming:
    """Somebody who waits until a child is loaded."""

    settled: trio.Event = field(default_factory=trio.Event)
    loaded: bool = False
    failure: EngineStartError | None = None


@dataclass(eq=False)
class ProcessGeneration:
    """One answer from the child."""

    key: int
    child: _Child
    send: trio.MemorySendChannel[EngineEvent | EngineError]
    receive: trio.MemoryReceiveChannel[EngineEvent | EngineError]
    query: str = field(default_factory=current_query)  # for the log: whose answer it is
    granted: int = 0
    produced: int = 0
    prompted: bool = False
    cancelling: bool = False
    first_at: float = 0.0
    ended: bool = False

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
        if total_units_out > self.granted and not self.ended:
            self.child.excuse()
            self.granted = total_units_out
            await self.child.command("grant", self.key, total_units_out)

    async def cancel(self) -> None:
        """See `Generation`."""
        if not (self.ended or self.cancelling):
            self.cancelling = True
            await self.child.command("cancel", self.key)

    @property
    def at_work(self) -> bool:
        """True while the child owes an event."""
        return not self.ended and (not self.prompted or self.cancelling or self.produced < self.granted)


@dataclass(eq=False)
class _Child:
    """One life of the child process."""

    process: trio.Process
    loaded: bool = False
    generations: dict[int, ProcessGeneration] = field(default_factory=dict)
    heard_at: float = field(default_factory=time.monotonic)
    longest_silence: float = 0.0  # seconds, while it owed something
    answered: bool = False
    sending: trio.Lock = field(default_factory=trio.Lock)

    @property
    def busy(self) -> bool:
        """True while it owes a sign of life."""
        return not self.loaded or any(generation.at_work for generation in self.generations.values())

    def hear(self) -> None:
        """It gave a sign of life."""
        now = time.monotonic()
        if self.loaded and self.busy:
            self.longest_silence = max(self.longest_silence, now - self.heard_at)
        self.heard_at = now

    def excuse(self) -> None:
        """What it did not say while it owed nothing is no silence."""
        if not self.busy:
            self.heard_at = time.monotonic()

    async def command(self, *parts: Any) -> None:
        """Send one command. Nothing happens if the child is gone: `events` tells that."""
        assert self.process.stdin is not None
        data = frame(msgpack.packb(parts))
        async with self.sending:
            # A frame goes out whole, or the child would read the next one wrongly. It always reads, or is ended.
            with trio.CancelScope(shield=True), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.process.stdin.send_all(data)


class ProcessEngine:
    """The `Engine` port over `node.engines.child`. `threads` 0 lets torch choose; `slots` answers run at once."""

    def __init__(
        self,
        model: ModelFolder,
        device: str = "auto",
        threads: int = 0,
        slots: int = 64,
        hang_seconds: float = HANG_SECONDS,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """`hang_seconds` is the longest that one step may take; less is allowed once steps were seen. `options` are the
        engine's own, such as `arithmetic` of torch-chat."""
        self._model = model
        self._threads = threads
        self._slots = slots
        self._options = dict(options or {})
        self._seat = Seat(device)
        self._hang_seconds = hang_seconds
        self._child: _Child | None = None
        self._info: ModelInfo | None = None
        self._keys = 0
        self._restarts = 0
        self._speed = 0.0
        self._awake = trio.Event()  # replaced by `suspend`
        self._awake.set()
        self._gone = trio.Event()  # set while there is no child
        self._gone.set()
        self._life: trio.CancelScope | None = None
        self._resuming: _Resuming | None = None
        self._process_id: int | None = None

    # --- the port ------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        """See `Engine`."""
        if self._info is None:
            raise RuntimeError("the engine was never loaded")
        return self._info

    @property
    def ready(self) -> bool:
        """See `Engine`."""
        return self._child is not None

    @property
    def pid(self) -> int | None:
        """The child's process id, None while it is being started."""
        return self._child.process.pid if self._child else None

    @property
    def process_id(self) -> int | None:
        """The child's process id from its first moment to its last."""
        return self._process_id

    def stats(self) -> EngineStats:
        """See `Engine`."""
        generations = self._child.generations.values() if self._child else ()
        running = sum(not generation.cancelling for generation in generations)
        memory = self._info.memory_mib if self._info else 0
        return EngineStats(running, self._speed, self._restarts, memory)

    @asynccontextmanager
    async def generate(
        self, request: Request, prefix: str, inputs: Sequence[bytes] = ()
    ) -> AsyncIterator[ProcessGeneration]:
        """See `Engine`."""
        child = self._child
        if child is None:
            raise EngineError(ErrorCode.ENGINE_FAILED, "the model is being loaded")
        self._keys += 1
        # No bound is needed here: the child never has more out than was granted.
        send, receive = trio.open_memory_channel[EngineEvent | EngineError](math.inf)
        generation = ProcessGeneration(self._keys, child, send, receive)
        child.excuse()
        child.generations[generation.key] = generation  # until the child said its last word of it
        try:
            await child.command("generate", generation.key, encode(request), prefix, list(inputs))
        except BaseException:  # it was not sent
            del child.generations[generation.key]
            raise
        try:
            yield generation
        finally:
            with trio.CancelScope(shield=True):
                await generation.cancel()

    # --- leaving and coming back -----------------------------------------------------------------------

    @property
    def loaded_before(self) -> bool:
        """True once `info` is known."""
        return self._info is not None

    async def suspend(self) -> None:
        """End the child at once and start none until `resume`; returns when it is gone and its memory is free. Answers
        in the making fail with PAUSED."""
        if self._awake.is_set():
            self._awake = trio.Event()
        if self._life is not None:
            self._life.cancel()
        await self._gone.wait()

    async def resume(self, seat: Seat | None = None) -> None:
        """Start a child, on `seat` if one is given; returns once it is loaded. Raises `EngineStartError` if it cannot
        be. After that, and when it is cancelled, the engine is suspended again."""
        self._seat = seat or self._seat
        resuming = self._resuming = _Resuming()
        self._awake.set()
        try:
            await resuming.settled.wait()
        finally:
            self._resuming = None
            if not resuming.loaded:
                with trio.CancelScope(shield=True):
                    await self.suspend()
        if resuming.failure is not None:
            raise resuming.failure

    # --- the service ---------------------------------------------------------------------------------

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a child running; started when the model is loaded, or at once if the engine is suspended. Raises
        `EngineStartError` if it never loads, unless that is told to who called `resume`."""
        pause = FIRST_RESTART_SECONDS
        if not self._awake.is_set():
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
        while True:
            await self._awake.wait()
            began = time.monotonic()
            self._gone = trio.Event()
            try:
                with self._failing(), one_error(), trio.CancelScope() as self._life:
                    await self._one_life(task_status if self._info is None else trio.TASK_STATUS_IGNORED)
            finally:
                self._life = None
                self._gone.set()
            if not self._awake.is_set():
                continue
            if time.monotonic() - began > MOST_RESTART_SECONDS:
                pause = FIRST_RESTART_SECONDS
            self._restarts += 1
            log.warning("engine of %s ended; it starts again in %.1f s", self._model.name, pause)
            await trio.sleep(pause)
            pause = min(pause * 2, MOST_RESTART_SECONDS)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """A child that does not load is told to who waits for it."""
        try:
            yield
        except EngineStartError as error:
            if self._resuming is None:
                raise
            self._awake = trio.Event()
            self._resuming.failure = error
            self._resuming.settled.set()

    async def _one_life(self, task_status: TaskStatus[None]) -> None:
        seat = self._seat
        environment = {**SHORT_WAITS, **os.environ, **FIXED, **seat.environment}
        with trio.CancelScope(shield=True):  # a process that is started is known here
            process = await trio.lowlevel.open_process(
                self._command(seat),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
        child = _Child(process)
        self._process_id = process.pid
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_log_stderr, process)
                nursery.start_soon(self._watch, child)
                await self._listen(child, task_status)
                nursery.cancel_scope.cancel()
        finally:
            self._child = None
            self._fail_all(child)
            await _end(process)
            self._process_id = None

    def _command(self, seat: Seat) -> list[str]:
        command = [sys.executable, "-m", "node.engines.child", self._model.engine, str(self._model.path), seat.device]
        return [*command, str(self._threads), str(self._slots), json.dumps(self._options | dict(seat.options))]

    async def _listen(self, child: _Child, task_status: TaskStatus[None]) -> None:
        """Take the child's frames until its end."""
        reader = FrameReader(PIPE_FRAME_BYTES)
        assert child.process.stdout is not None
        try:
            async for data in child.process.stdout:
                reader.receive_data(data)
                while (payload := reader.next_frame()) is not None:
                    child.hear()
                    self._take(child, *read_frame(payload), task_status)
        except Malformed as error:
            log.error("engine of %s speaks garbage (%s); it is ended", self._model.name, error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        if self._must_load(child):
            raise EngineStartError(f"the engine of {self._model.name} ended before it was loaded; see the log")

    def _take(self, child: _Child, name: str, values: list[Any], task_status: TaskStatus[None]) -> None:
        if name in ("loaded", "broken") and child.loaded:
            raise Malformed(f"a {name} frame of a process that is loaded")
        if name == "loaded":
            self._loaded(child, read_loaded(values))
            task_status.started()
        if name == "broken":
            why = read_broken(values)
            if self._must_load(child):
                raise EngineStartError(f"{self._model.name} cannot be loaded: {why}")
            log.error("%s cannot be loaded again: %s", self._model.name, why)
        keyed = read_event(name, values)
        generation = child.generations.get(keyed[0]) if keyed is not None else None
        if generation is not None and keyed is not None:
            self._note(child, generation, keyed[1])
            generation.send.send_nowait(keyed[1])

    def _loaded(self, child: _Child, said: LoadedFrame) -> None:
        about, model = self._seat.declared or said.device, self._model
        self._info = ModelInfo(
            model.name, model.digest, said.context_tokens, about, said.memory_mib, said.requests, said.features
        )
        self._child = child
        child.loaded = True
        if self._resuming is not None:
            self._resuming.loaded = True
            self._resuming.settled.set()
        log.info("%s is loaded on %s (%s)", self._model.name, about.kind, about.name)

    def _must_load(self, child: _Child) -> bool:
        """Is there somebody to tell that this child did not load?"""
        return not child.loaded and (self._info is None or self._resuming is not None)

    def _note(self, child: _Child, generation: ProcessGeneration, event: EngineEvent | EngineError) -> None:
        """Keep count: what was produced, and how fast."""
        generation.prompted = generation.prompted or isinstance(event, Prompted)
        if isinstance(event, Piece | CallPart | Data):
            generation.first_at = generation.first_at or time.monotonic()
            generation.produced = event.units_out
        if isinstance(event, Finished | EngineError):
            generation.ended = True
            self._tell_end(generation, event)
            child.answered = True
            child.generations.pop(generation.key, None)
        if isinstance(event, Finished) and event.units_out > 8:
            speed = (event.units_out - 1) / max(1e-6, time.monotonic() - generation.first_at)
            self._speed = speed if not self._speed else (1 - SPEED_MEMORY) * self._speed + SPEED_MEMORY * speed

    def _tell_end(self, generation: ProcessGeneration, event: EngineEvent | EngineError) -> None:
        """The code alone: a message may repeat what was asked."""
        with query_named(generation.query):
            if isinstance(event, EngineError):
                log.info("the engine of %s gave it up: %s", self._model.name, event.code.name.lower())
            else:
                log.debug("the engine of %s is done with it: %d units", self._model.name, generation.produced)

    async def _watch(self, child: _Child) -> None:
        """End a child that owes something and gives no sign of life."""
        while True:
            await trio.sleep(min(1.0, self._hang_seconds / 10))
            child.excuse()
            patience = self._patience(child)
            if time.monotonic() - child.heard_at > patience:
                log.error("engine of %s hangs; it is ended", self._model.name)
                child.process.kill()
                return

    def _patience(self, child: _Child) -> float:
        """Seconds without a sign of life that are no hang. Little is known of a model until it has answered once."""
        if not child.loaded:
            return LOAD_SECONDS
        if not child.answered:
            return self._hang_seconds
        return min(self._hang_seconds, max(LEAST_PATIENCE_SECONDS, PATIENCE * child.longest_silence))

    def _fail_all(self, child: _Child) -> None:
        why = (ErrorCode.ENGINE_FAILED, "the engine crashed")
        if not self._awake.is_set():
            why = (ErrorCode.PAUSED, "the owner of this node took the machine back")
        for generation in list(child.generations.values()):
            generation.ended = True
            self._tell_end(generation, EngineError(*why))
            generation.send.send_nowait(EngineError(*why))
        child.generations.clear()


async def _end(process: trio.Process) -> None:
    """Kill and reap. All of its memory, the card's too, is free afterwards."""
    process.kill()
    with trio.CancelScope(shield=True):
        await process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            await trio.aclose_forcefully(pipe)


async def _log_stderr(process: trio.Process) -> None:
    """The child's complaints into the log. It never writes prompts or answers there."""
    assert process.stderr is not None
    pending = b""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in process.stderr:
            *lines, pending = (pending + data).split(b"\n")
            pending = pending[-4_096:]
            for line in lines:
                if line.strip():
                    log.debug("engine: %s", line.decode(errors="replace")[:500])
