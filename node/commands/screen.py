"""What commands print: tables and progress for people, JSON for programs.

Rule: with `--json` standard output is one JSON value and nothing else; bold text, bars and moving lines only on a
terminal that wants them (NO_COLOR, TERM=dumb), plain lines elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from node.plain_text import printable as printable

if TYPE_CHECKING:
    from rich.table import Table

Show = Callable[[dict[str, Any]], None]


def print_json(value: Any) -> None:
    """One JSON value."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]], unbroken: int = 0) -> None:
    """Columns as wide as their widest cell; on a terminal, as wide as it has room for. The first `unbroken` columns are
    not folded: what is in them is to be typed again."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich_table(headings, cells, unbroken)
        return
    widths = [max(len(line[index]) for line in [list(headings), *cells]) for index in range(len(headings))]
    for line in (headings, *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_rich_table(headings: Sequence[str], cells: Sequence[Sequence[str]], unbroken: int) -> None:
    from rich.console import Console

    Console().print(rich_table(headings, cells, unbroken))


def rich_table(headings: Sequence[str], cells: Sequence[Sequence[str]], unbroken: int = 0) -> Table:
    """See `print_table`."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold" if "NO_COLOR" not in os.environ else "")
    for index, heading in enumerate(headings):
        table.add_column(Text(heading), overflow="fold", no_wrap=index < unbroken)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # Text: what a peer wrote is no markup
    return table


def print_facts(facts: dict[str, Any]) -> None:
    """Names and values, one a line; a value's further lines stand below its first."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        text = str(value).replace("\n", "\n" + " " * (width + 2))
        print(f"{strong(name.ljust(width))}  {text}")


def strong(text: str) -> str:
    """Bold on a terminal that wants it."""
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


class StatusLine:
    """What is waited for, on standard error: one line that is written over and taken away; nothing on a pipe."""

    def __init__(self) -> None:
        self.seen = sys.stderr.isatty()
        self._moving = self.seen and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._text = ""

    def show(self, text: str) -> None:
        """Instead of what the line said before."""
        if not self.seen or text == self._text:
            return
        self._text = text
        room = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
        line = printable(text).replace("\n", " ").replace("\t", " ")
        print(f"\r\x1b[K{line[:room]}" if self._moving else f"{line}\n", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take it away: something else is to be shown."""
        if self._moving and self._text:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._text = ""


def waiting_words(standing: dict[str, Any]) -> str:
    """What the `mtor` object of a chunk says about waiting; "" if it says nothing."""
    if "waiting" in standing:
        back = f", back in {_seconds(standing['retry_ms'])} at the soonest" if standing.get("retry_ms") else ""
        return f"waiting for somebody to go on: {standing['waiting']}{back}"
    if "queue_position" not in standing:
        return ""
    place, worker = standing["queue_position"], f"…{standing['worker'][-8:]}"
    if not place:
        return f"waiting: {worker} begins"
    some = f", some {_seconds(standing['wait_ms'])}" if standing["wait_ms"] else ""
    return f"waiting: {_ordinal(place)} in the queue of {worker}{some}"


def _seconds(milliseconds: int) -> str:
    return f"{-(-milliseconds // 1_000)} s"


def _ordinal(number: int) -> str:
    last = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{last}"


@contextmanager
def progress_shown() -> Iterator[Show]:
    """Long work, step by step: a bar on a terminal, a line a step elsewhere, both on standard error."""
    if sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield _line_a_step()


def _line_a_step() -> Show:
    told: set[str] = set()

    def show(progress: dict[str, Any]) -> None:
        line = _said(progress)
        if line not in told:
            told.add(line)
            print(line, file=sys.stderr, flush=True)

    return show


@contextmanager
def _bars() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    texts = (TextColumn("{task.description}", markup=False), TextColumn("{task.fields[size]}", markup=False))
    with Progress(texts[0], BarColumn(), texts[1], TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(progress: dict[str, Any]) -> None:
            line, (done, total, size) = _said(progress), _far(progress)
            if line not in tasks:
                for task in tasks.values():  # a new step: those before it are done
                    bars.update(task, total=1, completed=1)
                tasks[line] = bars.add_task(line, total=None, size="")
            bars.update(tasks[line], total=total or None, completed=done, size=size)

        yield show


def _far(progress: dict[str, Any]) -> tuple[int, int, str]:
    """How much is done, of how much, and that in words: bytes, or things that are counted."""
    if "total_count" in progress:
        done, total = progress["done_count"], progress["total_count"]
        return done, total, f"{done:,} of {total:,}"
    done, total = progress["done_bytes"], progress["total_bytes"]
    return done, total, (f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else "") + _pace(progress)


def _pace(progress: dict[str, Any]) -> str:
    """Speed and remaining time, where they are known."""
    rate, left = progress.get("bytes_per_second"), progress.get("seconds_left")
    pace = f", {rate / 1e6:.1f} MB/s" if rate else ""
    return pace + (f", {left // 60}:{left % 60:02} left" if left else "")


def _said(progress: dict[str, Any]) -> str:
    return f"{progress['step']} {progress.get('message', '')}".rstrip()
