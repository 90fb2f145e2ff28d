"""What the tables of `spec/*.md` should hold, according to the code.

Rule: this file knows the protocol, `chapters` knows Markdown; a test compares the two.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from protocol import params
from protocol.messages import Between, Length

Row = tuple[str, ...]

_SCALARS = {int: "int", bytes: "bin", str: "str"}


def expected_rows(cls: type[Any]) -> tuple[Row, ...]:
    """(field, type, bounds) of each field of a message or record, in wire order."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple((field.name, type_text(hints[field.name]), bounds_text(hints[field.name])) for field in fields(cls))


def records_of(cls: type[Any]) -> set[type[Any]]:
    """The records nested anywhere in a message."""
    hints = get_type_hints(cls, include_extras=True).values()
    direct: set[type[Any]] = {inner for inner in map(_innermost, hints) if isinstance(inner, type)} - set(_SCALARS)
    return direct.union(*(records_of(record) for record in direct))


def name_of(value: Any) -> str:
    """A class by its name, anything else as text."""
    return str(getattr(value, "__name__", value))


def type_text(hint: Any) -> str:
    """`int`, `bin`, `str`, a record's name, or `[…]` around one of these."""
    base, _ = _split(hint)
    if get_origin(base) is tuple:
        return f"[{type_text(get_args(base)[0])}]"
    return _SCALARS.get(base) or str(base.__name__)


def bounds_text(hint: Any) -> str:
    """Bounds as the chapters write them; "" for a nested record."""
    base, bounds = _split(hint)
    if get_origin(base) is tuple:
        element = bounds_text(get_args(base)[0])
        return _span(bounds, "elements") + (f", each {element}" if element else "")
    if isinstance(bounds, Between):
        return f"{number_text(bounds.low)} … {number_text(bounds.high)}"
    return _span(bounds, "bytes") if isinstance(bounds, Length) else ""


def number_text(value: int) -> str:
    """An integer as the chapters write it."""
    named = {params.MAX_INTEGER: "2^53-1", -params.MAX_INTEGER: "-(2^53-1)"}
    return named.get(value, f"{value:,}")


def _span(bounds: Length, unit: str) -> str:
    if bounds.low == bounds.high:
        return f"{bounds.low:,} {unit if bounds.low > 1 else unit.removesuffix('s')}"
    return f"{bounds.low:,} … {bounds.high:,} {unit}"


def _split(hint: Any) -> tuple[Any, Any]:
    """(base type, bounds or None) of an annotation."""
    bounds = None
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)[:2]
    return getattr(hint, "__supertype__", hint), bounds


def _innermost(hint: Any) -> Any:
    base, _ = _split(hint)
    return _innermost(get_args(base)[0]) if get_origin(base) is tuple else base
