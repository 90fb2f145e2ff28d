"""Reads the tables of `spec/*.md`, and says what they should hold according to the code.

Rule: the reader knows Markdown, not the protocol; the writer knows the protocol, not Markdown. A test compares.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from protocol import params
from protocol.messages import Between, Length

SPEC = Path(__file__).parents[2] / "spec"

Row = tuple[str, ...]

_SCALARS = {int: "int", bytes: "bin", str: "str"}
_MESSAGE_HEADING = re.compile(r"^### (?P<name>\w+) \((?P<number>\d+|record)\)$")
_UNITS = {
    "": 1,
    "bytes": 1,
    "KiB": params.KIB,
    "MiB": params.MIB,
    "ms": params.MILLISECONDS,
    "s": params.SECONDS,
    "min": params.MINUTES,
    "h": params.HOURS,
    "d": params.DAYS,
    "cr": params.MICRO,
}


@dataclass(frozen=True)
class MessageTable:
    """One message or record as a chapter describes it. `rows` are (field, type, bounds)."""

    name: str
    number: str  # decimal, or "record"
    chapter: str
    rows: tuple[Row, ...]


def message_tables() -> list[MessageTable]:
    """Every `### Name (number)` of every chapter, with the first table after it."""
    found: list[MessageTable] = []
    for chapter in sorted(SPEC.glob("*.md")):
        lines = chapter.read_text(encoding="utf-8").splitlines()
        for index, line in enumerate(lines):
            heading = _MESSAGE_HEADING.match(line)
            if heading:
                rows = tuple(row[:3] for row in _section_table(lines[index + 1 :]))
                found.append(MessageTable(heading["name"], heading["number"], chapter.name, rows))
    return found


def table_after(chapter: str, heading: str) -> list[Row]:
    """The rows of the first table below a heading line, without its two header lines."""
    lines = (SPEC / chapter).read_text(encoding="utf-8").splitlines()
    return _section_table(lines[lines.index(heading) + 1 :])


def all_rows(chapter: str, heading: str) -> list[Row]:
    """The rows of every table between a second-level heading and the next one."""
    lines = (SPEC / chapter).read_text(encoding="utf-8").splitlines()
    start = lines.index(heading) + 1
    end = next((at for at in range(start, len(lines)) if lines[at].startswith("## ")), len(lines))
    rows: list[Row] = []
    for at in range(start, end):
        if lines[at].startswith("|") and not lines[at - 1].startswith("|"):
            rows += _section_table(lines[at:end])
    return rows


def _section_table(lines: list[str]) -> list[Row]:
    """The first table in `lines` before the next heading; [] if there is none."""
    rows: list[Row] = []
    for line in lines:
        if line.startswith("|"):
            rows.append(_cells(line))
        elif rows or line.startswith("#"):
            break
    return rows[2:]


def _cells(line: str) -> Row:
    cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return tuple(cell.strip().replace("`", "") for cell in cells)


def number(text: str) -> int:
    """The integer that a cell like `8 KiB`, `1,024`, `2^53-1` or `60 s` means, in the code's base unit."""
    amount, _, unit = text.partition(" ")
    power = re.fullmatch(r"2\^(\d+)-1", amount)
    value = 2 ** int(power[1]) - 1 if power else int(amount.replace(",", ""))
    return value * _UNITS[unit]


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
    return "2^53-1" if value == params.MAX_INTEGER else f"{value:,}"


def _span(bounds: Length, unit: str) -> str:
    if bounds.low == bounds.high:
        return f"{bounds.low:,} {unit}"
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
