"""Reading this node's log files back: the last lines that fit a wish, over the rotated files, newest file first.

Rule: files are read from their ends, a block at a time, and no further than needed; no more than the wished number of
lines is kept. Both formats come out as the same records.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from node.plain_text import printable

LOG_FILE = "node.log"
QUERY = re.compile(r"\bquery ([0-9a-f]{32})\b")  # how messages name a query
HEAD = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (DEBUG|INFO|WARNING|ERROR|CRITICAL) +(\S+) +(.*)")
APPENDED = re.compile(r" \(query [0-9a-f]{32}\)$")  # to a message that does not name its query
LEVELS = ("debug", "info", "warning", "error", "critical")
BLOCK_BYTES = 64 * 1024
LONGEST_LINE = 64 * 1024  # bytes; what is beyond is left out
MOST_TRACE_LINES = 200

Record = dict[str, Any]  # time, level, logger, message, and where there are: query, trace


def log_folder(data: Path) -> Path:
    """Where the log files are."""
    return data / "logs"


def log_files(data: Path) -> list[Path]:
    """The files that exist, newest first."""
    folder = log_folder(data)
    numbered = []
    for path in folder.glob(f"{LOG_FILE}*") if folder.is_dir() else ():
        number = path.name.removeprefix(LOG_FILE).removeprefix(".") or "0"
        if number.isdigit():
            numbered.append((int(number), path))
    return [path for _, path in sorted(numbered)]


@dataclass(frozen=True, slots=True)
class Wish:
    """Which lines."""

    level: str = "debug"  # this or graver
    query: str = ""  # the beginning of an id

    def takes(self, record: Record) -> bool:
        """True if the line is wanted."""
        grave = LEVELS.index(record["level"]) >= LEVELS.index(self.level)
        return grave and (not self.query or record.get("query", "").startswith(self.query))


@dataclass(frozen=True, slots=True)
class Part:
    """An open log file, of which the first `size` bytes are to be read."""

    file: BinaryIO
    size: int


def read_log(data: Path, wish: Wish, number: int) -> list[Record]:
    """The last `number` records of a node that are wished for, oldest first. Blocks on the disk."""
    parts = _open_parts(data)
    try:
        return last_records(parts, wish, number)
    finally:
        for part in parts:
            part.file.close()


def _open_parts(data: Path) -> list[Part]:
    """The files as they are now, newest first."""
    parts = []
    for path in log_files(data):
        try:
            file = path.open("rb")
        except OSError:
            continue  # it was rotated away a moment ago
        parts.append(Part(file, file.seek(0, io.SEEK_END)))
    return parts


def last_records(parts: Sequence[Part], wish: Wish, number: int) -> list[Record]:
    """The last `number` records that are wished for, oldest first."""
    kept: deque[Record] = deque()
    if number:
        for record in _backwards(parts, wish):
            kept.appendleft(record)
            if len(kept) == number:
                break
    return list(kept)


def _backwards(parts: Sequence[Part], wish: Wish) -> Iterator[Record]:
    trace: deque[str] = deque(maxlen=MOST_TRACE_LINES)  # lines that belong to the record before them
    for part in parts:
        for line in _lines_backwards(part):
            record = read_line(line)
            if record is None:
                trace.appendleft(printable(line))
                continue
            if trace:
                record["trace"] = "\n".join(trace)
                trace.clear()
            if wish.takes(record):
                yield record


def _lines_backwards(part: Part) -> Iterator[str]:
    """Whole lines, the last first."""
    pending, at = b"", part.size
    while at:
        start = max(0, at - BLOCK_BYTES)
        part.file.seek(start)
        block = part.file.read(at - start)
        at = start
        first, *lines = (block + pending[:LONGEST_LINE]).split(b"\n")
        for line in reversed(lines):
            if line:
                yield line[:LONGEST_LINE].decode(errors="replace")
        pending = first
    if pending:
        yield pending[:LONGEST_LINE].decode(errors="replace")


def read_line(line: str) -> Record | None:
    """A line of either format; None if it is none that begins a record."""
    if line.startswith("{"):
        return _read_json(line)
    found = HEAD.fullmatch(line.rstrip())
    if found is None:
        return None
    moment, milliseconds, level, logger, message = found.groups()
    try:
        seconds = time.mktime(time.strptime(moment, "%Y-%m-%d %H:%M:%S"))
    except (ValueError, OverflowError):
        return None
    record: Record = {"time": timestamp(int(seconds), int(milliseconds)), "level": level.lower(), "logger": logger}
    record["message"] = printable(APPENDED.sub("", message))
    if query := QUERY.search(message):
        record["query"] = query[1]
    return record


def timestamp(seconds: int, milliseconds: int) -> str:
    """Unix time as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{milliseconds:03d}Z"


def _read_json(line: str) -> Record | None:
    try:
        read = json.loads(line)
        record = {name: printable(read[name]) for name in ("time", "level", "logger", "message")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    for name in ("query", "trace"):
        if isinstance(read.get(name), str):
            record[name] = printable(read[name])
    return record if record["level"] in LEVELS else None
