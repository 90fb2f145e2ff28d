"""What Windows says of the screen.

Rule: only asks; every call that is not there or fails means "cannot be told". It can be imported
anywhere; only Windows answers.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref
from typing import Any

WINDOWS = sys.platform == "win32"
FULL_SCREEN_STATES = {
    2: "a full-screen window is open",
    3: "a full-screen game is running",
    4: "a presentation is on",
}  # QUERY_USER_NOTIFICATION_STATE of shellapi.h; 1 is an absent user, 5-7 are quiet


def user_state() -> int | None:
    """What Windows thinks the user does (`SHQueryUserNotificationState`); None if it cannot be told."""
    if not WINDOWS:
        return None
    state = ctypes.c_int(0)
    try:
        failed = _library("shell32").SHQueryUserNotificationState(byref(state))
    except (OSError, AttributeError):
        return None
    return None if failed else state.value


def front_pid() -> int:
    """The process of the window in front; 0 if it cannot be told."""
    if not WINDOWS:
        return 0
    pid = ctypes.c_ulong(0)
    try:
        user = _library("user32")
        user.GetForegroundWindow.restype = ctypes.c_void_p
        window = user.GetForegroundWindow()
        user.GetWindowThreadProcessId(ctypes.c_void_p(window), byref(pid))
    except (OSError, AttributeError):
        return 0
    return int(pid.value)


def _library(name: str) -> Any:
    return getattr(ctypes, "windll").__getattr__(name)  # noqa: B009  # only Windows has it
