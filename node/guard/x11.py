"""As much of the X11 protocol as it takes to ask which window is in front, and whether it fills the screen.

Rule: reads three properties and nothing else; a fresh connection each time, every wait bounded. No library: Xlib ends
the whole process when the display server goes away. After "X Window System Protocol", release 11, sections 8 and 10,
and the Extended Window Manager Hints (`_NET_ACTIVE_WINDOW`, `_NET_WM_STATE`, `_NET_WM_PID`).
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WAIT_SECONDS = 1.0
MOST_REPLY_BYTES = 1 << 20
MOST_SKIPPED = 64  # events and errors before an answer
PROPERTY_WORDS = 64  # of a property, at most: states and ids are short
COOKIE = b"MIT-MAGIC-COOKIE-1"
INTERN_ATOM, GET_PROPERTY = 16, 20

_DISPLAY = re.compile(r"(?:unix)?:(\d{1,5})(?:\.\d+)?")


class CannotTell(Exception):
    """The display server cannot be asked; the message says why."""


@dataclass(frozen=True, slots=True)
class FrontWindow:
    """What is in front. `pid` 0: the window does not say."""

    full_screen: bool
    pid: int


def front_window(environment: Mapping[str, str] = os.environ) -> FrontWindow:
    """Ask the display that the environment names. Raises `CannotTell`."""
    number = _display(environment)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(WAIT_SECONDS)
            _dial(line, number)
            return _ask(_Server(line, _cookie(environment, number)))
    except (OSError, struct.error, IndexError) as error:
        raise CannotTell(f"display :{number} does not answer: {type(error).__name__}") from None


def _display(environment: Mapping[str, str]) -> int:
    display = environment.get("DISPLAY", "")
    found = _DISPLAY.fullmatch(display)
    if found:
        return int(found[1])
    if display:
        raise CannotTell(f"display {display} is not on this machine")
    wayland = environment.get("WAYLAND_DISPLAY")
    raise CannotTell("Wayland does not tell programs of each other's windows" if wayland else "no screen is known here")


def _dial(line: socket.socket, number: int) -> None:
    path = f"/tmp/.X11-unix/X{number}"
    try:
        line.connect(path)
    except OSError:
        line.connect("\0" + path)  # Linux's abstract name, which containers and some servers use


def _ask(server: _Server) -> FrontWindow:
    active = server.property(server.root, "_NET_ACTIVE_WINDOW")
    if not active or not active[0]:
        return FrontWindow(False, 0)
    full_screen = server.atom("_NET_WM_STATE_FULLSCREEN")
    states = server.property(active[0], "_NET_WM_STATE")
    pids = server.property(active[0], "_NET_WM_PID")
    return FrontWindow(bool(full_screen) and full_screen in states, pids[0] if pids else 0)


class _Server:
    """One connection."""

    def __init__(self, line: socket.socket, cookie: bytes) -> None:
        self._line = line
        name = COOKIE if cookie else b""
        line.sendall(struct.pack("<cxHHHHxx", b"l", 11, 0, len(name), len(cookie)) + _padded(name) + _padded(cookie))
        status, _, _, words = struct.unpack("<BxHHH", self._read(8))
        answer = self._read(words * 4)
        if status != 1:
            raise CannotTell("the display server does not let this process in")
        vendor_bytes, formats = struct.unpack_from("<H", answer, 16)[0], answer[21]
        self.root: int = struct.unpack_from("<I", answer, 32 + _round(vendor_bytes) + 8 * formats)[0]

    def atom(self, name: str) -> int:
        """The number of a name; 0 if nobody has used it yet."""
        text = name.encode()
        body = struct.pack("<BBHHxx", INTERN_ATOM, 1, 2 + _round(len(text)) // 4, len(text)) + _padded(text)
        return int(struct.unpack_from("<I", self._reply(body), 8)[0])

    def property(self, window: int, name: str) -> Sequence[int]:
        """A window's property as numbers; none if it has no such property."""
        atom = self.atom(name)
        if not atom:
            return ()
        reply = self._reply(struct.pack("<BBHIIIII", GET_PROPERTY, 0, 6, window, atom, 0, 0, PROPERTY_WORDS))
        if not reply or reply[1] != 32:  # bits of an item
            return ()
        count = min(struct.unpack_from("<I", reply, 16)[0], (len(reply) - 32) // 4)
        return struct.unpack_from(f"<{count}I", reply, 32)

    def _reply(self, request: bytes) -> bytes:
        """The answer to a request. A window that is gone answers with an error, which is no answer: zeros."""
        self._line.sendall(request)
        for _ in range(MOST_SKIPPED):
            head = self._read(32)
            if head[0] == 1:
                return head + self._read(struct.unpack_from("<I", head, 4)[0] * 4)
            if head[0] == 0:
                return bytes(32)
        raise OSError("no answer among many events")

    def _read(self, size: int) -> bytes:
        if size > MOST_REPLY_BYTES:
            raise OSError(f"an answer of {size} bytes")
        data = b""
        while len(data) < size:
            part = self._line.recv(size - len(data))
            if not part:
                raise OSError("the display server hung up")
            data += part
        return data


def _cookie(environment: Mapping[str, str], number: int) -> bytes:
    """The key to a display, from the user's file of keys; empty without one. The first that fits is taken."""
    path = Path(environment.get("XAUTHORITY") or Path.home() / ".Xauthority")
    try:
        data = path.read_bytes()[:MOST_REPLY_BYTES]
    except OSError:
        return b""
    at = 0
    while at + 2 <= len(data):
        at += 2  # the family of the address
        fields = []
        for _ in range(4):  # address, display, name of the method, key
            size = struct.unpack_from(">H", data, at)[0]
            fields.append(data[at + 2 : at + 2 + size])
            at += 2 + size
        if fields[1] in (b"", str(number).encode()) and fields[2] == COOKIE:
            return fields[3]
    return b""


def _padded(text: bytes) -> bytes:
    return text + bytes(_round(len(text)) - len(text))


def _round(size: int) -> int:
    return (size + 3) // 4 * 4
