"""Listed programs: while one of them runs, the machine is its owner's.

Rule: cheap, for it looks every second. Only the list of process ids is read each time; a name is asked for when an id
is new (and for some looks after, since a launcher becomes its game under the same id), and a few of the old ones in
turn, since ids are used again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from node.guard.names import named_in
from node.guard.sense import QUIET, Reading, Says

YOUNG_LOOKS = 5
FRESHENED = 30  # an old name is asked for again every so many looks


@dataclass(slots=True)
class _Known:
    name: str
    looks: int = 0


def _name(pid: int) -> str:
    """Empty if it is gone or not to be seen."""
    try:
        return str(psutil.Process(pid).name())
    except (psutil.Error, OSError, ValueError):
        return ""


class ProgramsSense:
    """See `Sense`."""

    name = "programs"

    def __init__(
        self,
        programs: Sequence[str],
        pids: Callable[[], Sequence[int]] = psutil.pids,
        name_of: Callable[[int], str] = _name,
    ) -> None:
        self._programs = tuple(programs)
        self._pids = pids
        self._name_of = name_of
        self._known: dict[int, _Known] = {}

    def read(self) -> Reading:
        """See `Sense`."""
        try:
            alive = self._pids()
        except (psutil.Error, OSError) as error:
            return Reading(Says.UNKNOWN, f"the system does not list its processes: {type(error).__name__}")
        self._known = {pid: self._look(pid) for pid in alive}
        running = sorted({known.name for known in self._known.values() if named_in(known.name, self._programs)})
        return Reading(Says.PAUSE, f"{', '.join(running)} is running") if running else QUIET

    def _look(self, pid: int) -> _Known:
        known = self._known.get(pid)
        if known is None:
            return _Known(self._name_of(pid))
        known.looks += 1
        if known.looks < YOUNG_LOOKS or (known.looks + pid) % FRESHENED == 0:
            known.name = self._name_of(pid)
        return known
