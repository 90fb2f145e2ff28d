"""`mtor logs`: the last lines of a node's log, and those to come.

Rule: from the running node, or from its files while none runs; either way the same lines. Colours only on a terminal
that wants them, and nothing that a stranger wrote reaches it raw.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from node.commands.client import Json, NodeClient, NodeRefused, NoNode, UsageError
from node.commands.screen import printable
from node.log_files import Wish, log_files, read_log
from node.paths import data_folder

RETRY_SECONDS = 1.0  # between two looks for a node that ended
DAY_SECONDS = 86_400.0  # a log may be silent for long
CAUGHT_UP_LINES = 1_000  # of a node that started again
COLOURS = {"debug": "2", "warning": "33", "error": "31", "critical": "1;31"}


def logs(options: argparse.Namespace) -> int:
    """The log."""
    query = options.query.lower()
    if query and not (4 <= len(query) <= 32 and set(query) <= set("0123456789abcdef")):
        raise UsageError(
            "a query's id has 32 hex digits, of which the first 4 are enough: see x-mtor-query, or the log"
        )
    wish = Wish(options.level, query)
    show = _Shower(options.json)
    data = data_folder(options.data)
    if options.follow:
        _follow(data, wish, options.lines, show)
    try:
        _stream(NodeClient(data), wish, options.lines, show, follow=False)
    except NoNode:
        _from_files(data, wish, options.lines, show)
    return 0


def _stream(client: NodeClient, wish: Wish, lines: int, show: _Shower, *, follow: bool) -> None:
    arguments = {"lines": lines, "follow": follow, "level": wish.level, "query": wish.query}
    for record in client.stream("logs.tail", arguments):
        if "message" in record:
            show(record)


def _from_files(data: Path, wish: Wish, lines: int, show: _Shower) -> None:
    if not log_files(data):
        raise NoNode(f"there is no log in {data} yet; start a node with `mtor up`")
    for record in read_log(data, wish, lines):
        show(record)


def _follow(data: Path, wish: Wish, lines: int, show: _Shower) -> None:
    """For ever: a node that ends is waited for, and what it wrote meanwhile is caught up with."""
    first, told = True, False
    while True:
        try:
            client = NodeClient(data, DAY_SECONDS)
            told = False
            show.resume()
            _stream(client, wish, lines if first else CAUGHT_UP_LINES, show, follow=True)
        except (NoNode, NodeRefused) as error:
            if isinstance(error, NodeRefused) and error.status not in (502, 504):
                raise
            if first and log_files(data):
                _from_files(data, wish, lines, show)
            if not told:
                print("mtor: no node is running; its log goes on when one does", file=sys.stderr, flush=True)
            told = True
        first = False
        time.sleep(RETRY_SECONDS)


class _Shower:
    """Prints lines; after `resume` none that was printed before."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._newest = ""  # time of what was printed
        self._same_time: set[str] = set()  # messages of that time
        self._caught_up = True

    def __call__(self, record: Json) -> None:
        """Show one."""
        moment, message = record["time"], record["message"]
        if not self._caught_up and (moment < self._newest or (moment == self._newest and message in self._same_time)):
            return
        self._caught_up = True
        if moment > self._newest:
            self._newest, self._same_time = moment, set()
        self._same_time.add(message)
        print(json.dumps(record, ensure_ascii=False) if self._json else self._line(record), flush=True)

    def resume(self) -> None:
        """What comes now begins before what was printed."""
        self._caught_up = not self._newest

    def _line(self, record: Json) -> str:
        level, query, trace = record["level"], record.get("query", ""), record.get("trace", "")
        about = f" (query {query})" if query and query not in record["message"] else ""
        text = f"{record['time']} {level.upper():7} {record['logger']:16} {record['message']}{about}"
        text = printable(text + (f"\n{trace}" if trace else ""))
        colour = COLOURS.get(level) if self._colours else None
        return f"\x1b[{colour}m{text}\x1b[0m" if colour else text
