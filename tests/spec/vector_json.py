"""Messages as the JSON of `spec/vectors/`: `{"type": …, field: …}`, byte strings in hexadecimal.

Rule: driven by the annotations of `protocol.messages` alone, so that a new message needs no line here.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from protocol.messages import REGISTRY, Message

Json = Any

MESSAGES = {cls.__name__: cls for cls in REGISTRY.values()}


def to_json(message: Message) -> dict[str, Json]:
    """A message with its name."""
    return {"type": type(message).__name__, **_record_to_json(message)}


def from_json(value: dict[str, Json]) -> Message:
    """The inverse of `to_json`. Bounds are not checked here."""
    message: Message = _record_from_json(MESSAGES[value["type"]], value)
    return message


def _record_to_json(record: Any) -> dict[str, Json]:
    return {field.name: _value_to_json(getattr(record, field.name)) for field in fields(record)}


def _value_to_json(value: Any) -> Json:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_value_to_json(element) for element in value]
    return _record_to_json(value) if is_dataclass(value) else value


def _record_from_json(cls: type[Any], value: dict[str, Json]) -> Any:
    hints = get_type_hints(cls, include_extras=True)
    return cls(**{field.name: _value_from_json(hints[field.name], value[field.name]) for field in fields(cls)})


def _value_from_json(hint: Any, value: Json) -> Any:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) is tuple:
        return tuple(_value_from_json(get_args(hint)[0], element) for element in value)
    if is_dataclass(hint):
        return _record_from_json(hint, value)  # type: ignore[arg-type]  # a class, not an instance
    return bytes.fromhex(value) if getattr(hint, "__supertype__", hint) is bytes else value
