"""Python's collector of cycles, set for a process that answers many at once.

Rule: what a start has loaded is looked at no more, and the rest less often. Every pause is one for all answers that
stream: with the usual settings a full collection of a node took 100 to 250 ms on a busy machine, and all of them up to
an eighth of its processor time (seen by `gc.callbacks` in a node under the load of `bench/gateways.py`).
"""

from __future__ import annotations

import gc

YOUNG = 10_000  # objects more than were freed, between two looks at the youngest
MIDDLE, OLD = 20, 20  # times the generation before


def calm_collector() -> None:
    """For the rest of the process's life. Cycles that queries leave are still found; call this once all is set up."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
