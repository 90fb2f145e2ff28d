"""What goes wrong with models, and what the operator sees of long work.

Rule: every failure names the model or file, what is wrong with it, and the fix.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Json = dict[str, Any]
Progress = Callable[[Json], Awaitable[None]]


class ModelError(Exception):
    """A model cannot be had; the message names the fix."""


def step(name: str, done: int = 0, total: int = 0, **more: Any) -> Json:
    """What the operator sees. A total of 0: it is not known how long the step takes."""
    return {"step": name, "done_bytes": done, "total_bytes": total} | more
