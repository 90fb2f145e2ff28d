"""The child process that holds one loaded model.

Rule: commands come in on stdin, events go out on stdout, both as frames of msgpack arrays; nothing else is ever
written to that pipe. Commands are looked at between tokens. When stdin ends, the parent is gone, and this process
ends with it.

    python -m node.engines.child ENGINE FOLDER DEVICE THREADS SLOTS OPTIONS   (OPTIONS is a JSON object)
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from node.engines.backend import Batch, BatchEvent, failure, load_batch
from node.engines.port import EVENT_NAMES, PIPE_FRAME_BYTES, EngineError
from protocol.codec import decode
from protocol.framing import FrameReader, frame
from protocol.messages import NUMBERS

MOST_REASON = 4_096  # characters


class Pipe:
    """Frames to the parent."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def send(self, *parts: Any) -> None:
        """One frame."""
        self._stream.write(frame(msgpack.packb(parts)))
        self._stream.flush()


class Loop:
    """Has the backend work a step at a time, and obeys commands in between."""

    def __init__(self, batch: Batch, pipe: Pipe, commands: queue.Queue[list[Any]]) -> None:
        self._batch = batch
        self._pipe = pipe
        self._commands = commands
        self._handlers: dict[str, Callable[..., None]] = {
            "generate": self._generate,
            "grant": batch.grant,
            "cancel": batch.cancel,
        }

    def run(self) -> None:
        """For ever; the process ends when the parent does."""
        while True:
            self._obey(wait=not self._batch.runnable)
            if self._batch.runnable:
                self._step()

    def _obey(self, *, wait: bool) -> None:
        while wait or not self._commands.empty():
            name, *arguments = self._commands.get()
            self._handlers[name](*arguments)
            wait = False

    def _generate(self, key: int, payload: bytes, prefix: str, inputs: list[bytes]) -> None:
        try:
            prompted = self._batch.begin(key, decode(payload), prefix, inputs)
        except EngineError as error:
            self._send(key, error)
        except Exception as error:
            self._send(key, failure(error, self._batch.facts.device))
        else:
            if prompted is not None:
                self._send(key, prompted)

    def _step(self) -> None:
        """What escapes here concerns no single query: the process ends, and the parent starts another."""
        events = self._batch.step()
        for key, event in events:
            self._send(key, event)
        if not events:
            self._pipe.send("alive")

    def _send(self, key: int, event: BatchEvent) -> None:
        self._pipe.send(*_event_frame(key, event))


def _event_frame(key: int, event: BatchEvent) -> tuple[Any, ...]:
    """An event as `node.engines.process` reads it."""
    if isinstance(event, EngineError):
        return ("failed", key, int(event.code), event.message)
    return (EVENT_NAMES[type(event)], key, *astuple(event))


def _reason(error: Exception) -> str:
    """In characters that a frame can carry, and no more than it may: torch lists every tensor that it misses."""
    return f"{type(error).__name__}: {error}"[:MOST_REASON].encode(errors="replace").decode()


def _read_commands(stream: BinaryIO, commands: queue.Queue[list[Any]]) -> None:
    """Frames from the parent into the queue; the end of the pipe ends the process at once."""
    reader = FrameReader(PIPE_FRAME_BYTES)
    while data := os.read(stream.fileno(), 65_536):
        reader.receive_data(data)
        while (payload := reader.next_frame()) is not None:
            commands.put(msgpack.unpackb(payload))
    os._exit(0)


def main(engine: str, folder: str, device: str, threads: str, slots: str, options: str) -> None:
    """Load, say so, serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches us too; the parent decides
    pipe = Pipe(os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library's stray print must not become a frame
    commands: queue.Queue[list[Any]] = queue.Queue()
    threading.Thread(target=_read_commands, args=(sys.stdin.buffer, commands), daemon=True).start()
    try:
        batch = load_batch(engine, Path(folder), device, int(threads), int(slots), json.loads(options))
    except Exception as error:
        pipe.send("broken", _reason(error))
        raise SystemExit(1) from error
    facts = batch.facts
    numbers = [NUMBERS[request] for request in facts.requests]
    pipe.send("loaded", facts.context_tokens, astuple(facts.device), facts.memory_mib, numbers, list(facts.features))
    Loop(batch, pipe, commands).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
