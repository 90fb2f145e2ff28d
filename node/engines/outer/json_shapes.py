"""Taking values out of JSON that a stranger wrote.

Rule: what is not there, or is of another type, is None or the default; nothing raises.
"""

from __future__ import annotations

import math
from typing import Any


def at(value: Any, *path: str | int) -> Any:
    """The value behind keys and indices, None if the way ends before."""
    for step in path:
        if isinstance(step, str) and isinstance(value, dict):
            value = value.get(step)
        elif isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def text_at(value: Any, *path: str | int) -> str:
    """A text, "" if there is none."""
    found = at(value, *path)
    return found if isinstance(found, str) else ""


def count_at(value: Any, *path: str | int) -> int:
    """A whole number above 0, 0 if there is none."""
    found = at(value, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


def number_at(value: Any, *path: str | int) -> float:
    """A finite number from 0 on, 0.0 if there is none."""
    found = at(value, *path)
    usable = isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < 1e12
    return float(found) if usable and math.isfinite(found) and found > 0 else 0.0


def list_at(value: Any, *path: str | int) -> list[Any]:
    """A list, empty if there is none."""
    found = at(value, *path)
    return found if isinstance(found, list) else []
