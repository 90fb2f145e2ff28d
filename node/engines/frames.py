"""What an engine's process says, read with suspicion.

Rule: a model's process may be in any state: whatever it sends is an event, or a word of its own start, within the
wire's limits, or `Malformed`, which costs that process its life and the node nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack

from node.engines.port import EVENT_NAMES, CallPart, Data, EngineError, EngineEvent, Finished, Piece, Prompted, Step
from protocol.errors import ErrorCode, Malformed
from protocol.messages import NUMBERS, Chosen, Device, Likelihood
from protocol.params import (
    MAX_CHUNK_BYTES,
    MAX_CHUNK_TOKENS,
    MAX_INTEGER,
    MAX_LIKELIEST,
    MAX_NAME_BYTES,
    MAX_OUTPUT_TOKENS,
    MAX_REQUEST_KINDS,
    MAX_TOKEN_BYTES,
    MAX_TOOL_NAME_BYTES,
)
from protocol.requests import KINDS
from protocol.wishes import ModelFeature

Item = TypeVar("Item")

FINISHES = ("stop", "length", "tool_calls", "cancelled")
FEATURES = frozenset(map(int, ModelFeature))
REQUEST_NUMBERS = frozenset(NUMBERS[kind] for kind in KINDS)


@dataclass(frozen=True, slots=True)
class LoadedFrame:
    """What a process says of the model that it has loaded. Fits into an offer."""

    context_tokens: int
    device: Device
    memory_mib: int
    requests: tuple[int, ...]  # message numbers
    features: tuple[int, ...]


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


def read_loaded(values: list[Any]) -> LoadedFrame:
    """The one word of a process that can begin to answer. Raises `Malformed`."""
    context, device, memory_mib, requests, features = _fields("loaded", values, 5)
    tokens = _count(context, 16 * MAX_OUTPUT_TOKENS)  # as an offer's
    return LoadedFrame(tokens, _device(device), _count(memory_mib), _requests(requests), _features(features))


def read_broken(values: list[Any]) -> str:
    """Why a process cannot load its model. Raises `Malformed`."""
    (why,) = _fields("broken", values, 1)
    return _text(why, MAX_CHUNK_BYTES)


def _device(value: Any) -> Device:
    """The bounds are those of an offer's device."""
    kind, name, vram_mib, capability, free_mib, driver = _fields("device", value, 6)
    if kind == "":
        raise Malformed("a device is of some kind")
    return Device(
        _text(kind, 16),
        _text(name, MAX_NAME_BYTES),
        _count(vram_mib),
        _count(capability, 1_000),
        _count(free_mib),
        _text(driver, 32),
    )


def _requests(value: Any) -> tuple[int, ...]:
    if type(value) is not list or not 1 <= len(value) <= MAX_REQUEST_KINDS:
        raise Malformed(f"a model answers 1 to {MAX_REQUEST_KINDS} kinds of request")
    if any(type(number) is not int or number not in REQUEST_NUMBERS for number in value):
        raise Malformed("a model answers requests that nobody knows")
    return tuple(value)


def _features(value: Any) -> tuple[int, ...]:
    if type(value) is not list or any(type(number) is not int or number not in FEATURES for number in value):
        raise Malformed("a model has features that nobody knows")
    return tuple(sorted(set(value)))


def _fields(what: str, values: Any, count: int) -> list[Any]:
    if type(values) is not list or len(values) != count:
        raise Malformed(f"a {what} frame has other fields")
    return values


def _prompted(units_in: Any) -> Prompted:
    return Prompted(_count(units_in))


def _piece(text: Any, units_out: Any, tokens: Any) -> Piece:
    return Piece(_text(text, MAX_CHUNK_BYTES), _count(units_out), _several(tokens, _chosen, MAX_CHUNK_TOKENS))


def _chosen(value: Any) -> Chosen:
    token, nats, likeliest = _fields("chosen token's", value, 3)
    return Chosen(_token(token), _count(nats), _several(likeliest, _likelihood, MAX_LIKELIEST))


def _likelihood(value: Any) -> Likelihood:
    token, nats = _fields("likely token's", value, 2)
    return Likelihood(_token(token), _count(nats))


def _token(value: Any) -> bytes:
    if type(value) is not bytes or len(value) > MAX_TOKEN_BYTES:
        raise Malformed(f"a token has at most {MAX_TOKEN_BYTES} bytes")
    return value


def _several(value: Any, read: Callable[[Any], Item], most: int) -> tuple[Item, ...]:
    if type(value) is not list or len(value) > most:
        raise Malformed(f"there are at most {most} of a thing")
    return tuple(map(read, value))


def _call(name: Any, arguments: Any, units_out: Any) -> CallPart:
    return CallPart(_text(name, MAX_TOOL_NAME_BYTES), _text(arguments, MAX_CHUNK_BYTES), _count(units_out))


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
    return EngineError(ErrorCode(_count(code)), _text(message, MAX_CHUNK_BYTES))


def _count(value: Any, most: int = MAX_INTEGER) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise Malformed(f"a count is a number from 0 to {most}")
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
    EVENT_NAMES[CallPart]: _call,
    EVENT_NAMES[Data]: _data,
    EVENT_NAMES[Step]: _step,
    EVENT_NAMES[Finished]: _finished,
    "failed": _failed,
}
