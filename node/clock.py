"""The one clock that the wire and the ledger know.

Rule: everything else is given the present, or a function that says it.
"""

from __future__ import annotations

import time


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
