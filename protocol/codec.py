"""Message <-> canonical msgpack.

Rule: there is exactly one encoding of a message, and `decode` accepts that one only. Arrays, integers
in their shortest form, bin and UTF-8 str; no maps, floats, nil, bool or ext. Types are exact (`True` is
not 1). Every bound of `messages` holds on the way out and on the way in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgpack

from protocol import params
from protocol.errors import LocalProtocolError, Malformed
from protocol.messages import NUMBERS, REGISTRY, Between, Length, Message

Decoded = TypeVar("Decoded", bound=Message)
Plain = Any  # int | bytes | str | list[Plain]: what msgpack carries
Reader = Callable[[Plain], Any]  # checks one value; it knows the name of its field


def encode(message: Message) -> bytes:
    """The canonical bytes of `message`. Raises `LocalProtocolError` if a field is out of bounds."""
    plain = [NUMBERS[type(message)], *_to_plain(message)]
    try:
        _read_fields(type(message), plain[1:])
    except Malformed as error:
        raise LocalProtocolError(str(error)) from None
    return _pack(plain)


def decode(data: bytes, limit: int = params.MAX_FRAME_BYTES) -> Message:
    """The message that `data` is. Raises `Malformed` for anything else, or for more than `limit` bytes."""
    plain = _unpack(data, limit)
    if not plain or type(plain[0]) is not int:
        raise Malformed("a message begins with its number")
    cls = REGISTRY.get(plain[0])
    if cls is None:
        raise Malformed(f"message number {plain[0]} is not known")
    message: Message = _read_fields(cls, plain[1:])
    return message


def decode_as(cls: type[Decoded], data: bytes, limit: int = params.MAX_FRAME_BYTES) -> Decoded:
    """Like `decode`, but raises `Malformed` unless the message is a `cls`."""
    message = decode(data, limit)
    if not isinstance(message, cls):
        raise Malformed(f"expected {cls.__name__}, got {type(message).__name__}")
    return message


def is_a(kind: type[Message], encoded: bytes) -> bool:
    """True if the encoded message says that it is one of these; its bytes are not looked at any further."""
    return encoded[1:2] == bytes([NUMBERS[kind]])


def body_hash(body: bytes) -> bytes:
    """sha256 of an encoded message: the id of an order, a channel, a quote, a federation."""
    return hashlib.sha256(body).digest()


def _to_plain(value: Any) -> Any:
    """`value` as msgpack carries it; a dataclass becomes the list of its fields."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, tuple):
        return [_to_plain(element) for element in value]
    if is_dataclass(value):
        return [_to_plain(getattr(value, name)) for name in _names(type(value))]  # type: ignore[arg-type]  # see _readers
    return value


@cache
def _names(cls: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))


def _pack(plain: Plain) -> bytes:
    packed: bytes = msgpack.packb(plain, use_bin_type=True, strict_types=True)
    return packed


def _unpack(data: bytes, limit: int) -> list[Plain]:
    """`data` as plain values, after the checks that need no schema."""
    if len(data) > limit:
        raise Malformed(f"{len(data)} bytes, the limit is {limit}")
    if not data:
        raise Malformed("no bytes")
    try:
        plain = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0, max_map_len=0)
    except Exception as error:  # msgpack's family of errors has no common base; all mean bad bytes
        raise Malformed(f"not msgpack: {type(error).__name__}") from None
    if not isinstance(plain, list):
        raise Malformed("a message is an array")
    _refuse_depth(plain, params.MAX_DEPTH)
    if msgpack.packb(plain, use_bin_type=True) != data:  # whatever was unpacked can be packed
        raise Malformed("not the canonical encoding")
    return plain


def _refuse_depth(plain: list[Plain], left: int) -> None:
    if left == 0:
        raise Malformed(f"nested deeper than {params.MAX_DEPTH}")
    for element in plain:
        if type(element) is list:
            _refuse_depth(element, left - 1)


def _read_fields(cls: type[Any], plain: list[Plain]) -> Any:
    readers = _readers(cls)  # type: ignore[arg-type]  # a class is hashable
    if len(plain) != len(readers):
        raise Malformed(f"{cls.__name__} has {len(readers)} fields, got {len(plain)}")
    return cls(*[reader(value) for reader, value in zip(readers, plain, strict=True)])


@cache
def _readers(cls: type[Any]) -> tuple[Reader, ...]:
    """One checking reader for each field of `cls`, made once from its annotations."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(_reader(hints[field.name], f"{cls.__name__}.{field.name}") for field in fields(cls))


def _reader(hint: Any, where: str) -> Reader:
    bounds: Any = None
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)[0], get_args(hint)[1]
    if is_dataclass(hint):
        return _record_reader(hint, where)
    if get_origin(hint) is tuple:
        return _array_reader(_reader(get_args(hint)[0], where), bounds, where)
    return _SCALARS[getattr(hint, "__supertype__", hint)](bounds, where)  # NewType -> its base


def _record_reader(cls: Any, where: str) -> Reader:
    def read(value: Plain) -> Any:
        if type(value) is not list:
            raise Malformed(f"{where} is an array")
        return _read_fields(cls, value)

    return read


def _array_reader(element: Reader, bounds: Length, where: str) -> Reader:
    def read(value: Plain) -> Any:
        if type(value) is not list:
            raise Malformed(f"{where} is an array")
        _check_length(len(value), bounds, where)
        return tuple([element(item) for item in value])

    return read


def _integer_reader(bounds: Between, where: str) -> Reader:
    low, high = bounds.low, bounds.high

    def read(value: Plain) -> Any:
        if type(value) is not int:
            raise Malformed(f"{where} is int, not {type(value).__name__}")
        if not low <= value <= high:
            raise Malformed(f"{where} is {value}, outside {low} … {high}")
        return value

    return read


def _bytes_reader(bounds: Length, where: str) -> Reader:
    low, high = bounds.low, bounds.high

    def read(value: Plain) -> Any:
        if type(value) is not bytes:
            raise Malformed(f"{where} is bytes, not {type(value).__name__}")
        if not low <= len(value) <= high:
            raise _wrong_length(len(value), bounds, where)
        return value

    return read


def _text_reader(bounds: Length, where: str) -> Reader:
    def read(value: Plain) -> Any:
        if type(value) is not str:
            raise Malformed(f"{where} is str, not {type(value).__name__}")
        try:
            length = len(value.encode())
        except UnicodeEncodeError:
            raise Malformed(f"{where} is not valid UTF-8") from None
        _check_length(length, bounds, where)
        return value

    return read


_SCALARS: dict[Any, Callable[[Any, str], Reader]] = {int: _integer_reader, bytes: _bytes_reader, str: _text_reader}


def _check_length(length: int, bounds: Length, where: str) -> None:
    if not bounds.low <= length <= bounds.high:
        raise _wrong_length(length, bounds, where)


def _wrong_length(length: int, bounds: Length, where: str) -> Malformed:
    return Malformed(f"{where} has length {length}, outside {bounds.low} … {bounds.high}")
