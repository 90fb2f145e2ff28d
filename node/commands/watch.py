"""`--watch`: the same facts again each second, on a terminal drawn in place, elsewhere as lines of JSON.

Rule: the terminal is left as it was found, whichever way this ends. A node that goes away is waited for, and that is
said; what peers wrote is text and never markup.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.commands.client import Json, NodeClient, NodeRefused, NoNode, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

SECONDS = 1.0
ANSWER_SECONDS = 5.0  # for a status; a node that takes longer hangs
LEAVE = ("q", "Q", "\x03", "\x04")

Draw = Callable[[Json], "RenderableType"]
Wait = Callable[[float], str]


def watch(data: Path, operation: str, draw: Draw, *, as_json: bool) -> int:
    """Until q or Ctrl-C. Raises `NoNode` if no node runs now, `UsageError` where there is nothing to draw on."""
    if as_json:
        return _lines(data, operation)
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        raise UsageError("--watch draws on a terminal, and this is none; --watch --json prints a line a second")
    NodeClient(data)
    return _screen(data, operation, draw)


def _lines(data: Path, operation: str) -> int:
    """One JSON object a line."""
    NodeClient(data)
    try:
        while True:
            facts, missing = _asked(data, operation)
            print(json.dumps(facts if facts is not None else {"waiting": missing}, ensure_ascii=False), flush=True)
            time.sleep(SECONDS)
    except KeyboardInterrupt:
        return 0


def _screen(data: Path, operation: str, draw: Draw) -> int:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    try:
        with _keys() as wait, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                facts, missing = _asked(data, operation)
                live.update(_page(draw(facts) if facts is not None else None, missing), refresh=True)
                if wait(SECONDS) in LEAVE:
                    return 0
    except KeyboardInterrupt:
        return 0


def _asked(data: Path, operation: str) -> tuple[Json | None, str]:
    """The facts, or why there are none now."""
    try:
        return NodeClient(data, ANSWER_SECONDS).call(operation), ""
    except NoNode as error:
        return None, f"{error}. Waiting for it"
    except NodeRefused as error:
        if error.status < 500:
            raise
        return None, f"{error}. Asking again"


def _page(body: RenderableType | None, missing: str) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    now = time.strftime("%H:%M:%S")
    foot = Text(f"{now} · q leaves", style="dim")
    return Group(body if body is not None else Text(missing, style="yellow"), Text(), foot)


@contextmanager
def _keys() -> Iterator[Wait]:
    """Keys as they are pressed: waits so long for one, "" if none came."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    if os.name == "nt":
        yield _windows_key
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield _posix_key
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _posix_key(seconds: float) -> str:
    import select

    descriptor = sys.stdin.fileno()
    if not select.select([descriptor], [], [], seconds)[0]:
        return ""
    return os.read(descriptor, 1).decode(errors="replace") or LEAVE[-1]  # no byte: the terminal is gone


def _windows_key(seconds: float) -> str:
    keyboard: Any = import_module("msvcrt")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if keyboard.kbhit():
            return str(keyboard.getwch())
        time.sleep(0.05)
    return ""
