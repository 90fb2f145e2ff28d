"""What a node counts and times while it asks and serves, as plain values; `/metrics` shows them.

Rule: nothing here knows Prometheus. Labels are words of this program, realms that are built in or served here, and
this node's own models: never an id, and never a text of a client's or a peer's choosing. Only the trio side writes.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from protocol.ids import BUILT_IN_REALMS

SECONDS_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
MOST_SERIES = (
    1_000  # of one name: far above what its labels can be, so that a mistake in one costs a name and no memory
)
OTHER = "other"  # the label of all realms that are neither built in nor served here


@dataclass(frozen=True, slots=True)
class Figure:
    """A count, or how much of something there is now."""

    name: str
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Times in seconds: how many were at most each of `SECONDS_BOUNDS`, the last: how many in all; and their sum."""

    name: str
    labels: tuple[str, ...]
    counts: tuple[int, ...]
    total: float


Measured = Figure | Spread
Labels = tuple[str, ...]


@dataclass(eq=False, slots=True)
class RunningQuery:
    """A query that is being asked or served now, for `mtor status`."""

    query: str  # hex
    side: str  # "asked" or "served"
    realm: str
    model: str = ""  # "" until it is known
    peer: str = ""  # who works on it, or who asked
    state: str = "asked"
    began: float = field(default_factory=time.monotonic)


class Measures:
    """The counts of one node, and what runs in it."""

    def __init__(self, own_realms: Callable[[], Collection[str]] = tuple) -> None:
        """`own_realms` are those that this node serves now: the operator named them."""
        self._own_realms = own_realms
        self._counts: Counter[tuple[str, Labels]] = Counter()
        self._tallies: dict[tuple[str, Labels], list[int]] = {}
        self._totals: defaultdict[tuple[str, Labels], float] = defaultdict(float)
        self._series: Counter[str] = Counter()  # by name
        self._running: dict[RunningQuery, None] = {}  # in the order in which they began

    def realm(self, name: str) -> str:
        """A realm's label."""
        return name if name in BUILT_IN_REALMS or name in self._own_realms() else OTHER

    def count(self, name: str, *labels: str, by: int = 1) -> None:
        """So many more."""
        key = name, labels
        if key not in self._counts:
            key = self._new(name, labels)
        self._counts[key] += by

    def observe(self, name: str, *labels: str, seconds: float) -> None:
        """One more time that something took."""
        key = name, labels
        if key not in self._tallies:
            key = self._new(name, labels)
        tally = self._tallies.setdefault(key, [0] * (len(SECONDS_BOUNDS) + 1))
        tally[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self._totals[key] += seconds

    @contextmanager
    def running(self, query: RunningQuery) -> Iterator[None]:
        """Shown while the block lasts."""
        self._running[query] = None
        try:
            yield
        finally:
            del self._running[query]

    def now_running(self) -> tuple[RunningQuery, ...]:
        """Oldest first."""
        return tuple(self._running)

    def measured(self) -> list[Measured]:
        """Everything as it is now."""
        counts: list[Measured] = [Figure(name, labels, value) for (name, labels), value in self._counts.items()]
        return counts + [self._spread(key, tally) for key, tally in self._tallies.items()]

    def _new(self, name: str, labels: Labels) -> tuple[str, Labels]:
        """The key of a new series."""
        if self._series[name] >= MOST_SERIES:
            return name, (OTHER,) * len(labels)
        self._series[name] += 1
        return name, labels

    def _spread(self, key: tuple[str, Labels], tally: list[int]) -> Spread:
        counts, so_far = [], 0
        for number in tally:
            so_far += number
            counts.append(so_far)
        return Spread(*key, tuple(counts), self._totals[key])
