"""Logs: a rotating file in the data folder, and the terminal.

Rule: what people wrote and what models answered never comes near a logger, and neither do keys; should a bug bring them
there, they are taken out again. Each line has time, level, part and message, and the id of the query that it concerns,
by which it can be followed across nodes. Strangers' words cannot begin a line or move a cursor.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node.config import LogSection
from node.log_context import current_query
from node.log_files import LOG_FILE as LOG_FILE
from node.log_files import QUERY, Record, timestamp
from node.log_files import log_folder as log_folder
from node.plain_text import one_line, printable

LINE_MADE = "mtor_line"  # of a record: its line, once it is made
QUIET = ("libp2p", "multiaddr", "aiohttp", "async_service", "root.libp2p")
LINE = "%(asctime)s %(levelname)-7s %(name)-16s %(message)s"
CONFIDENTIAL = ("protocol.messages", "protocol.signing", "node.answers", "node.identity", "node.engines.port")


class Discretion(logging.Filter):
    """Values that hold conversations or keys leave a record as the names of their types, bytes as their number."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        if LINE_MADE in record.__dict__:
            return True
        record.msg = _discreet(record.msg)
        if isinstance(record.args, Mapping):
            record.args = {name: _discreet(value) for name, value in record.args.items()}
        elif record.args:
            record.args = tuple(_discreet(value) for value in record.args)
        return True


def _discreet(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, list | tuple | set | frozenset):
        return [_discreet(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _discreet(item) for name, item in value.items()}
    kind = type(value)
    confidential = kind.__module__ in CONFIDENTIAL and not isinstance(value, BaseException)
    return f"<{kind.__name__}>" if confidential else value


def _query_of(message: str) -> str:
    """The query that a line concerns: the one that its words name, or the one that is being worked on."""
    named = QUERY.search(message)
    return named[1] if named else current_query()


class TextLines(logging.Formatter):
    """One line a record; a trace follows in lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        record.message = one_line(record.message)
        query = _query_of(record.message)
        return super().formatMessage(record) + (f" (query {query})" if query and query not in record.message else "")

    def formatException(self, exc_info: Any) -> str:
        """See `logging.Formatter`."""
        return printable(super().formatException(exc_info))


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return json.dumps(as_record(record), ensure_ascii=False)


class Once(logging.Formatter):
    """File and terminal get the same line: it is made for the first of them."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        made: str | None = record.__dict__.get(LINE_MADE)
        if made is None:
            made = record.__dict__[LINE_MADE] = self._formatter.format(record)
        return made


class RotatingFile(logging.handlers.RotatingFileHandler):
    """The library's, for a file that is always one: it would ask the disk what it is before each line."""

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """See `logging.handlers.RotatingFileHandler`."""
        if self.stream is None or self.maxBytes <= 0:
            return False
        size = len(self.format(record).encode(errors="replace")) + 1
        return self.stream.tell() + size > self.maxBytes


def as_record(record: logging.LogRecord) -> Record:
    """What a line says, as `node.log_files` reads it back."""
    made: Record = {
        "time": timestamp(int(record.created), int(record.msecs)),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": printable(record.getMessage()),
    }
    if query := _query_of(made["message"]):
        made["query"] = query
    if record.exc_info:
        made["trace"] = printable(logging.Formatter().formatException(record.exc_info))
    return made


def set_level(level: str) -> None:
    """What this node's own parts log from now on."""
    logging.getLogger("mtor").setLevel(level.upper())


def start_logging(config: LogSection, data: Path) -> None:
    """Log to the data folder and to stderr from now on."""
    folder = log_folder(data)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    rotating = RotatingFile(folder / LOG_FILE, maxBytes=config.max_bytes, backupCount=config.files, encoding="utf-8")
    formatter = Once(JsonLines() if config.format == "json" else TextLines(LINE))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    for handler in (rotating, logging.StreamHandler(sys.stderr)):
        handler.setFormatter(formatter)
        handler.addFilter(Discretion())
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    set_level(config.level)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
