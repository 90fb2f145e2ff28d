"""`mtor pause`: the owner's word.

Rule: it outlives a restart, a crash and a power loss: it is on the disk before it is confirmed. A pause for a time
ends by the clock on the wall. A file that cannot be read was somebody's pause, and holds until `mtor resume`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from node.guard.sense import QUIET, Reading, Says
from node.private_files import sync_folder, write_private

log = logging.getLogger("mtor.guard")

PAUSE_FILE = "pause.json"


@dataclass(frozen=True, slots=True)
class Pause:
    """`until_ms` None: until `mtor resume`. Unix milliseconds."""

    until_ms: int | None
    note: str = ""


class ByHand:
    """See `Sense`."""

    name = "by hand"

    def __init__(self, data: Path, clock: Callable[[], int]) -> None:
        """`clock`: Unix milliseconds."""
        self._path = data / PAUSE_FILE
        self._clock = clock
        self._pause = _read(self._path)

    def read(self) -> Reading:
        """See `Sense`."""
        pause = self._pause
        if pause is None or (pause.until_ms is not None and self._clock() >= pause.until_ms):
            return QUIET
        return Reading(Says.PAUSE, pause.note or "paused by hand", pause.until_ms, at_once=True)

    def pause(self, for_ms: int | None) -> Pause:
        """From now, for a time or until resumed. Blocks on the disk. Raises `OSError`."""
        pause = Pause(None if for_ms is None else self._clock() + for_ms)
        write_private(self._path, json.dumps({"until_ms": pause.until_ms}))
        self._pause = pause
        return pause

    def resume(self) -> bool:
        """End it; True if there was one. Blocks on the disk. Raises `OSError`."""
        was = self.read().says is Says.PAUSE
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)
        self._pause = None
        return was


def _read(path: Path) -> Pause | None:
    if not path.exists():
        return None
    try:
        until = json.loads(path.read_text())["until_ms"]
        if until is None or (isinstance(until, int) and not isinstance(until, bool)):
            return Pause(until)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.debug("%s: %s", path, error)
    log.warning("%s cannot be read; the node stays paused until `mtor resume`", path)
    return Pause(None, f"{path.name} cannot be read; `mtor resume` ends the pause")
