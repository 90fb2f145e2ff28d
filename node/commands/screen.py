"""What commands print: tables and progress for people, JSON for programs.

Rule: with `--json` standard output is one JSON value and nothing else; colour and moving lines only on a terminal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any


def print_json(value: Any) -> None:
    """One JSON value."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as their widest cell."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[index]) for line in [list(headings), *cells]) for index in range(len(headings))]
    for line in ([strong(text) for text in _padded(headings, widths)], *(_padded(row, widths) for row in cells)):
        print("  ".join(line).rstrip())


def print_facts(facts: dict[str, Any]) -> None:
    """Names and values, one a line."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        print(f"{strong(name.ljust(width))}  {value}")


def strong(text: str) -> str:
    """Bold on a terminal that wants it."""
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


def printable(text: str) -> str:
    """A peer's text without control characters: it must not move the cursor or change the title."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def show_progress(progress: dict[str, Any]) -> None:
    """One step of long work: a moving line on a terminal, a line a step elsewhere."""
    total, done = progress.get("total_bytes"), progress.get("done_bytes", 0)
    step = progress.get("step", "")
    text = f"{step} {done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else f"{step} {progress.get('message', '')}"
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="\n" if progress.get("done") else "", file=sys.stderr, flush=True)
    elif not total or done == 0:
        print(text.strip(), file=sys.stderr, flush=True)


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
