"""A window that fills the screen: a game, a film, a presentation.

Rule: a program on the list of those to ignore may fill the screen. Where the system does not tell (a machine without
a screen, pure Wayland, a service of Windows) the answer is "unknown", with the reason, in `mtor status`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import psutil

from node.guard import windows, x11
from node.guard.names import named_in
from node.guard.sense import QUIET, Reading, Says
from node.guard.x11 import CannotTell, FrontWindow

MAC = sys.platform == "darwin"
USER_ABSENT = 1


class FullScreenSense:
    """See `Sense`."""

    name = "full screen"

    def __init__(self, ignore: Sequence[str] = (), look: Callable[[], FrontWindow] | None = None) -> None:
        """`look` says what is in front. It raises `CannotTell`."""
        self._ignore = tuple(ignore)
        self._look = look or _look

    def read(self) -> Reading:
        """See `Sense`."""
        try:
            front = self._look()
        except CannotTell as reason:
            return Reading(Says.UNKNOWN, str(reason))
        if not front.full_screen:
            return QUIET
        name = _name(front.pid)
        if name and named_in(name, self._ignore):
            return QUIET
        return Reading(Says.PAUSE, f"{name or 'a window'} fills the screen")


def _look() -> FrontWindow:
    if windows.WINDOWS:
        return _windows()
    if MAC:
        raise CannotTell("macOS does not tell without a permission of its own")
    return x11.front_window(os.environ)


def _windows() -> FrontWindow:
    state = windows.user_state()
    if state is None or state == USER_ABSENT:
        raise CannotTell("Windows does not say what is on the screen (a service, or nobody is logged in)")
    return FrontWindow(state in windows.FULL_SCREEN_STATES, windows.front_pid())


def _name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name()) if pid else ""
    except (psutil.Error, OSError, ValueError):
        return ""
