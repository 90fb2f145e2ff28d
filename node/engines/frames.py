"""What an engine's process says, read with suspicion.

Rule: a model's process may be in any state: whatever it sends is an event within the wire's limits, or `Malformed`,
which costs that process its life and the node nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from node.engines.port import EVENT_NAMES, Data, EngineError, EngineEvent, Finished, Piece, Prompted, Step
from protocol.errors import ErrorCode, Malformed
from protocol.params import MAX_CHUNK_BYTES, MAX_INTEGER

FINISHES = ("stop", "length", "cancelled")


def read_frame(payload: bytes) -> tuple[str, list[Any]]:
    """(name, values) of a frame. Raises `Malformed`."""
    try:
        parts = msgpack.unpackb(payload)
    except Exception as error:  # msgpack's family of errors has no common base
        raise Malformed(f"not msgpack: {type(error).__name__}") from None
    if not isinstance(parts, list) or not parts or not isinstance(parts[0], str):
        raise Malformed("a frame is an array that begins with a name")
    return parts[0], parts[1:]


def read_event(name: str, values: list[Any]) -> tuple[int, EngineEvent | EngineError] | None:
    """(query, event) of a frame; None if it is about no query. Raises `Malformed`."""
    reader = READERS.get(name)
    if reader is None:
        return None
    try:
        key, *fields = values
        event = reader(*fields)
    except (TypeError, ValueError):
        raise Malformed(f"a {name} frame has other fields") from None
    if type(key) is not int:
        raise Malformed(f"a {name} frame names its query by a number")
    return key, event


def _prompted(units_in: Any) -> Prompted:
    return Prompted(_count(units_in))


def _piece(text: Any, units_out: Any) -> Piece:
    return Piece(_text(text, MAX_CHUNK_BYTES), _count(units_out))


def _data(media_type: Any, data: Any, units_out: Any) -> Data:
    if not data:
        raise Malformed("data without bytes")
    return Data(_text(media_type, 64), _bytes(data), _count(units_out))


def _step(done: Any, total: Any, preview: Any) -> Step:
    return Step(_count(done), _count(total), _bytes(preview))


def _finished(finish: Any, units_in: Any, units_out: Any) -> Finished:
    if finish not in FINISHES:
        raise Malformed("an answer finishes in another way")
    return Finished(finish, _count(units_in), _count(units_out))


def _failed(code: Any, message: Any) -> EngineError:
    return EngineError(ErrorCode(code), _text(message, MAX_CHUNK_BYTES))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise Malformed("a count is a number from 0")
    return value


def _text(value: Any, most: int) -> str:
    if type(value) is not str or len(value.encode(errors="replace")) > most:
        raise Malformed(f"a text has at most {most} bytes")
    return value


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes or len(value) > MAX_CHUNK_BYTES:
        raise Malformed(f"data has at most {MAX_CHUNK_BYTES} bytes")
    return value


READERS: Mapping[str, Callable[..., EngineEvent | EngineError]] = {
    EVENT_NAMES[Prompted]: _prompted,
    EVENT_NAMES[Piece]: _piece,
    EVENT_NAMES[Data]: _data,
    EVENT_NAMES[Step]: _step,
    EVENT_NAMES[Finished]: _finished,
    "failed": _failed,
}
