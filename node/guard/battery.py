"""On battery: a laptop that was unplugged keeps its charge for its owner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil

from node.guard.sense import QUIET, Reading, Says


def _battery() -> Any:
    return psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None


class BatterySense:
    """See `Sense`."""

    name = "battery"

    def __init__(self, look: Callable[[], Any] = _battery) -> None:
        """`look` gives what psutil says of the battery, None without one."""
        self._look = look

    def read(self) -> Reading:
        """See `Sense`."""
        try:
            facts = self._look()
        except Exception as error:  # what it raises differs between systems and kernels
            return Reading(Says.UNKNOWN, f"the battery does not answer: {type(error).__name__}")
        if facts is None or facts.power_plugged is not False:  # None: there is one, and nobody knows
            return QUIET
        return Reading(Says.PAUSE, f"the machine runs on its battery ({facts.percent:.0f} %)")
