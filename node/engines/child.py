"""The child process that holds one loaded model.

Rule: commands come in on stdin, events go out on stdout, both as frames of msgpack arrays; nothing else is ever
written to that pipe. Commands are looked at between tokens. When stdin ends, the parent is gone, and this process
ends with it.

    python -m node.engines.child FOLDER DEVICE THREADS SLOTS
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from node.engines.port import EngineError, EngineEvent, Finished, Piece, Prompted
from node.engines.torch_chat import ChatModel, Sequence
from protocol.codec import decode_as
from protocol.errors import ErrorCode
from protocol.framing import FrameReader, frame
from protocol.messages import ChatRequest
from protocol.params import MAX_FRAME_BYTES

PIPE_FRAME_BYTES = 2 * MAX_FRAME_BYTES  # a payload and a prefix, each within the wire's limit


class Pipe:
    """Frames to the parent."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def send(self, *parts: Any) -> None:
        """One frame."""
        self._stream.write(frame(msgpack.packb(parts)))
        self._stream.flush()


class Loop:
    """Runs sequences in turn, one step each, and obeys commands in between. The oldest `slots` of them run."""

    def __init__(self, model: ChatModel, slots: int, pipe: Pipe, commands: queue.Queue[list[Any]]) -> None:
        self._model = model
        self._slots = slots
        self._pipe = pipe
        self._commands = commands
        self._sequences: dict[int, Sequence] = {}
        self._handlers: dict[str, Callable[..., None]] = {
            "generate": self._generate,
            "grant": self._grant,
            "cancel": self._cancel,
        }

    def run(self) -> None:
        """For ever; the process ends when the parent does."""
        while True:
            runnable = [key for key, sequence in islice(self._sequences.items(), self._slots) if sequence.runnable]
            self._obey(wait=not runnable)
            for key in runnable:
                self._step(key)

    def _obey(self, *, wait: bool) -> None:
        while wait or not self._commands.empty():
            name, *arguments = self._commands.get()
            self._handlers[name](*arguments)
            wait = False

    def _generate(self, key: int, payload: bytes, prefix: str) -> None:
        with self._reported(key):
            sequence = Sequence(self._model, decode_as(ChatRequest, payload), prefix)
            self._sequences[key] = sequence
            self._send(key, sequence.begin())

    def _grant(self, key: int, total: int) -> None:
        if key in self._sequences:
            self._sequences[key].grant(total)

    def _cancel(self, key: int) -> None:
        if key in self._sequences:
            self._sequences[key].cancel()
            self._step(key)  # at once: it may be waiting behind the slots

    def _step(self, key: int) -> None:
        sequence = self._sequences.get(key)
        if sequence is None:
            return
        with self._reported(key):
            events = list(sequence.step())
            for event in events:
                self._send(key, event)
            if not events:
                self._pipe.send("alive")
            if sequence.finished:
                del self._sequences[key]

    def _send(self, key: int, event: EngineEvent) -> None:
        self._pipe.send(*_event_frame(key, event))

    @contextmanager
    def _reported(self, key: int) -> Iterator[None]:
        """One query's error is reported and costs no other query, unless the process is no longer sound."""
        try:
            yield
        except EngineError as error:
            self._fail(key, error.code, error.message)
        except Exception as error:
            print(f"a query failed: {_where(error)}", file=sys.stderr, flush=True)
            if isinstance(error, MemoryError) or self._model.device.type != "cpu":
                raise SystemExit(1) from None  # memory is short, or the card may be in any state: start afresh
            self._fail(key, ErrorCode.ENGINE_FAILED, f"{type(error).__name__} in the model")

    def _fail(self, key: int, code: ErrorCode, message: str) -> None:
        self._sequences.pop(key, None)
        self._pipe.send("failed", key, int(code), message)


def _where(error: Exception) -> str:
    """Kind and place. Not the message: it may hold what somebody wrote."""
    frame_summary = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {frame_summary.filename}:{frame_summary.lineno}"


def _event_frame(key: int, event: EngineEvent) -> tuple[Any, ...]:
    if isinstance(event, Prompted):
        return ("prompted", key, event.units_in)
    if isinstance(event, Piece):
        return ("piece", key, event.text, event.units_out)
    assert isinstance(event, Finished)
    return ("finished", key, event.finish, event.units_in, event.units_out)


def _read_commands(stream: BinaryIO, commands: queue.Queue[list[Any]]) -> None:
    """Frames from the parent into the queue; the end of the pipe ends the process at once."""
    reader = FrameReader(PIPE_FRAME_BYTES)
    while data := os.read(stream.fileno(), 65_536):
        reader.receive_data(data)
        while (payload := reader.next_frame()) is not None:
            commands.put(msgpack.unpackb(payload))
    os._exit(0)


def _memory_mib(model: ChatModel) -> int:
    """What the model takes: of the card, or of this process's memory; 0 where the platform does not say."""
    if model.device.type == "cuda":
        return model.card_memory_mib()
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10


def main(folder: str, device: str, threads: str, slots: str, arithmetic: str) -> None:
    """Load, say so, serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches us too; the parent decides
    pipe = Pipe(os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library's stray print must not become a frame
    commands: queue.Queue[list[Any]] = queue.Queue()
    threading.Thread(target=_read_commands, args=(sys.stdin.buffer, commands), daemon=True).start()
    try:
        model = ChatModel(Path(folder), device, int(threads), arithmetic)
    except Exception as error:
        pipe.send("broken", f"{type(error).__name__}: {error}")
        raise SystemExit(1) from error
    about = model.describe_device()
    facts = (about.kind, about.name, about.vram_mib, about.compute_capability)
    pipe.send("loaded", model.context_tokens, *facts, _memory_mib(model))
    Loop(model, int(slots), pipe, commands).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
