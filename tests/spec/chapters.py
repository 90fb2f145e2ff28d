"""Reads the tables of `spec/*.md`.

Rule: this file knows Markdown and nothing of the code; what it gives is what a stranger can read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SPEC = Path(__file__).parents[2] / "spec"

Row = tuple[str, ...]

_MESSAGE_HEADING = re.compile(r"^### (?P<name>\w+) \((?P<number>\d+|record)\)$")
_SECOND = 1_000
_UNITS = {
    "": 1,
    "bytes": 1,
    "KiB": 1_024,
    "MiB": 1_024 * 1_024,
    "ms": 1,
    "s": _SECOND,
    "min": 60 * _SECOND,
    "h": 3_600 * _SECOND,
    "d": 24 * 3_600 * _SECOND,
    "cr": 1_000_000,
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
    if text.startswith("-("):
        return -number(text[2:-1])
    amount, _, unit = text.partition(" ")
    power = re.fullmatch(r"2\^(\d+)-1", amount)
    value = 2 ** int(power[1]) - 1 if power else int(amount.replace(",", ""))
    return value * _UNITS[unit]
